"""A replay buffer that lies on the device as a whole, for training steps that are captured graphs.

A graph repeats what it did at its capture with the same memory and the same numbers. So all that changes from step to
step, row numbers included, comes as tensors, in one parcel a step:

    begin, complete, draw   write into the parcel, on the CPU
    send                    is the step's one copy to the device
    arrive                  stores what came, and gives the newest states to act in     (captured)
    drawn                   the batch drawn                                             (captured)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.rl.replay import CANDIDATES, Batch, ReplayBuffer, Stored
from experiments.rl.transfers import Field, Parcel


class DeviceReplay(ReplayBuffer):
    """The same buffer, drawing the same batches.

    Attributes:
        parcel: of all that travels in a step.
    """

    def __init__(
        self, stored: Stored, capacity: int, environments: int, device: str, most: int,
        others: Mapping[str, Field] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            stored, capacity, environments: as of any replay buffer.
            device: where everything is kept.
            most: transitions that are drawn for one step, at most.
            others: what travels in the parcel besides.
        """
        super().__init__(stored, capacity, environments, device, device, device)
        # Of what was done: in the new slot nothing yet, and in the slot before it.
        done = (2, environments)
        fields: dict[str, Field] = {
            "rows": ((2,), torch.int64),  # those two slots
            "frames": ((1, environments, *stored.frame), stored.dtype),
            "begins": ((1, environments), torch.bool),
            "actions": ((*done, *stored.action), stored.action_dtype),
            "rewards": (done, torch.float32),
            "ends": (done, torch.bool),
            "drawn": ((CANDIDATES * most,), torch.int64),
        }
        self.parcel = Parcel(fields | dict(others or {}), device)
        self._begun = False  # a slot waits in the parcel
        self._completed = False  # and what was done in the slot before the next one
        self._positions = torch.arange(environments, device=device)

    def begin(self, frames: Tensor, begins: Tensor | bool) -> None:
        """A new slot. The one before it is sent first, if no step has sent it."""
        self.settle()
        here, row = self.parcel.open(), self.stop % self.slots
        here["frames"][0], here["begins"][0], here["rows"][0] = frames.cpu(), begins, row
        if not self._completed:  # the zeros of the new slot are written twice
            here["rows"][1] = row
            for name in ("actions", "rewards", "ends"):
                here[name][1] = 0
        self._begun, self._completed = True, False
        self.stop += 1

    def complete(self, actions: Tensor, rewards: Tensor | float, ends: Tensor | bool) -> None:
        """What was done in the newest slot; it travels with the next one."""
        self.settle()
        here = self.parcel.open()
        here["actions"][1], here["rewards"][1], here["ends"][1] = actions, rewards, ends
        here["rows"][1] = (self.stop - 1) % self.slots
        self._completed = True

    def draw(self, count: int, generator: torch.Generator) -> None:
        """Candidates for `count` transitions, the same numbers as `sample` draws."""
        here = torch.from_numpy(self.parcel.open()["drawn"])[: CANDIDATES * count].view(CANDIDATES, count)
        torch.randint(*self.drawable(), here.shape, generator=generator, out=here)

    def send(self) -> None:
        """Send the parcel; `arrive` must be the next that the device does."""
        self.parcel.send()
        self._begun = False

    def arrive(self) -> Tensor:
        """Store the slot that came; the newest states, (environments, stack, *frame). To do it twice changes
        nothing."""
        self._store()
        newest = self.parcel.there["rows"][0] * self.environments + self._positions
        return self.stacks(newest, self._offsets[:-1])

    def drawn(self, count: int) -> Batch:
        """The `count` transitions for which `draw` drew the candidates that came."""
        return self.choose(self.parcel.there["drawn"][: CANDIDATES * count].view(CANDIDATES, count))

    def flush(self) -> None:
        """Send and store what waits, where no captured step does it."""
        self.send()
        self._store()

    def _store(self) -> None:
        there = self.parcel.there
        rows = there["rows"]
        for name in ("frames", "begins"):
            getattr(self, name).index_copy_(0, rows[:1], there[name])
        for name in ("actions", "rewards", "ends"):
            getattr(self, name).index_copy_(0, rows, there[name])

    def settle(self) -> None:
        if self._begun:
            self.flush()

    def load_state_dict(self, state: dict[str, Any], root: Path) -> None:
        """Return to a checkpoint; what waits in the parcel is not part of it."""
        self._begun = self._completed = False
        super().load_state_dict(state, root)
