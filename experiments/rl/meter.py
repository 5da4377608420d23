"""Episodes, losses and speed between two metric rows."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from experiments.common.errors import UserError
from experiments.common.metric_log import Row


class Meter:
    """Counts what happens from one `row` to the next."""

    def __init__(self, totals: Tensor, names: Sequence[str]) -> None:
        """
        Args:
            totals: sums over the updates, on the learner's device so that no update waits for it; set to zero by `row`.
            names: the metrics whose sums they are; the last is `updates`, their number.
        """
        self._totals, self._names = totals, names
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

    def means(self, where: str, folder: Path) -> dict[str, float]:
        """Means over the updates; waits for the device.

        Args:
            where: in training this is, for the message.
            folder: where the last good checkpoint is.

        Raises:
            UserError: one is not finite; such a state is never to be saved.
        """
        *sums, updates = self._totals.tolist()
        if not all(map(math.isfinite, sums)):
            raise UserError(
                f"the loss or gradient is not finite {where}; the last good checkpoint, if any, is in {folder}"
            )
        return dict(zip(self._names, [*(value / max(updates, 1) for value in sums), updates], strict=True))

    def row(self, means: dict[str, float]) -> Row:
        """What has been counted, with `means`; starts to count again, but for the clock."""
        seconds = time.perf_counter() - self._clock
        episodes = self.window["episodes"]
        row: Row = {"train/episodes": int(episodes)}
        if episodes:
            row["train/return"] = self.window["return"] / episodes
            row["train/episode_length"] = self.window["length"] / episodes
        if means["updates"]:
            row |= {name: means[name] for name in self._names[:-1]}
        row["speed/env_steps_per_second"] = self._steps / seconds
        row["speed/updates_per_second"] = self._updates / seconds
        self.window = dict.fromkeys(self.window, 0.0)
        self._totals.zero_()
        return row
