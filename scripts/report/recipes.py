"""Which runs a recipe consists of, and what a run would have been by default: by composing as the command line does."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
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
FREE = (*OF_JOB, *NOT_IDENTITY, "seed", "device", "precision", "compile", "threads", "env.backend")
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
    def sweep(self) -> list[list[str]]:
        """The overrides of each of its jobs."""
        words = [f"scale={self.scale}", *self.choices]
        return sweep_jobs(self.domain, DOMAINS[self.domain].schema, self.name, words)

    @cached_property
    def seeds(self) -> list[int]:
        """Those it asks for."""
        return sorted({int(word.removeprefix("seed=")) for job in self.sweep for word in job if _is_seed(word)})

    @cached_property
    def overrides(self) -> list[tuple[str, ...]]:
        """Those of each of its jobs, of one seed."""
        seedless = {tuple(word for word in job if not _is_seed(word)): None for job in self.sweep}
        return [(*job, "seed=0") for job in seedless]

    @cached_property
    def jobs(self) -> list[dict[str, Any]]:
        """What each of those has in OF_JOB."""
        return [_of_job(composed(self.domain, job)) for job in self.overrides]

    def pools(self, runs: Sequence[Run], least: int = 1) -> list[list[Run]]:
        """Those of `runs` that are its jobs, apart where they may not be pooled; none at once where `runs` are of fewer
        than `least` different jobs, because composing its own takes seconds."""
        if len({json.dumps(_of_job(run.values), sort_keys=True) for run in runs}) < least:
            return []
        mine = [run for run in runs if _of_job(run.values) in self.jobs and not deviations(run.config, self.values)]
        return [pool for _, _, pool in poolable(mine)]

    def share(self, runs: Sequence[Run]) -> float:
        """How much of its jobs is there in some seed, finished or not."""
        return sum(any(_of_job(run.values) == job for run in runs) for job in self.jobs) / len(self.jobs)

    def is_complete(self, runs: Sequence[Run]) -> bool:
        """Whether each of its jobs has finished in some seed."""
        finished = [_of_job(run.values) for run in runs if run.finished]
        return all(job in finished for job in self.jobs)

    def as_runs(self) -> list[Run]:
        """Its jobs as runs that nothing is known of but their values."""
        return [Run(Path(*job), {"values": composed(self.domain, job)}, {}, [], False) for job in self.overrides]

    def missing_seeds(self, job: Run, runs: Sequence[Run]) -> list[int]:
        """The seeds in which a job has to be run to have as many as the recipe asks for."""
        there = {run.values["seed"] for run in runs if run.finished and _of_job(run.values) == _of_job(job.values)}
        return [seed for seed in self.seeds if seed not in there][: max(0, len(self.seeds) - len(there))]


def shown(recipes: Sequence[Recipe], runs: Sequence[Run]) -> list[tuple[Recipe, str, str, list[Run]]]:
    """Which recipes are shown of `runs` of one benchmark and scale: each with the label, what differs and the runs of
    `poolable`.

    A recipe is complete, and always shown, where each of its jobs has finished in some seed. An incomplete one needs a
    comparison, that is a seed in which `none` and another of its jobs have finished, and a finished run that no other
    shows. Of several the one with the largest share of its jobs comes first, then the order of the recipes counts: so
    runs that several recipes share are not shown once for each.
    """
    whole = {
        recipe: [pool for pool in recipe.pools(runs, len(recipe.overrides)) if recipe.is_complete(pool)]
        for recipe in recipes
    }
    claimed = {run.path for pools in whole.values() for pool in pools for run in pool}
    parts: dict[Recipe, list[list[Run]]] = {recipe: [] for recipe in recipes}
    if compares([run for run in runs if run.path not in claimed], runs):
        pools = [(recipe, pool) for recipe in recipes for pool in recipe.pools(runs) if compares(pool, pool)]
        for recipe, pool in sorted(pools, key=lambda one: -one[0].share(one[1])):
            if not recipe.is_complete(pool) and any(run.finished and run.path not in claimed for run in pool):
                parts[recipe].append(pool)
                claimed |= {run.path for run in pool}
    found = []
    for recipe in recipes:
        found += [(recipe, *pool) for pool in poolable([run for pool in whole[recipe] for run in pool])]
        partial = {run.path for pool in parts[recipe] for run in pool}
        everything = poolable([run for pool in whole[recipe] + parts[recipe] for run in pool])
        found += [(recipe, *pool) for pool in everything if pool[2][0].path in partial]
    return found


def compares(some: Sequence[Run], runs: Sequence[Run]) -> bool:
    """Whether one of `some` has finished in a seed in which `none` and another method have finished in `runs`."""
    seeds = {run.values["seed"] for run in some if run.finished}
    methods = {seed: {r.method for r in runs if r.finished and r.values["seed"] == seed} for seed in seeds}
    return any("none" in found and len(found) > 1 for found in methods.values())


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


def _is_seed(word: str) -> bool:
    return word.startswith("seed=")
