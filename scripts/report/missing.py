"""What of a recipe has not been run yet, or has not finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from scripts.report.domains import Domain, name
from scripts.report.recipes import Recipe
from scripts.report.runs import Run


@dataclass(frozen=True)
class Unfinished:
    """A run whose curve is drawn as far as it goes, and which no table, mean or difference includes.

    Attributes:
        method, seed: as in the CSV.
        step: the last one logged, counted as the figure does. of: how many a finished run has.
    """

    method: str
    seed: int
    step: float
    of: float

    def words(self, domain: Domain) -> str:
        """How far it is: "epoch 67 of 100"."""
        return f"{domain.steps.removesuffix('s')} {self.step:,.0f} of {self.of:,.0f}"


def unfinished(runs: Sequence[Run], labels: Mapping[Path, str], domain: Domain) -> list[Unfinished]:
    """Those of `runs` that have not finished, by method and seed; `labels` are the methods' by path."""
    of = max(position(run, domain) for run in runs if run.finished)
    begun = [run for run in runs if not run.finished]
    found = [Unfinished(labels[run.path], run.values["seed"], position(run, domain), of) for run in begun]
    return sorted(found, key=lambda one: (one.method, one.seed))


def position(run: Run, domain: Domain) -> float:
    """The last step that a run has logged, counted as its figure does."""
    last = max(row[domain.step] for row in run.rows)
    boundaries = [row[domain.step] for row in run.rows if "reset/sfe" in row]
    benchmark = run.group.rpartition("-")[0]
    return last - (max(boundaries) if domain.since_boundary(benchmark) else 0)


def missing(recipe: Recipe, jobs: Sequence[Run], runs: Sequence[Run], labels: Mapping[Path, str]) -> dict:
    """The seeds that each method of a recipe lacks, as the recipe orders its jobs."""
    lacking = {labels[job.path]: recipe.missing_seeds(job, runs) for job in jobs}
    return {method: seeds for method, seeds in lacking.items() if seeds}


def without(data: pd.DataFrame, begun: Sequence[Unfinished]) -> pd.DataFrame:
    """The lines of `data` that are of finished runs."""
    pairs = {(one.method, one.seed) for one in begun}
    return data[[pair not in pairs for pair in zip(data.method, data.seed, strict=True)]]


def told(lacking: Mapping[str, Sequence[int]], begun: Sequence[Unfinished], domain: Domain) -> str:
    """Both in a few sentences; empty where all has finished."""
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for method, seeds in lacking.items():
        by_seeds.setdefault(tuple(seeds), []).append(name(method))
    groups = [f"{', '.join(methods)} ({numbered(seeds)})" for seeds, methods in by_seeds.items()]
    sentences = [f"Missing: {'; '.join(groups)}."] if groups else []
    if begun:
        curves = "; ".join(f"{name(one.method)}, {numbered([one.seed])} ({one.words(domain)})" for one in begun)
        sentences.append(f"Not finished, so drawn and in no table: {curves}.")
    return " ".join(sentences)


def numbered(seeds: Sequence[int]) -> str:
    """Seeds in words."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
