"""The best checkpoint of phase 0.

It is written when it is found, as `best_at_<iteration>`, and called `best` once it is settled. The two newest are kept,
as of the checkpoints that a run resumes from, so that the best of either is there.
"""

import math
from pathlib import Path
from typing import Any

from experiments.common import checkpoint
from experiments.common.errors import UserError

BEST = "best"  # its name once it is settled
PREFIX = "best_at_"  # of its name while it may change


class Best:
    """The lowest validation loss of phase 0 so far.

    Attributes:
        loss, at: it, and the iteration after which it was measured; 0: none yet.
        settled: whether it is the best of the whole phase and changes no more.
    """

    def __init__(self) -> None:
        self.loss, self.at, self.settled = math.inf, 0, False

    @property
    def name(self) -> str:
        """What its checkpoint is kept as."""
        return f"{PREFIX}{self.at}"

    def state(self) -> list[Any]:
        return [self.loss, self.at, self.settled]

    def load(self, state: list[Any]) -> None:
        self.loss, self.at, self.settled = state

    def improves(self, loss: float, at: int) -> bool:
        """Whether the validation loss after iteration `at` is the lowest so far; if so, a checkpoint must be kept."""
        if self.settled or not loss < self.loss:
            return False
        self.loss, self.at = loss, at
        return True

    def settles(self, at: int, last: bool, wait: float) -> bool:
        """Whether it is final after iteration `at`: the phase is over, or `wait` iterations brought nothing lower."""
        return not self.settled and (last or (self.at > 0 and at - self.at >= wait))

    def tidy(self, folder: Path) -> None:
        """Keep what the state that was last saved in `folder`, or the one before, names, and drop the others; a call
        that was killed is made good by the next."""
        if self.settled and BEST not in checkpoint.kept(folder):
            checkpoint.keep_also(folder, self.name, BEST)
        for _, name in self._on_disk(folder)[:-2]:
            checkpoint.drop(folder, name)

    def reconcile(self, folder: Path) -> None:
        """Drop files that are newer than the state a run resumes from. Raises UserError if its best is missing."""
        for at, name in self._on_disk(folder):
            if at > self.at:
                checkpoint.drop(folder, name)
        if not self.settled:
            checkpoint.drop(folder, BEST)
        self.tidy(folder)
        expected = BEST if self.settled else self.name
        if self.at > 0 and expected not in checkpoint.kept(folder):
            raise UserError(
                f"the checkpoint {expected} is missing, as in an unfinished phase of an older version; delete {folder} "
                "to start over"
            )

    def close(self, folder: Path) -> None:
        """At the end of phase 0, keep only `BEST`, if it is settled, and the newest checkpoint, whose best it is."""
        if self.settled:
            checkpoint.remove(folder, but=1)
            for _, name in self._on_disk(folder):
                checkpoint.drop(folder, name)

    def _on_disk(self, folder: Path) -> list[tuple[int, str]]:
        """Iterations and names of those that are kept, in order."""
        names = [name for name in checkpoint.kept(folder) if name.startswith(PREFIX)]
        return sorted((int(name.removeprefix(PREFIX)), name) for name in names)
