"""Which runs a recipe consists of, by composing it as the command line does."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from omegaconf import OmegaConf

from experiments.common.config import compose_domain, compose_sweep, recipes
from scripts.report.domains import DOMAINS
from scripts.report.runs import Run

# What tells the jobs of a recipe from one another. Seeds may be any; how fast or on what they run does not matter here.
OF_JOB = ("method", "optimizer_at_boundary", "sharpness")
GENERIC = ("fig3", "fig4a", "fig4b")  # for any checkpoint, game or task: their runs are told by that


@dataclass(frozen=True)
class Recipe:
    """A recipe at one scale.

    Attributes:
        domain, name: as in `python -m experiments.<domain> experiment=<name>`.
        scale: of its runs.
        benchmark: what they are filed under, with the scale.
    """

    domain: str
    name: str
    scale: str
    benchmark: str

    @cached_property
    def jobs(self) -> list[dict[str, Any]]:
        """What each of its jobs, of one seed, has in OF_JOB."""
        schema = DOMAINS[self.domain].schema
        configs = compose_sweep(self.domain, schema, self.name, [f"scale={self.scale}", "seed=0"])
        values: list[Any] = [OmegaConf.to_container(cfg) for cfg in configs]
        return [_of_job(one) for one in values]

    def runs(self, runs: Sequence[Run]) -> list[Run]:
        """Those of `runs` that are its jobs; none unless each job is there in some seed."""
        mine = [run for run in runs if _of_job(run.values) in self.jobs]
        return mine if all(any(_of_job(run.values) == job for run in mine) for job in self.jobs) else []


@cache
def recipes_at(domain: str, scale: str) -> tuple[Recipe, ...]:
    """All recipes of a domain at `scale`."""
    found = []
    for name in recipes(domain):
        if name not in GENERIC:
            cfg = compose_domain(domain, DOMAINS[domain].schema, [f"experiment={name}", f"scale={scale}"])
            found.append(Recipe(domain, name, scale, DOMAINS[domain].benchmark(cfg)))
    return tuple(found)


def _of_job(values: dict[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in OF_JOB}
