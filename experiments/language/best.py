"""The best checkpoint of phase 0.

Writing one takes seconds (1.5 GB at GPT-0.1B), so an improved validation only copies the state in memory; the copy is
written with the next checkpoint of the run. What a kill loses is trained again; on a CPU it finds the same best. The
copy is on the training device: there it costs a millisecond, and 1.5 GB beside some 30 GB of activations, no transfer.

On disk it is kept as `best_at_<iteration>`. A checkpoint is written after the best that its state names, and the two
newest of them stay, as the two newest checkpoints do: whichever checkpoint a run resumes from, its best is there.
"""

import math
from pathlib import Path
from typing import Any

from experiments.common import checkpoint
from experiments.common.errors import UserError
from experiments.common.workspace import Workspace

BEST = "best"  # its name once it is settled


class Best:
    """The lowest validation loss of phase 0 so far, and the state that had it.

    Attributes:
        loss: the lowest so far.
        at: the iteration it was measured after; 0: none yet.
        settled: whether it counts as the best of the phase; then it changes no more.
    """

    PREFIX = "best_at_"  # of its name until then

    def __init__(self) -> None:
        self.loss, self.at, self.settled = math.inf, 0, False
        self._held: dict[str, Any] | None = None  # what is to be written, if it is not yet

    @property
    def _name(self) -> str:
        return f"{self.PREFIX}{self.at}"

    def state(self) -> list[Any]:
        """What a checkpoint says of it."""
        return [self.loss, self.at, self.settled]

    def load(self, state: list[Any]) -> None:
        """Go on from a checkpoint."""
        self.loss, self.at, self.settled = state
        self._held = None

    def improves(self, loss: float, at: int) -> bool:
        """Take the validation loss after iteration `at`, if it is the lowest so far; the state is then to be held."""
        if self.settled or not loss < self.loss:
            return False
        self.loss, self.at = loss, at
        self._held = None  # first of all, so that memory never holds two
        return True

    def hold(self, content: dict[str, Any]) -> None:
        """Keep a copy of the state for the next `write`, from `Workspace.snapshot`."""
        self._held = content

    def settles(self, at: int, last: bool, wait: float) -> bool:
        """Whether it is settled after iteration `at`: the phase is over, or `wait` iterations brought nothing lower."""
        return not self.settled and (last or (self.at > 0 and at - self.at >= wait))

    def write(self, workspace: Workspace, state: dict[str, Any], keep: list[str], at: int) -> None:
        """Write a checkpoint of the `state` after iteration `at`, and before it the best that the state names.

        Args:
            keep: names to keep the checkpoint under.
        """
        folder = workspace.path
        if self._held is not None and self.at == at and not self.settled:  # they are one
            keep = [*keep, self._name]
        elif self._held is not None:
            checkpoint.save_as(folder, self._held, self._name)
        if self.settled and BEST not in checkpoint.kept(folder):
            checkpoint.keep_also(folder, self._name, BEST)
        workspace.save(state, keep)
        self._held = None
        for _, name in self._on_disk(folder)[:-2]:
            checkpoint.drop(folder, name)

    def reconcile(self, folder: Path) -> None:
        """Make what is on disk agree with the state to go on from: what a lost part of the training has left goes.

        Raises:
            UserError: the best checkpoint is missing.
        """
        for at, name in self._on_disk(folder):
            if at > self.at:
                checkpoint.drop(folder, name)
        if not self.settled:
            checkpoint.drop(folder, BEST)
        expected = BEST if self.settled else self._name
        if self.at > 0 and expected not in checkpoint.kept(folder):
            raise UserError(
                f"the checkpoint {expected} is missing, as in an unfinished phase of an older version; delete {folder} "
                "to start over"
            )

    def close(self, folder: Path) -> None:
        """Phase 0 is over: of a settled one only `BEST` stays, and the newest checkpoint, whose best it is."""
        if self.settled:
            checkpoint.remove(folder, but=1)
            for _, name in self._on_disk(folder):
                checkpoint.drop(folder, name)

    def _on_disk(self, folder: Path) -> list[tuple[int, str]]:
        """Iterations and names of those that are kept, in order."""
        names = [name for name in checkpoint.kept(folder) if name.startswith(self.PREFIX)]
        return sorted((int(name.removeprefix(self.PREFIX)), name) for name in names)
