"""Honest timing: what is compared is run in turns, so that a slow minute of the machine slows all of it."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch


class OutOfTimeError(Exception):
    """Not one turn that counts fits into what is left of the budget."""


@dataclass(frozen=True)
class Limit:
    """How many turns a case may take.

    Attributes:
        most: turns.
        case: its name, for the progress lines.
        turn: seconds expected for one.
        share_ends: when, by the clock, the case's share of the budget is over. budget_ends: when all of it is.
        clock: gives seconds.
    """

    most: int
    case: str = ""
    turn: float = 0.0
    share_ends: float = math.inf
    budget_ends: float = math.inf
    clock: Callable[[], float] = time.perf_counter

    def allows(self, done: int, longest: float) -> bool:
        """Whether another turn may begin, after `done` of them of which the longest took `longest` seconds.

        The first may use what is left of the budget, the others the case's own share.
        """
        if done == 0:
            return self.clock() + self.turn <= self.budget_ends
        return done < self.most and self.clock() + longest <= self.share_ends


def seconds(function: Callable[[], object], device: str) -> float:
    """Wall time of one call, the device's work included."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def alternate(
    contestants: Mapping[str, Callable[[], object]],
    limit: Limit,
    device: str,
    prepare: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each contestant, in as many turns as the limit allows, after one round that does not count.

    `prepare` is called before each of them and not timed.

    Raises:
        OutOfTimeError: no turn fits.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    done, longest = -1, 0.0
    while done < 0 or limit.allows(done, longest):
        started = limit.clock()
        done += 1
        for name, function in contestants.items():
            prepare()
            elapsed = seconds(function, device)
            turn = f"turn {done} of {limit.most}" if done else "warm-up"
            print(f"{limit.case}: {turn}, {name}: {elapsed:.3f} s", flush=True)
            if done > 0:
                times[name].append(elapsed)
        longest = max(longest, limit.clock() - started) if done > 0 else 0.0
    if done == 0:
        raise OutOfTimeError
    return times


def spread(values: Sequence[float], name: str = "seconds") -> dict[str, Any]:
    """Columns of a row: the median of some values, their range and how many they are."""
    return {
        name: statistics.median(values),
        f"{name}_min": min(values),
        f"{name}_max": max(values),
        "repeats": len(values),
    }


def known(values: pd.Series, form: str) -> pd.Series:
    """Numbers for people; empty where one is not known."""
    return values.map(form.format).where(values.notna(), "")


def between(results: pd.DataFrame, name: str, form: str) -> pd.DataFrame:
    """Two columns for people: the range of one, empty where it was measured once, and how many turns there were."""
    low, high = (known(results[f"{name}_{end}"], form) for end in ("min", "max"))
    several = (results.repeats > 1) & (low != "")
    return pd.DataFrame({"range": (low + " to " + high).where(several, ""), "turns": known(results.repeats, "{:.0f}")})


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the quotients of what ran in the same turn."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def rates(case: str, times: Mapping[str, list[float]], steps: Mapping[str, int]) -> pd.DataFrame:
    """Steps a second of each loop in a case, one of which is `ours`, from the seconds that its `steps` took."""
    pace = {name: [steps[name] / value for value in values] for name, values in times.items()}
    return pd.DataFrame(
        {"case": case, "loop": name, **spread(values, "steps_per_second"), "over_ours": ratio(pace["ours"], values)}
        for name, values in pace.items()
    )


def rates_table(results: pd.DataFrame, unit: str) -> str:
    """Markdown: a row for each loop."""
    shown = pd.DataFrame(
        {
            "": results.case.where(~results.case.duplicated(), ""),
            "loop": results.loop,
            unit: known(results.steps_per_second, "{:,.1f}"),
            **between(results, "steps_per_second", "{:,.1f}"),
            "ours / this": known(results.over_ours, "{:.2f}"),
        }
    )
    return shown.to_markdown(index=False, disable_numparse=True)


def matrix_rate(device: str) -> float:
    """Float32 operations a second in the machine's best product of two large matrices, TF32 off.

    The best of several sizes and batches, since none suits every machine; each the median of five.
    """
    best = 0.0
    for batch, size in ((4, 256), (16, 256), (4, 512), (1, 2048), (8, 1024)):
        A = torch.randn(batch, size, size, device=device)
        out = torch.empty_like(A)
        count = max(1, int(2e10 / (2 * batch * size**3)))

        def products(A: torch.Tensor = A, out: torch.Tensor = out, count: int = count) -> None:
            for _ in range(count):
                torch.bmm(A, A, out=out)

        products()
        elapsed = statistics.median(seconds(products, device) for _ in range(5))
        best = max(best, 2 * batch * size**3 * count / elapsed)
    return best
