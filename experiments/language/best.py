"""The checkpoints of phase 0 that are kept to branch from: the best, and one at every tenth thousand of the paper's
iterations, in proportion at other scales.

Writing the best takes seconds (1.5 GB at GPT-0.1B), so after an improved validation the state is only copied in the
memory of the training device: a millisecond, and 1.5 GB beside some 30 GB of activations. The copy is written with the
next checkpoint of the run. A killed run trains the lost part again; on a CPU it finds the same best.

On disk it is kept as `best_at_<iteration>`. A checkpoint is written after the best that its state names, and the two
newest of both are kept, so that the best of any checkpoint that a run resumes from is there.
"""

import math
from pathlib import Path
from typing import Any

from experiments.common import checkpoint
from experiments.common.errors import UserError
from experiments.common.workspace import Workspace

BEST = "best"  # its name once it is settled
PERIODIC = [f"{thousands}k" for thousands in range(10, 100, 10)]
PAPER_ITERATIONS = 97_282  # of phase 0


def kept_at(checkpoint: str, iterations: int) -> int:
    """The iteration of phase 0, of so many, after which a periodic checkpoint is kept."""
    return max(1, round(int(checkpoint[:-1]) * 1000 / PAPER_ITERATIONS * iterations))


class Best:
    """The lowest validation loss of phase 0 so far, and the state that had it.

    Attributes:
        loss: the lowest so far.
        at: the iteration after which it was measured; 0: none yet.
        settled: whether it is the best of the whole phase and changes no more.
        held: the state that had it, from `Workspace.snapshot`, until `write` has written it.
    """

    PREFIX = "best_at_"  # of its name on disk while it may change

    def __init__(self) -> None:
        self.loss, self.at, self.settled = math.inf, 0, False
        self.held: dict[str, Any] | None = None

    @property
    def _name(self) -> str:
        return f"{self.PREFIX}{self.at}"

    def state(self) -> list[Any]:
        """What a checkpoint stores."""
        return [self.loss, self.at, self.settled]

    def load(self, state: list[Any]) -> None:
        """Restore what a checkpoint stores."""
        self.loss, self.at, self.settled = state
        self.held = None

    def improves(self, loss: float, at: int) -> bool:
        """Whether the validation loss after iteration `at` is the lowest so far; if so, set `held` next."""
        if self.settled or not loss < self.loss:
            return False
        self.loss, self.at = loss, at
        self.held = None  # released first, so that memory never holds two
        return True

    def settles(self, at: int, last: bool, wait: float) -> bool:
        """Whether it is final after iteration `at`: the phase is over, or `wait` iterations brought nothing lower."""
        return not self.settled and (last or (self.at > 0 and at - self.at >= wait))

    def write(self, workspace: Workspace, state: dict[str, Any], keep: list[str], at: int) -> None:
        """Write the best that `state` names, then a checkpoint of `state` after iteration `at`, kept as `keep` too. In
        phase 1 there is no best to write."""
        folder = workspace.path
        if self.held is not None and self.at == at and not self.settled:  # both are the same state
            keep = [*keep, self._name]
        elif self.held is not None:
            checkpoint.save_as(folder, self.held, self._name)
        if self.settled and BEST not in checkpoint.kept(folder):
            checkpoint.keep_also(folder, self._name, BEST)
        workspace.save(state, keep)
        self.held = None
        for _, name in self._on_disk(folder)[:-2]:
            checkpoint.drop(folder, name)

    def reconcile(self, folder: Path) -> None:
        """Drop files that are newer than the state a run resumes from. Raises UserError if its best is missing."""
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
        """At the end of phase 0, keep only `BEST`, if it is settled, and the newest checkpoint, whose best it is."""
        if self.settled:
            checkpoint.remove(folder, but=1)
            for _, name in self._on_disk(folder):
                checkpoint.drop(folder, name)

    def _on_disk(self, folder: Path) -> list[tuple[int, str]]:
        """Iterations and names of those that are kept, in order."""
        names = [name for name in checkpoint.kept(folder) if name.startswith(self.PREFIX)]
        return sorted((int(name.removeprefix(self.PREFIX)), name) for name in names)
