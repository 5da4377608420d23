"""`python -m scripts.benchmark core|vision|language|atari|humanoid|all`: times and ratios, as CSV and Markdown.

On 2 idle CPU cores each takes 3 to 9 minutes; nothing else should run meanwhile. With `--budget` a command takes fewer
turns, at least one; a case that does not fit at all is left out and named.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import torch

from experiments.common.errors import Interrupted, StopSignals
from scripts.benchmark.plan import Budget, Options, chosen
from scripts.benchmark.suite import Suite, reason

BENCHMARKS = ("core", "vision", "language", "atari", "humanoid")


def main(arguments: Sequence[str] | None = None, clock: Callable[[], float] = time.perf_counter) -> int:
    """The command line; `clock` gives the seconds that a budget counts."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmarks", nargs="+", choices=(*BENCHMARKS, "all"), metavar="benchmark", help="one or more")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", metavar="PATTERN", help="cases or loops whose name has this, or fits it as a glob")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="for the whole command")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each loop at most (default: %(default)s)")
    parser.add_argument("--synthetic", action="store_true", help="vision: random images where CIFAR-10 is not at hand")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark"), help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: it must be at least 1")
    if options.budget is not None and not (math.isfinite(options.budget) and options.budget > 0):
        parser.error(f"--budget {options.budget:g}: it must be a positive number of seconds")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    budget = Budget(options.budget, clock)
    names = dict.fromkeys(BENCHMARKS if "all" in options.benchmarks else options.benchmarks)
    with ExitStack() as stack, StopSignals():
        try:
            suites = [planned(name, options, budget, stack) for name in names]
        except (KeyboardInterrupt, Interrupted):
            print("interrupted; nothing was measured", file=sys.stderr)
            return 130
        if names_to_choose_from := choose(suites, options.only):
            print(f"error: --only {options.only} fits none of these:\n{names_to_choose_from}", file=sys.stderr)
            return 2
        return carry_out(suites, options.out, options.only)


def planned(name: str, options: argparse.Namespace, budget: Budget, stack: ExitStack) -> Suite:
    """A benchmark with its cases; without any, and with the reason, where a package of it is missing."""
    suite = Suite(name, options.device, options.repeats, budget, stack.enter_context(ExitStack()))
    try:
        suite.module = import_module(f"scripts.benchmark.{name}")
        suite.cases = suite.module.cases(Options(options.device, options.synthetic, suite.stack))
    except Exception as error:
        suite.fail(reason(error))
    return suite


def carry_out(suites: Sequence[Suite], out: Path, only: str | None) -> int:
    """Measure and write one after the other, files of a part under names of their own; the exit status."""
    for number, suite in enumerate(suites):
        later = [case for other in suites[number + 1 :] for case in other.cases]
        suite.measure(later)
        suite.write(out, only)
        if suite.interrupted:
            print("interrupted; what was complete has been written", file=sys.stderr)
            return 130
    return int(any(suite.failed or (suite.left_out and not suite.rows) for suite in suites))


def choose(suites: Sequence[Suite], pattern: str | None) -> str:
    """Leave in each suite what a pattern asks for; all names, a case a line, if that is nothing."""
    known: dict[str, list[str]] = {}
    for suite in suites:
        for case in suite.cases:
            known.setdefault(case.name, []).extend(case.loops)
        had = bool(suite.cases)
        suite.cases = [found for case in suite.cases if (found := chosen(case, pattern))]
        if had and not suite.cases:
            print(f"{suite.name}: nothing in it fits --only {pattern}")
    if any(suite.cases for suite in suites):
        return ""
    return "\n".join(f"  {name}: {'; '.join(loops)}" for name, loops in known.items())


if __name__ == "__main__":
    sys.exit(main())
