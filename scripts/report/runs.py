"""Runs, as their directories describe them."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.common import run_files
from experiments.common.metric_log import Row, read_rows
from scripts import command

# Part of a run's identity, though they change its numbers only as chance does: key -> words.
RAN_WITH = {
    "device": "device", "threads": "threads", "compile": "compile", "precision": "precision",
    "environment.name": "environment", "environment.version": "its version", "environment.mujoco": "MuJoCo",
}  # fmt: skip
OPTIMIZER = "optimizer_at_boundary"
LONGEST_LABEL = 60  # characters in a file name


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        info: its run.json.
        values: the settings that can change its numbers.
        parts: commit, versions and machine of each part of its training, the shared phase 0 included.
        rows: its metric log.
        recipes: those that asked for it, each with the sweep it makes.
    """

    path: Path
    info: dict[str, Any]
    values: dict[str, Any]
    parts: list[dict[str, Any]]
    rows: list[Row]
    recipes: dict[str, dict[str, Any]]
    finished: bool

    @classmethod
    def read(cls, path: Path) -> "Run":
        """The run in a directory.

        Raises:
            UserError: a file of it is damaged.
        """
        info, done = run_files.description(path), run_files.summary(path)
        if done is not None:
            run_files.check_finished_log(path, done)
        parts = [info, *info["continued"], *info["branched_from"]]
        rows = read_rows(path / "metrics.jsonl")
        return cls(path, info, info["values"], parts, rows, run_files.recipes(path), done is not None)

    @property
    def group(self) -> str:
        """Benchmark and scale."""
        return self.path.parent.name

    @property
    def depends_on_method(self) -> bool:
        """Whether it has finished or crossed a boundary; before that, runs of all methods are the same."""
        return self.finished or any("reset/sfe" in row for row in self.rows)

    @cached_property
    def machine(self) -> str:
        """Where it was computed; several machines if it was interrupted and resumed elsewhere."""
        return " and ".join(sorted({part["machine"] for part in self.parts}))

    @cached_property
    def circumstances(self) -> dict[str, str]:
        """All that can change its numbers beside method and seed."""
        own = {key: value for key, value in self.values.items() if key not in ("method", OPTIMIZER, "seed")}
        return {"machine": self.machine, **flat(own)}

    @property
    def given(self) -> tuple[list[str], list[str]]:
        """What the command line says beside recipe, method, seed, scale and what is in RAN_WITH: the words that choose
        the benchmark, and other settings that can change a number."""
        keys = {word.split("=")[0].lstrip("+") for word in shlex.split(self.info.get("command", "")) if "=" in word}
        choices = {word.split("=")[0]: word for word in self.info.get("choices", [])}
        others = keys & self.circumstances.keys() - RAN_WITH.keys() - choices.keys()
        settings = [f"{key}={self.circumstances[key]}" for key in sorted(others)]
        return [word for key, word in choices.items() if key in keys], settings

    def label(self, extra: Sequence[str] = ()) -> str:
        """The method's name, with the settings of it that the command line gave, and `extra`, in brackets."""
        words = [word.removeprefix("method.") for word in self.info.get("method_settings", [])]
        optimizer = f"{OPTIMIZER}={self.values[OPTIMIZER]}"  # a method may insist on its own
        words = [optimizer if word.startswith(f"{OPTIMIZER}=") else word for word in words]
        settings = ", ".join(dict.fromkeys([*words, *extra]))
        return self.values["method"]["name"] + (f" ({settings})" if settings else "")


def find_runs(roots: Sequence[Path]) -> list[Run]:
    """The runs below `roots`, each once, the finished ones first; damaged ones are named and left out."""
    runs: dict[tuple[str, str], Run] = {}
    paths = sorted(run_files.run_directories(roots), key=lambda path: not (path / "done").exists())
    for run in command.readable(paths, Run.read):
        first = runs.setdefault((run.info["identity"], run.info["machine"]), run)
        if first is not run:
            print(f"left out, the same run as {first.path}: {run.path}")
    return list(runs.values())


def poolable(runs: Sequence[Run]) -> list[tuple[list[str], list[Run]]]:
    """Runs of one group, apart where more than method and seed differs; each with the settings that differ."""
    pools: dict[tuple[str, ...], list[Run]] = {}
    for run, words in zip(runs, differing([run.circumstances for run in runs]), strict=True):
        pools.setdefault(tuple(words), []).append(run)
    return [(list(words), pool) for words, pool in pools.items()]


def file_label(words: Sequence[str]) -> str:
    """Settings as the end of a file name: without the sections they are in, or as a hash where they are too long."""
    short = [re.sub(r"^[^=]*\.", "", word) for word in words]
    label = re.sub(r"[^\w=.,-]", "_", "".join(f"-{word}" for word in short))
    return label if len(label) <= LONGEST_LABEL else "-" + hashlib.sha256(label.encode()).hexdigest()[:8]


def labelled(runs: Sequence[Run]) -> dict[Path, str]:
    """The label of each run's method, with more of its settings where one label would stand for several."""
    found = {}
    for label in {run.label() for run in runs}:
        same = [run for run in runs if run.label() == label]
        settings = [flat({**run.values["method"], OPTIMIZER: run.values[OPTIMIZER]}) for run in same]
        for run, words in zip(same, differing(settings), strict=True):
            found[run.path] = run.label(words)
    return found


def differing(settings: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Of each of several runs, the settings in which they are not all equal, as key=value."""
    keys = sorted(set().union(*settings))
    varying = [key for key in keys if len({one.get(key) for one in settings}) > 1]
    return [[f"{key}={one.get(key)}" for key in varying] for one in settings]


def flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings by dotted keys, values as the command line has them."""
    (settings,) = pd.json_normalize([dict(values)]).to_dict("records")
    return {str(key): json.dumps(value, separators=(",", ":")).strip('"') for key, value in settings.items()}
