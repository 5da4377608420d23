"""Runs: found, told apart, and brought into one table of all their numbers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from experiments.common.config import OF_METHOD
from experiments.common.errors import UserError
from experiments.common.metric_log import read_rows
from experiments.common.workspace import run_directories
from scripts.report.domains import Domain


@dataclass
class Run:
    """A run, as its directory tells it."""

    path: Path
    info: dict[str, Any]
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    finished: bool = True

    @property
    def values(self) -> dict[str, Any]:
        """The identity's values."""
        return self.info["values"]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.values["method"]["name"]

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Commit, versions and machine of each part of its training, that of its shared phase 0 included."""
        return [self.info, *self.info.get("continued", []), *self.info.get("branched_from", [])]

    @property
    def machine(self) -> str:
        """What it was computed on; several where it was interrupted and went on elsewhere."""
        return " and ".join(sorted({part["machine"] for part in self.parts}))

    @property
    def group(self) -> str:
        """Benchmark and scale."""
        return self.path.parent.name


def find_runs(roots: list[Path]) -> list[Run]:
    """Every run below `roots` that has finished or crossed a boundary; those that did neither are named and left out.

    Raises:
        UserError: none has finished, or one is damaged.
    """
    runs: dict[tuple[str, str], Run] = {}
    for path in sorted(run_directories(roots), key=lambda path: not (path / "done").exists()):  # finished ones first
        try:
            info = json.loads((path / "run.json").read_text())
            key = (info["identity"], info["machine"])
        except (json.JSONDecodeError, KeyError) as error:
            raise UserError(f"damaged {path / 'run.json'}: {error!r}; delete {path} to do the run again") from error
        rows, finished = read_rows(path / "metrics.jsonl"), (path / "done").exists()
        if key in runs:
            print(f"left out, the same run as {runs[key].path}: {path}")
        elif finished or any("reset/sfe" in row for row in rows):
            config: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
            runs[key] = Run(path, info, config, rows, finished)
        else:
            leave_out(path)
    found = list(runs.values())
    if not any(run.finished for run in found):
        for run in found:
            leave_out(run.path)
        raise UserError(f"no finished run below {', '.join(map(str, roots))}")
    return found


def leave_out(path: Path) -> None:
    """Name an unfinished run that no result shows."""
    print(f"left out, not finished: {path}")


# Settings of one solver, which the others ignore, and what goes without saying.
SOLVER_SETTINGS = {"newton_schulz": "steps", "polar_express": "tol"}
PLAIN = {"solver": "newton_schulz", "norm": "fire", "interpolation": 1.0}


def label_methods(runs: list[Run], usual: Mapping[str, Mapping[str, Any]]) -> dict[Path, str]:
    """The method's name of each run, with the settings that are not the `usual` ones of that method or in which runs of
    it differ, and what became of the optimiser if that differs between runs of any one method."""
    pairs = {(run.values["method"]["name"], run.values["optimizer_at_boundary"]) for run in runs}
    tell = len(pairs) > len({name for name, _ in pairs})
    labels = {}
    for run in runs:
        method = run.values["method"]
        same = [other.values["method"] for other in runs if other.values["method"]["name"] == method["name"]]
        ignored = {key for solver, key in SOLVER_SETTINGS.items() if method.get("solver", solver) != solver}
        varying = [key for key in method if len({json.dumps(other.get(key)) for other in same}) > 1]
        default = usual.get(method["name"], {})
        told = [
            f"{key}={method[key]}"
            for key in method
            if key not in (*ignored, "name")
            and (default.get(key, method[key]) != method[key] or (key in varying and method[key] != PLAIN.get(key)))
        ]
        told += [f"optimizer_at_boundary={run.values['optimizer_at_boundary']}"] if tell else []
        settings = ", ".join(told)
        labels[run.path] = method["name"] + (f" ({settings})" if settings else "")
    return labels


def circumstances(run: Run) -> dict[str, str]:
    """Everything but method and seed that can change a run's numbers, nested keys dotted."""
    own = {key: value for key, value in run.values.items() if key not in (*OF_METHOD, "seed")}
    return {"machine": run.machine, **flat(own)}


def flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested keys dotted, values as JSON."""
    lines: dict[str, str] = {}
    stack = [("", key, value) for key, value in values.items()]
    while stack:
        prefix, key, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{prefix}{key}.", inner, content) for inner, content in value.items()]
        else:
            lines[prefix + key] = json.dumps(value)
    return lines


LONGEST_LABEL = 60  # characters of what differs that fit into a file name


def poolable(runs: list[Run]) -> list[tuple[str, str, list[Run]]]:
    """Runs of one benchmark and scale, apart where more than method and seed differs: a short label for file names,
    what differs, in words, and the runs."""
    around = {run.path: circumstances(run) for run in runs}
    keys = sorted(set().union(*around.values()))
    varying = [key for key in keys if len({one.get(key) for one in around.values()}) > 1]
    pools: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        words = [f"{key.split('.')[-1]}={around[run.path].get(key)}" for key in varying]
        label = "".join(c if c.isalnum() or c in "-=.," else "_" for c in "".join(f"-{word}" for word in words))
        if len(label) > LONGEST_LABEL:
            label = "-" + hashlib.sha256(label.encode()).hexdigest()[:8]
        pools.setdefault((label, ", ".join(words)), []).append(run)
    return [(*told, members) for told, members in pools.items()]


def tidy(runs: list[Run], domain: Domain, labels: Mapping[Path, str]) -> pd.DataFrame:
    """One line for each number logged; `labels` are those of `label_methods`."""
    lines = []
    for run in runs:
        benchmark, _, scale = run.group.rpartition("-")
        for row in run.rows:
            for metric, value in row.items():
                if metric not in (domain.step, "phase"):
                    lines.append(
                        (domain.name, benchmark, labels[run.path], run.values["seed"], scale, run.machine,
                         row["phase"], domain.step, row[domain.step], metric, value, "reset/sfe" in row)
                    )  # fmt: skip
    columns = ["domain", "benchmark", "method", "seed", "scale", "machine", "phase"]
    return pd.DataFrame(lines, columns=[*columns, "step_name", "step", "metric", "value", "at_boundary"])
