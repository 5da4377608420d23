"""What all benchmarks share: cases, whose loops are timed alternately, so that a slow minute slows all of them."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

Row = dict[str, Any]
Clock = Callable[[], float]  # seconds
# Title of a table's column: which column of the rows it shows, in which format, multiplied by what.
Columns = Mapping[str, tuple[str, str, float]]


@dataclass(frozen=True)
class Loop:
    """What is timed.

    Attributes:
        run: one turn.
        work: how much a turn does, in the unit that the loops of a case are compared by: steps, images, tokens.
        prepare: called before each turn and not timed.
        columns: called with the loop's row after the last turn; further columns of it.
    """

    run: Callable[[], object]
    work: float = 1.0
    prepare: Callable[[], object] = lambda: None
    columns: Callable[[Row], Row] = lambda row: {}


@dataclass(frozen=True)
class Case:
    """Loops that do the same work.

    Attributes:
        name: of the case.
        loops: what makes each loop, by name. What a loop opens goes onto the stack. Ratios refer to the first.
        unit: of the loops' work.
    """

    name: str
    loops: Mapping[str, Callable[[ExitStack], Loop]]
    unit: str = "calls"

    @property
    def title(self) -> str:
        """The case with its loops."""
        return f"{self.name} ({'; '.join(self.loops)})"

    def chosen(self, pattern: str) -> "Case | None":
        """The case with the loops that a pattern names, and the first; whole if it names the case; None if nothing."""
        glob, first = f"*{pattern.lower()}*", next(iter(self.loops))
        asked = [name for name in self.loops if fnmatch(f"{self.name}, {name}".lower(), glob)]
        loops = {name: make for name, make in self.loops.items() if name in asked or name == first}
        return replace(self, loops=loops) if asked else None


def measure(
    case: Case, device: str, repeats: int, waiting: int = 0, end: float = math.inf, clock: Clock = time.perf_counter
) -> list[Row]:
    """A row for each loop of a case: seconds of a turn, work a second, and `over_first`, how many times as long as the
    first loop it takes for the same work. All are medians over the turns; the ratio is formed turn by turn.

    After a turn that does not count there are at most `repeats`: the first unless it is `end` by the `clock`, another
    only if it is expected to be over within this case's share of the time, `waiting` cases after it having as much.

    Raises:
        TimeoutError: it is `end` before there was a turn that counts.
    """
    now, longest = clock(), 0.0
    share_end = now + (end - now) / (waiting + 1)
    if now >= end:
        raise TimeoutError
    with ExitStack() as stack:
        loops = {name: make(stack) for name, make in case.loops.items()}
        times: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(repeats + 1):
            started = clock()
            if turn == 1 and started >= end:
                raise TimeoutError
            if turn > 1 and started + longest > share_end:
                break
            for name, loop in loops.items():
                loop.prepare()
                times[name].append(timed(loop.run, device))
                shown = f"turn {turn}" if turn else "warm-up"
                print(f"{case.name}: {shown}, {name}: {times[name][-1]:.3f} s", flush=True)
            longest = max(longest, clock() - started) if turn else 0.0
        seconds = pd.DataFrame(times)[1:]  # turns x loops
        per_second = pd.Series({name: loop.work for name, loop in loops.items()}) / seconds
        over_first = per_second.rdiv(per_second.iloc[:, 0], axis=0)
        rows = []
        for name, loop in loops.items():
            row: Row = {"case": case.name, "loop": name, "unit": case.unit, "repeats": len(seconds)}
            for column, values in (("seconds", seconds[name]), ("per_second", per_second[name])):
                row |= {column: values.median(), f"{column}_min": values.min(), f"{column}_max": values.max()}
            row["over_first"] = over_first[name].median()
            rows.append(row | loop.columns(row))
    return rows


def timed(function: Callable[[], object], device: str) -> float:
    """Wall time of one call in seconds, the device's work included."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - started


def repeated(step: Callable[[], object], times: int, work: float) -> Loop:
    """A loop of `times` calls a turn, each of which does `work`."""

    def turn() -> None:
        for _ in range(times):
            step()

    return Loop(turn, times * work)


class PlainBuffer:
    """A replay buffer as one writes it first: a NumPy array for each part of a transition, like those of `parts`."""

    def __init__(self, capacity: int, *parts: Any) -> None:
        self.arrays = [np.zeros((capacity, *part.shape), part.dtype) for part in parts]
        self.capacity, self.added, self.rng = capacity, 0, np.random.default_rng(0)

    def add(self, *parts: Any) -> None:
        """Store one transition, in place of the oldest where the buffer is full."""
        for array, part in zip(self.arrays, parts, strict=True):
            array[self.added % self.capacity] = part
        self.added += 1

    def sample(self, count: int, device: str) -> list[Tensor]:
        """Each part of `count` transitions."""
        rows = self.rng.integers(min(self.added, self.capacity), size=count)
        return [torch.as_tensor(array[rows], device=device) for array in self.arrays]


def table(rows: pd.DataFrame, columns: Columns) -> str:
    """A row for each loop. The first column's range and number of turns follow it; what is not known is left out."""
    shown = {"": rows.case.where(~rows.case.duplicated(), ""), "loop": rows.loop}
    known = {title: column for title, column in columns.items() if column[0] in rows}
    for number, (title, (name, form, factor)) in enumerate(known.items()):
        shown[title] = cells(rows[name] * factor, form)
        if number == 0:
            low, high = (cells(rows[f"{name}_{end}"] * factor, form) for end in ("min", "max"))
            shown["range"] = (low + " to " + high).where((rows.repeats > 1) & (low != ""), "")
            shown["turns"] = cells(rows.repeats, "{:.0f}")
    return pd.DataFrame(shown).to_markdown(index=False, disable_numparse=True)


def rates(unit: str) -> Columns:
    """The usual columns: work a second, and how many times as fast the first loop is."""
    return {f"{unit} / s": ("per_second", "{:,.1f}", 1), "ours / this": ("over_first", "{:.2f}", 1)}


def cells(values: pd.Series, form: str) -> pd.Series:
    """Numbers as text; empty where there is none."""
    return values.map(form.format).where(values.notna(), "")
