"""What is measured, which of it is asked for, and how a budget of seconds is shared."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import pandas as pd

from scripts.benchmark.timing import Limit


@dataclass(frozen=True)
class Options:
    """What all benchmarks are told.

    Attributes:
        device: cpu or cuda.
        synthetic: random images in the place of CIFAR-10.
        stack: closed when the benchmark has ended; for what several of its cases use.
    """

    device: str
    synthetic: bool
    stack: ExitStack


@dataclass(frozen=True)
class Case:
    """What is measured in turns.

    Attributes:
        name: of the case.
        loops: what is compared, by name.
        base: the loop that ratios refer to; it is never left out of its case.
        run: measures the loops it is given, within a limit: a row for each.
        setup: seconds expected until the first turn that counts, with compiling and the turn that does not.
        turn: seconds expected for one turn of all loops. Both only share a budget out; no result depends on them.
        extra: under a budget, measured only if all other cases keep what they need.
    """

    name: str
    loops: tuple[str, ...]
    base: str
    run: Callable[[Sequence[str], Limit], pd.DataFrame]
    setup: float
    turn: float
    extra: bool = False

    @property
    def least(self) -> float:
        """Seconds expected for one turn that counts."""
        return self.setup + self.turn

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name} ({'; '.join(self.loops)})"


def chosen(case: Case, pattern: str | None) -> Case | None:
    """A case with those of its loops that a pattern asks for, all if it asks for the case; None if for none."""
    if pattern is None or _matches(case.name, pattern):
        return case
    loops = [loop for loop in case.loops if _matches(loop, pattern) or _matches(f"{case.name}, {loop}", pattern)]
    if not loops:
        return None
    return replace(case, loops=tuple(loop for loop in case.loops if loop in loops or loop == case.base))


def _matches(text: str, pattern: str) -> bool:
    text, pattern = text.lower(), pattern.lower()
    return fnmatch(text, pattern) or pattern in text


class Budget:
    """The seconds that a command may take, shared among its cases.

    Each case gets what it needs for one turn, and an equal part of what is left beyond the needs of all. What a case
    does not use goes to those after it.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self.clock = seconds, clock
        self.ends = math.inf if seconds is None else clock() + seconds

    def limit(self, case: Case, later: Sequence[Case], most: int) -> Limit | None:
        """The limit of a case that `later` ones wait behind; None if there is not enough time for one turn."""
        now = self.clock()
        left = self.ends - now
        waiting = [other.least for other in later if not other.extra]
        spare = left - case.least - sum(waiting)
        if left < case.least or (case.extra and spare < 0):
            return None
        share = case.least + (0 if case.extra else max(0.0, spare) / (len(waiting) + 1))
        return Limit(most, case.name, case.turn, now + share, self.ends, self.clock)
