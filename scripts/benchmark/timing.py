"""Honest timing: what is compared is run in turns, so that a slow minute of the machine slows all of it."""

import statistics
import time
from collections.abc import Callable, Mapping

import pandas as pd
import torch


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
    repeats: int,
    device: str,
    prepare: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each contestant, `repeats` times in turns after one round that does not count.

    `prepare` is called before each of them and not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, function in contestants.items():
            prepare()
            elapsed = seconds(function, device)
            print(f"turn {turn} of {repeats}: {name}, {elapsed:.3f} s", flush=True)
            if turn > 0:
                times[name].append(elapsed)
    return times


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the quotients of what ran in the same turn."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def rates(case: str, times: Mapping[str, list[float]], steps: int, repeats: int) -> pd.DataFrame:
    """Steps a second of each contestant in a case, one of which is `ours`, from the seconds that `steps` took."""
    return pd.DataFrame(
        {
            "case": case,
            "loop": name,
            "steps_per_second": steps / statistics.median(values),
            "over_ours": ratio(values, times["ours"]),
            "repeats": repeats,
        }
        for name, values in times.items()
    )


def rates_table(results: pd.DataFrame, unit: str) -> str:
    """Markdown: a row for each contestant."""
    shown = pd.DataFrame(
        {
            "": results.case.where(~results.case.duplicated(), ""),
            "loop": results.loop,
            unit: results.steps_per_second.map("{:,.1f}".format),
            "ours / this": results.over_ours.map("{:.2f}".format),
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
