"""Episodes, losses and speed between two metric rows."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.common.errors import UserError
from experiments.common.metric_log import Row

METRICS = {
    "loss": "train/loss", "actor_loss": "train/actor_loss", "q": "train/q", "entropy": "train/entropy",
    "grad_norm": "plasticity/grad_norm",
}  # fmt: skip
"""The metrics of what learners sum."""


class Meter:
    """Counts what happens from one `row` to the next."""

    def __init__(self, totals: Tensor, names: Sequence[str], losses: Sequence[str]) -> None:
        """
        Args:
            totals: sums over the updates, on the learner's device so that no update waits for it; set to zero by `row`.
            names: of its entries; the last is `updates`, their number.
            losses: those that must be finite.
        """
        self._totals, self._names, self._losses = totals, names, losses
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
        """Steps have been taken, with updates."""
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
            UserError: a loss is not finite; such a state is never to be saved.
        """
        totals = dict(zip(self._names, self._totals.tolist(), strict=True))
        if not all(math.isfinite(totals[loss]) for loss in self._losses):
            raise UserError(f"the loss is not finite {where}; the last good checkpoint, if any, is in {folder}")
        count = max(totals["updates"], 1)
        return {key: value if key == "updates" else value / count for key, value in totals.items()}

    def row(self, means: dict[str, float]) -> Row:
        """What has been counted, with `means`; starts to count again, but for the clock."""
        seconds = time.perf_counter() - self._clock
        row: Row = {"train/episodes": int(self.window["episodes"])}
        if self.window["episodes"]:
            row["train/return"] = self.window["return"] / self.window["episodes"]
            row["train/episode_length"] = self.window["length"] / self.window["episodes"]
        if means["updates"]:
            row |= {METRICS[name]: means[name] for name in self._names if name != "updates"}
        row["speed/env_steps_per_second"] = self._steps / seconds
        row["speed/updates_per_second"] = self._updates / seconds
        self.window = dict.fromkeys(self.window, 0.0)
        self._totals.zero_()
        return row

    def state_dict(self) -> dict[str, Any]:
        """All a checkpoint needs besides the totals, which are the learner's."""
        return self.window

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.window = dict(state)
