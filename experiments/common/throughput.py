"""How fast something runs here, measured for a moment."""

import time
from collections.abc import Callable


def steps_per_second(step: Callable[[], object], seconds: float, at_most: int = 200) -> float:
    """How often `step`, which must wait for the device, can be done in a second: measured for about `seconds` after a
    first time, which sets things up and does not count."""
    step()
    steps, started = 0, time.perf_counter()
    while steps < 1 or (time.perf_counter() - started < seconds and steps < at_most):
        step()
        steps += 1
    return steps / (time.perf_counter() - started)
