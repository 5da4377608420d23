"""A result: runs that may be pooled, as a tidy CSV with a description in JSON beside it."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments import domains
from experiments.common.domain import Results
from scripts.report.methods import base
from scripts.report.runs import RAN_WITH, Run, file_label, labelled, poolable

COLUMNS = [
    "domain", "benchmark", "method", "seed", "scale", "machine", "phase", "step_name", "step", "metric", "value",
    "at_boundary",
]  # fmt: skip
SeedsOf = dict[str, list[int]]  # by the method's label


@dataclass(frozen=True)
class Result:
    """Runs of one benchmark, scale and machine: a CSV, and a JSON file of what the CSV does not have.

    Attributes:
        title: the name of its files, without the ending.
        data: a line for each number logged.
        recipe: that asked for the runs; empty if they are all runs of their benchmark and scale.
        choices, settings: words of the command line that chose the benchmark, and that changed other settings.
        difference: in what the runs differ from others of the same recipe, or the same benchmark and scale.
        ran_with: values of RAN_WITH.
        torch: its versions. commits: of this repository.
        missing: seeds that the recipe lists and that have not finished.
        unfinished: seeds of which the CSV has the numbers so far; no table, mean or difference includes them.
    """

    title: str
    data: pd.DataFrame
    recipe: str = ""
    choices: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    difference: list[str] = field(default_factory=list)
    ran_with: dict[str, str] = field(default_factory=dict)
    torch: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    missing: SeedsOf = field(default_factory=dict)
    unfinished: SeedsOf = field(default_factory=dict)

    @cached_property
    def first(self) -> pd.Series:
        """The first line of the data, for what is the same in all: domain, benchmark, scale, machine."""
        return self.data.iloc[0]

    @property
    def spec(self) -> Results:
        """How results of its domain are reported."""
        return domains.domain(self.first.domain).results

    @property
    def under_way(self) -> list[tuple[str, int]]:
        """Method and seed of each unfinished run."""
        return [(method, seed) for method, seeds in self.unfinished.items() for seed in seeds]

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The lines of finished runs."""
        return self.data[~pd.MultiIndex.from_frame(self.data[["method", "seed"]]).isin(self.under_way)]

    @property
    def has_all_methods(self) -> bool:
        """Whether every method of the recipe has finished in some seed."""
        return len(self.finished) > 0 and self.missing.keys() <= set(self.finished.method.map(base))

    @property
    def compares(self) -> bool:
        """Whether no reset and another method have finished in one seed."""
        return any({"none"} < set(methods.map(base)) for _, methods in self.finished.groupby("seed").method)

    @property
    def is_complete(self) -> bool:
        """Whether every method has finished in some seed and no run is under way."""
        return self.has_all_methods and not self.unfinished

    @property
    def seeds(self) -> str:
        """How many seeds its methods have."""
        counts = self.finished.groupby("method").seed.nunique()
        return f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"

    @property
    def places(self) -> pd.Series:
        """Of each line, the step as figures count it: from the run's last boundary, or from its start."""
        if self.spec.from_start(self.first.benchmark):
            return self.data.step
        boundaries = self.data[self.data.at_boundary].groupby(["method", "seed"]).step.max().rename("boundary")
        return self.data.step - self.data.join(boundaries, on=["method", "seed"]).boundary

    def progress(self, method: str, seed: int) -> str:
        """How far an unfinished run is: "epoch 67 of 100"."""
        run = (self.data.method == method) & (self.data.seed == seed)
        whole = self.places[self.finished.index].max()
        return f"{self.spec.steps.removesuffix('s')} {self.places[run].max():,.0f} of {whole:,.0f}"

    @property
    def changed(self) -> str:
        """Settings that were changed or that tell the runs from others."""
        return ", ".join(dict.fromkeys([*self.difference, *self.settings]))

    @property
    def command(self) -> str:
        """The command that makes the runs again and those that are missing; empty without a recipe."""
        if not self.recipe:
            return ""
        seeds = {*self.data.seed, *(seed for seeds in self.missing.values() for seed in seeds)}
        words = [f"experiment={self.recipe}", *self.choices, f"scale={self.first.scale}"]
        words += [*self.settings, f"seed={','.join(map(str, sorted(seeds)))}"]
        words += [f"{key}={self.ran_with[key]}" for key in ("precision", "compile", "threads")]
        return f"python -m experiments.{self.first.domain} {shlex.join(words)}"

    def write(self, out: Path) -> None:
        """The CSV and the JSON file."""
        out.mkdir(parents=True, exist_ok=True)
        self.data.to_csv(out / f"{self.title}.csv", index=False)
        about = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("title", "data")}
        (out / f"{self.title}.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def load(path: Path) -> Result:
    """The result whose CSV is at `path`."""
    return Result(path.stem, pd.read_csv(path), **json.loads(path.with_suffix(".json").read_text("utf-8")))


def results(domain: str, runs: Sequence[Run]) -> list[Result]:
    """The results of some runs.

    A recipe's are the runs it asked for, if each of its methods has finished in some seed, or no reset and another one
    in the same seed. Where finished runs are in no such result, all of their benchmark and scale make one.
    """
    found = []
    for group in sorted({run.group for run in runs}):
        members = [run for run in runs if run.group == group]
        begun, shown = [run for run in members if run.depends_on_method], set[Path]()
        for recipe in sorted({recipe for run in begun for recipe in run.recipes}):
            for difference, pool in poolable([run for run in begun if recipe in run.recipes]):
                result = _result(domain, recipe, difference, pool)
                if result.has_all_methods or result.compares:
                    shown |= {run.path for run in pool}
                    found.append(result)
        for difference, pool in poolable([run for run in members if run.finished]):
            if not shown.issuperset(run.path for run in pool):
                found.append(_result(domain, "", difference, pool))
        for run in members:
            if not run.finished and run.path not in shown:
                print(f"left out, not finished: {run.path}")
    return found


def _result(domain: str, recipe: str, difference: list[str], pool: Sequence[Run]) -> Result:
    labels, parts = labelled(pool), [part for run in pool for part in run.parts]
    choices, settings = (sorted({word for run in pool for word in run.given[kind]}) for kind in (0, 1))
    benchmark, _, scale = pool[0].group.rpartition("-")
    step = domains.domain(domain).results.step
    unfinished: SeedsOf = {}
    for run in pool:
        if not run.finished:
            unfinished.setdefault(labels[run.path], []).append(run.values["seed"])
    lines = [
        (
            domain, benchmark, labels[run.path], run.values["seed"], scale, run.machine, row["phase"], step, row[step],
            metric, value, "reset/sfe" in row,
        )
        for run in pool
        for row in run.rows
        for metric, value in row.items()
        if metric not in (step, "phase")
    ]  # fmt: skip
    # A benchmark that the recipe does not name itself is part of the title.
    named = "-".join([*filter(None, [recipe]), *([benchmark] if choices or not recipe else []), scale])
    return Result(
        named + file_label(difference), pd.DataFrame(lines, columns=COLUMNS), recipe, choices, settings, difference,
        {words: pool[0].circumstances[key] for key, words in RAN_WITH.items() if key in pool[0].circumstances},
        sorted({part["versions"]["torch"] for part in parts}), sorted({part["git"] for part in parts}),
        _missing(recipe, pool) if recipe else {}, unfinished,
    )  # fmt: skip


def _missing(recipe: str, pool: Sequence[Run]) -> SeedsOf:
    """Which seeds of which methods the recipe lists and have not finished, with whatever settings."""
    listed: dict[str, list[str]] = {"method": [], "seed": []}
    parser = OverridesParser.create()
    for run in pool:
        for key in listed.keys() & run.recipes[recipe].keys():
            words = run.recipes[recipe][key]
            values = parser.parse_override(f"{key}={words}")
            listed[key] += values.sweep_string_iterator() if values.is_sweep_override() else [str(words)]
    finished = {(run.values["method"]["name"], run.values["seed"]) for run in pool if run.finished}
    seeds = [int(seed) for seed in dict.fromkeys(listed["seed"])]
    missing = {method: [seed for seed in seeds if (method, seed) not in finished] for method in listed["method"]}
    return {method: lacking for method, lacking in missing.items() if lacking}
