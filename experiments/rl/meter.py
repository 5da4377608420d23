"""Episodes and speed between two metric rows."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from experiments.common.metric_log import Row


class Meter:
    """Counts what happens from one `row` to the next."""

    def __init__(self) -> None:
        self.window = {"return": 0.0, "length": 0.0, "episodes": 0.0}  # of the episodes that ended
        self.start_clock()

    def start_clock(self) -> None:
        """Count speed from here."""
        self._clock, self._steps, self._updates = time.perf_counter(), 0, 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done in the block does not count as training."""
        started = time.perf_counter()
        yield
        self._clock += time.perf_counter() - started

    def advance(self, steps: int, updates: int) -> None:
        self._steps += steps
        self._updates += updates

    def episode(self, total: float, length: int) -> None:
        """An episode has ended with this return and length."""
        for key, value in (("return", total), ("length", length), ("episodes", 1)):
            self.window[key] += value

    def row(self) -> Row:
        """What has been counted; starts to count again, but for the clock."""
        seconds = time.perf_counter() - self._clock
        episodes = self.window["episodes"]
        row: Row = {"train/episodes": int(episodes)}
        if episodes:
            row["train/return"] = self.window["return"] / episodes
            row["train/episode_length"] = self.window["length"] / episodes
        row["speed/env_steps_per_second"] = self._steps / seconds
        row["speed/updates_per_second"] = self._updates / seconds
        self.window = dict.fromkeys(self.window, 0.0)
        return row
