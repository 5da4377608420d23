"""Which runs a recipe consists of, and what a run would have been by default: by composing as the command line does."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from omegaconf import OmegaConf

from experiments.common.config import (
    CONFIGS,
    NOT_IDENTITY,
    OF_METHOD,
    compose_domain,
    optimizer_at_boundary,
    recipes,
    sweep_jobs,
)
from scripts.report.domains import DOMAINS
from scripts.report.runs import Run, flat, poolable

# What tells the jobs of a recipe from one another; seeds may be any.
OF_JOB = (*OF_METHOD, "sharpness")
# In what a run may differ from its recipe: in what the recipe sweeps over, and where it ran.
FREE = (*OF_JOB, *NOT_IDENTITY, "seed", "device", "compile", "threads", "env.backend")
GENERIC = ("fig3", "fig4a", "fig4b")  # for any checkpoint, game or task: their runs are told by that


@dataclass(frozen=True)
class Recipe:
    """A recipe at one scale.

    Attributes:
        domain, name: as in `python -m experiments.<domain> experiment=<name>`.
        scale: of its runs.
        choices: what a recipe of all domains is run on; empty for the others, which say that themselves.
    """

    domain: str
    name: str
    scale: str
    choices: tuple[str, ...]

    @cached_property
    def values(self) -> dict[str, Any]:
        """Those of its first job."""
        return composed(self.domain, (f"experiment={self.name}", f"scale={self.scale}", *self.choices))

    @property
    def benchmark(self) -> str:
        """What its runs are filed under, with the scale."""
        return DOMAINS[self.domain].benchmark(self.values)

    @property
    def title(self) -> str:
        """Of its results."""
        return f"{self.name}-{self.benchmark if self.choices else ''}-{self.scale}".replace("--", "-")

    @cached_property
    def overrides(self) -> list[tuple[str, ...]]:
        """Those of each of its jobs, of one seed."""
        words = [f"scale={self.scale}", "seed=0", *self.choices]
        return [tuple(job) for job in sweep_jobs(self.domain, DOMAINS[self.domain].schema, self.name, words)]

    @cached_property
    def jobs(self) -> list[dict[str, Any]]:
        """What each of those has in OF_JOB."""
        return [_of_job(composed(self.domain, job)) for job in self.overrides]

    def pools(self, runs: Sequence[Run]) -> list[tuple[str, str, list[Run]]]:
        """Those of `runs` that are its jobs, as `poolable` has them; of runs that may be pooled all or none, as each
        job is there in some seed or not."""
        if len({json.dumps(_of_job(run.values), sort_keys=True) for run in runs}) < len(self.overrides):
            return []  # composing its jobs takes seconds
        mine = [run for run in runs if _of_job(run.values) in self.jobs and not deviations(run.config, self.values)]
        complete = [pool for _, _, pool in poolable(mine) if all(_is_there(job, pool) for job in self.jobs)]
        return poolable([run for pool in complete for run in pool])


def is_shared(recipe: str) -> bool:
    """Whether a recipe is one of all domains, which does not say what it is run on."""
    return (CONFIGS / "shared" / "experiment" / f"{recipe}.yaml").exists()


@cache
def recipes_at(domain: str, scale: str, choices: tuple[str, ...]) -> tuple[Recipe, ...]:
    """All recipes of a domain at `scale`; those of all domains on what `choices` say."""
    return tuple(
        Recipe(domain, name, scale, choices if is_shared(name) else ())
        for name in recipes(domain)
        if name not in GENERIC
    )


@cache
def composed(domain: str, words: tuple[str, ...]) -> dict[str, Any]:
    """The values that `python -m experiments.<domain> <words>` has."""
    values: Any = OmegaConf.to_container(compose_domain(domain, DOMAINS[domain].schema, words), resolve=True)
    return values


def deviations(config: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    """The settings of a run, but for those of FREE, that are not as usual."""
    ours, theirs = flat(config), flat(usual)
    return [
        f"{key}={ours[key]}"
        for key in sorted(ours.keys() & theirs.keys())
        if ours[key] != theirs[key] != '"???"' and not any(key == free or key.startswith(f"{free}.") for free in FREE)
    ]


def _of_job(values: Any) -> dict[str, Any]:
    return {**{key: values[key] for key in OF_JOB}, "optimizer_at_boundary": optimizer_at_boundary(values)}


def _is_there(job: dict[str, Any], runs: Sequence[Run]) -> bool:
    return any(_of_job(run.values) == job for run in runs)
