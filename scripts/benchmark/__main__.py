"""`python -m scripts.benchmark core|methods|vision|language|atari|humanoid|all`: times and ratios, as CSV and Markdown.

On 2 idle CPU cores each takes 3 to 9 minutes; nothing else should run meanwhile. With `--budget` there are fewer turns,
at least one; no case and no turn begins when the seconds are over, and a case that had none is left out and named.
"""

import argparse
import gc
import math
import platform
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas as pd
import torch

from experiments.common.errors import Interrupted, StopSignals, UserError
from experiments.common.provenance import git_revision, machine
from scripts import command
from scripts.benchmark.cases import Case, Clock, Row, measure, rates, table

BENCHMARKS = ("core", "methods", "vision", "language", "atari", "humanoid")


class Suite:
    """One benchmark: its cases, the rows that were measured, and notes on what was not, with the reason."""

    def __init__(self, name: str, device: str, synthetic: bool) -> None:
        self.name, self.device, self.failed = name, device, False
        self.cases, self.rows, self.notes = list[Case](), list[Row](), list[str]()
        try:
            self.module: ModuleType = import_module(f"scripts.benchmark.{name}")
            self.cases = self.module.cases(device, synthetic)
        except Exception as error:  # a package that is missing stops no other benchmark
            self.fail(error)

    def fail(self, error: Exception, where: str = "") -> None:
        """Something could not be measured; the rest will be."""
        self.failed = True
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        self.note(f"Failed: {where}{kind}{(str(error).strip() or '-').splitlines()[0]}.")

    def note(self, line: str) -> None:
        """Print a line and keep it for the table."""
        self.notes.append(line)
        print(f"{self.name}: {line}", file=sys.stderr, flush=True)

    def measure(self, repeats: int, later: int, end: float, clock: Clock) -> None:
        """Measure case by case until it is `end`; `later` cases of other benchmarks wait."""
        for number, case in enumerate(self.cases):
            torch.set_float32_matmul_precision("highest")
            try:
                self.rows += measure(case, self.device, repeats, len(self.cases) - number - 1 + later, end, clock)
            except TimeoutError:
                self.note(f"Not measured, no time was left: {case.title}.")
            except (KeyboardInterrupt, Interrupted):
                for other in self.cases[number:]:
                    self.note(f"Not measured, interrupted: {other.title}.")
                raise
            except Exception as error:
                self.fail(error, f"{case.name}: ")
            gc.collect()  # the networks of the case
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def write(self, out: Path, only: str | None) -> None:
        """The files, under a name of their own if only a part was asked for; none if nothing was measured, so that
        those of an earlier command stay."""
        if not self.rows:
            return
        part = "" if only is None else "-" + "".join(letter for letter in only if letter.isalnum())
        stem, rows = f"{self.name}-{self.device}{part}", pd.DataFrame(self.rows)
        threads = f", {torch.get_num_threads()} threads" if self.device == "cpu" else ""
        origin = {"commit": git_revision(), "machine": f"{machine(self.device)}{threads}"}
        origin |= {"torch": torch.__version__, "python": platform.python_version()}
        out.mkdir(parents=True, exist_ok=True)
        rows.assign(**origin).to_csv(out / f"{stem}.csv", index=False)
        head = "{machine}, PyTorch {torch}, Python {python}, commit {commit}".format(**origin)
        notes = [f"Only what fits `{only}`.", *self.notes] if only else self.notes
        text = "\n\n".join([head, table(rows, getattr(self.module, "TABLE", rates(rows.unit[0]))), *notes])
        (out / f"{stem}.md").write_text(f"{text}\n", "utf-8")
        print(f"\n{text}\nwritten: {out / stem}.md, .csv")


def main(arguments: Sequence[str] | None = None, clock: Clock = time.perf_counter) -> int:
    """The command line; `clock` gives the seconds that a budget counts."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m scripts.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmarks", nargs="+", choices=(*BENCHMARKS, "all"), metavar="benchmark", help="one or more")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", metavar="PATTERN", help="cases or loops in whose name this glob is found")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="for the whole command")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each loop at most (default: %(default)s)")
    parser.add_argument("--synthetic", action="store_true", help="vision, methods: random images in place of CIFAR-10")
    parser.add_argument(
        "--out", type=command.folder, default=Path("outputs/benchmark"), help="folder (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: it must be at least 1")
    if options.budget is not None and not (math.isfinite(options.budget) and options.budget > 0):
        parser.error(f"--budget {options.budget:g}: it must be a positive number of seconds")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    command.check_writable(options.out)
    end = math.inf if options.budget is None else clock() + options.budget
    names = BENCHMARKS if "all" in options.benchmarks else options.benchmarks
    suites = [Suite(name, options.device, options.synthetic) for name in dict.fromkeys(names)]
    if options.only is not None:
        known = [case.title for suite in suites for case in suite.cases]
        for suite in suites:
            suite.cases = [part for case in suite.cases if (part := case.chosen(options.only))]
        if not any(suite.cases for suite in suites):
            print(f"error: --only {options.only} fits none of these:", *known, sep="\n  ", file=sys.stderr)
            return 2
    with StopSignals():
        for number, suite in enumerate(suites):
            try:
                later = sum(len(other.cases) for other in suites[number + 1 :])
                suite.measure(options.repeats, later, end, clock)
            except (KeyboardInterrupt, Interrupted):
                print("interrupted; what is complete is written", file=sys.stderr)
                return 130
            finally:
                suite.write(options.out, options.only)
    return int(any(suite.failed or (suite.cases and not suite.rows) for suite in suites))


if __name__ == "__main__":
    sys.exit(command.run(main))
