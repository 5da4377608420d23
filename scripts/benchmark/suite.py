"""One benchmark: its cases measured one after the other, and what came out written."""

import gc
import platform
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pandas as pd
import torch

from experiments.common.errors import Interrupted
from experiments.common.workspace import git_revision, machine
from scripts.benchmark.plan import Budget, Case
from scripts.benchmark.timing import OutOfTimeError


class Suite:
    """A benchmark.

    Attributes:
        module: has its `cases` and the `table` of its rows.
        cases: to be measured. left_out, failed: of what no row came, and why.
        interrupted: Ctrl-C or SIGTERM has come.
    """

    module: ModuleType

    def __init__(self, name: str, device: str, repeats: int, budget: Budget, stack: ExitStack) -> None:
        self.name, self.device, self.repeats, self.budget, self.stack = name, device, repeats, budget, stack
        self.cases: list[Case] = []
        self.rows: list[pd.DataFrame] = []
        self.left_out: list[str] = []
        self.failed: list[str] = []
        self.interrupted = False

    def fail(self, why: str) -> None:
        """Note and say in one line why something was not measured."""
        self.failed.append(why)
        print(f"{self.name}: failed: {why}", file=sys.stderr, flush=True)

    def measure(self, later: Sequence[Case]) -> None:
        """Measure all cases for which there is time; `later` are those of the benchmarks after this one."""
        torch.set_float32_matmul_precision("highest")
        without_turns: set[str] = set()  # an extra part of a case says nothing without the case's other loops
        with self.stack:
            for number, case in enumerate(self.cases):
                limit = self.budget.limit(case, [*self.cases[number + 1 :], *later], self.repeats)
                try:
                    if limit is None or (case.extra and case.name in without_turns):
                        raise OutOfTimeError
                    self.rows.append(case.run(case.loops, limit))
                except OutOfTimeError:
                    self.left_out.append(case.title)
                    without_turns.add(case.name)
                    print(f"{self.name}: left out, no time is left for it: {case.title}", flush=True)
                except (KeyboardInterrupt, Interrupted):
                    self.interrupted = True
                    self.left_out += [other.title for other in self.cases[number:]]
                    return
                except Exception as error:
                    self.fail(f"{case.name}: {reason(error)}")
        self.cases.clear()  # with the networks they hold
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def write(self, out: Path, only: str | None) -> None:
        """A CSV of all rows and a Markdown table, which also names what is not there; nothing where there is no row."""
        if not self.rows:
            if self.left_out or self.failed:
                print(f"{self.name}: nothing was measured, nothing is written")
            return
        threads = f", {torch.get_num_threads()} threads" if self.device == "cpu" else ""
        where = f"{machine(self.device)}{threads}"
        commit, version = git_revision(), platform.python_version()
        out.mkdir(parents=True, exist_ok=True)
        part = "" if only is None else "-" + "".join(c for c in only if c.isalnum())
        stem = out / f"{self.name}-{self.device}{part}"
        results = in_order(self.rows)
        told = results.assign(commit=commit, machine=where, torch=torch.__version__, python=version)
        told.to_csv(stem.with_suffix(".csv"), index=False)
        notes = [f"{where}, PyTorch {torch.__version__}, Python {version}, commit {commit}", ""]
        notes += [] if only is None else [f"Only what fits `{only}`.", ""]
        notes += [self.module.table(results), ""]
        why = "interrupted" if self.interrupted else f"no time left of {self.budget.seconds or 0:g} s"
        notes += [f"Not measured, {why}: {title}." for title in self.left_out]
        notes += [f"Failed: {line}." for line in self.failed]
        stem.with_suffix(".md").write_text("\n".join(notes).rstrip() + "\n")
        print("\n" + "\n".join(notes).rstrip() + f"\nwritten: {stem}.md, {stem}.csv")


def in_order(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All rows, those of one case together."""
    rows = pd.DataFrame([row for part in parts for row in part.to_dict("records")])
    rows = rows.astype({column: float for column in rows.columns if rows[column].isna().all()})
    places = {case: number for number, case in enumerate(dict.fromkeys(rows.case))}
    return rows.sort_values("case", key=lambda cases: cases.map(places), kind="stable", ignore_index=True)


def reason(error: Exception) -> str:
    """An error in one line."""
    first = str(error).strip().split("\n")[0]
    return first if type(error).__name__ == "UserError" else f"{type(error).__name__}: {first}"
