"""The replay buffer: every observation once, stacked when it is sampled.

A *slot* is one step of all environments: the newest frame of each observation (all of it, where nothing is stacked),
whether an episode begins with it, and what was done and came of it. Slots follow one another, so the state and the next
state of a transition lie in a row: of Atari's four stacked frames five, and 1M transitions take 7.1 GB where stacked
ones take 56 GB.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.common import checkpoint
from experiments.common.errors import UserError
from experiments.common.memory import available
from experiments.rl import segments
from experiments.rl.transfers import copy, to

CANDIDATES = 8  # drawn for each transition of a batch; the first that can be used is
GPU_RESERVE, RAM_RESERVE = 2 << 30, 1 << 30  # for the networks, their gradients, PyTorch itself
SEGMENT_SLOTS = 8192  # at most, so that writing one takes little memory


@dataclass(frozen=True)
class Stored:
    """What a buffer keeps of each step.

    Attributes:
        frame, dtype: shape and type of a frame.
        stack: how many frames a state is.
        action, action_dtype: shape and type of an action.
        compression: how many times smaller it is on disk, at least.
    """

    frame: tuple[int, ...]
    dtype: torch.dtype
    stack: int
    action: tuple[int, ...]
    action_dtype: torch.dtype
    compression: int = 1

    @property
    def bytes(self) -> int:
        """Of a transition: a frame, an action, a float32 reward, two flags."""
        action = math.prod(self.action) * self.action_dtype.itemsize
        return math.prod(self.frame) * self.dtype.itemsize + action + 6


class Batch(NamedTuple):
    """Transitions.

    Attributes:
        frames: (batch, stack + 1, *frame): all but the last are the state, all but the first the next state.
        actions: (batch, *action), of int64 where they are integers.
        rewards: (batch,) float32, as the environment gave them.
        ends: (batch,) float32, 1 where the episode terminated, so that there is no next state.
        weights: (batch,) float32: 1, or 0 in the rare case that no candidate could be used.
    """

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
    weights: Tensor

    def split(self, size: int) -> Iterator["Batch"]:
        """Batches of `size` transitions."""
        return map(Batch._make, zip(*(tensor.split(size) for tensor in self), strict=True))


class ReplayBuffer:
    """A ring of slots; `stop` counts those ever begun.

    `begin` and `complete` alternate, but for the last observation of an episode where the next episode begins at once:
    nothing completes it. Where `begin` says that an episode begins, the slot before it holds no transition but the last
    observation of an episode.
    """

    def __init__(
        self, stored: Stored, capacity: int, environments: int, device: str = "cpu", frames_on: str = "cpu",
        rest_on: str = "cpu",
    ) -> None:  # fmt: skip
        """
        Args:
            stored: what is kept of a step.
            capacity: in transitions of all environments.
            environments: how many there are.
            device: where batches are needed.
            frames_on: where the frames are kept.
            rest_on: where all else is kept.
        """
        self.stored, self.device = stored, device
        self.slots, self.environments = capacity // environments + 1, environments  # the newest is not complete
        # Written to, so that the memory is taken now and not in the middle of a run.
        self.frames = torch.empty(
            (self.slots, environments, *stored.frame), dtype=stored.dtype, device=frames_on
        ).zero_()
        shape = (self.slots, environments)
        self.begins = torch.zeros(shape, dtype=torch.bool, device=rest_on)
        self.actions = torch.zeros((*shape, *stored.action), dtype=stored.action_dtype, device=rest_on)
        self.rewards = torch.zeros(shape, dtype=torch.float32, device=rest_on)
        self.ends = torch.zeros(shape, dtype=torch.bool, device=rest_on)
        self._offsets = torch.arange(1 - stored.stack, 2, device=rest_on) * environments  # of a transition's frames
        self.stop = 0
        self.written = 0  # slots before this one are in segments
        self.segments: list[Path] = []

    def begin(self, frames: Tensor, begins: Tensor | bool) -> None:
        """A new slot.

        Args:
            frames: (environments, *frame), the newest frame of each observation, on the CPU.
            begins: (environments,) bool, whether it is the first of an episode; or one for all.
        """
        row = self.stop % self.slots
        copy(self.frames[row], frames)
        self.begins[row] = begins
        for tensor in (self.actions, self.rewards, self.ends):
            tensor[row] = 0
        self.stop += 1

    def complete(self, actions: Tensor, rewards: Tensor | float, ends: Tensor | bool) -> None:
        """What was done in the newest slot, (environments, *action), the reward of it and where it terminated the
        episode, (environments,) or one for all."""
        row = (self.stop - 1) % self.slots
        self.actions[row], self.rewards[row], self.ends[row] = actions, rewards, ends

    def settle(self) -> None:
        """Store what the buffer has been given and does not hold yet."""

    @property
    def oldest(self) -> int:
        """The first slot still there."""
        return max(0, self.stop - self.slots)

    def drawable(self) -> tuple[int, int]:
        """The positions that candidates are drawn from: the first, and the one after the last.

        A slot whose stack reaches back beyond the oldest frame is left out, and so is the newest.
        """
        low = self.oldest + (self.stored.stack - 1 if self.oldest else 0)
        return low * self.environments, (self.stop - 1) * self.environments

    def sample(self, count: int, generator: torch.Generator) -> Batch:
        """`count` transitions, uniformly and independently, drawn by a CPU generator."""
        self.settle()
        drawn = torch.randint(*self.drawable(), (CANDIDATES, count), generator=generator)
        return self.choose(to(drawn, self.begins.device.type))

    def choose(self, drawn: Tensor) -> Batch:
        """Of each column of `drawn`, (candidates, batch), the first transition that can be used."""
        usable = ~self.begins.view(-1)[(drawn + self.environments) % self.begins.numel()]  # something follows
        chosen = usable.to(torch.uint8).argmax(0, keepdim=True)  # the first of them
        positions = drawn.gather(0, chosen)[0]  # counted slot by slot and in it environment by environment
        flat = positions % self.begins.numel()
        actions = self.actions.flatten(0, 1)[flat]
        return Batch(
            self.stacks(positions, self._offsets),
            to(actions if actions.is_floating_point() else actions.long(), self.device),
            to(self.rewards.view(-1)[flat], self.device),
            to(self.ends.view(-1)[flat].float(), self.device),
            to(usable.any(0).float(), self.device),
        )

    def stacks(self, positions: Tensor, offsets: Tensor) -> Tensor:
        """The frames at `positions` + `offsets`, (batch, offsets, *frame), empty where another episode was played."""
        stack, frame = self.stored.stack, self.stored.frame
        window = (positions[:, None] + offsets) % self.begins.numel()
        frames = self.frames.view(-1, *frame).index_select(0, to(window.view(-1), self.frames.device.type))
        frames = to(frames.view(len(positions), len(offsets), *frame), self.device)
        if stack > 1:
            # A frame belongs to the stack unless an episode begins after it, up to the state's own frame.
            alive = torch.ones_like(window, dtype=torch.uint8)
            begins = self.begins.view(-1)[window[:, 1:stack]]
            alive[:, : stack - 1] = (~begins).flip(1).cumprod(1).flip(1)
            frames.mul_(to(alive, self.device)[(..., *(None,) * len(frame))])
        return frames

    def newest(self) -> Tensor:
        """The newest frames, (environments, *frame)."""
        self.settle()
        return self.frames[(self.stop - 1) % self.slots]

    def write(self, folder: Path) -> None:
        """Write the slots since the last time, without the newest, as segments into `folder`."""
        self.settle()
        first = max(self.written, self.oldest)
        while first < self.stop - 1:
            last = min(first + SEGMENT_SLOTS, self.stop - 1)
            rows = torch.arange(first, last) % self.slots
            arrays = {name: tensor[rows.to(tensor.device)].cpu().numpy() for name, tensor in self._tensors()}
            self.segments = [*self.segments, segments.write(folder, first, arrays)]
            first = last
        self.written = self.stop - 1
        # Those in which every slot has been overwritten are not needed.
        self.segments = [path for path in self.segments if segments.rows(path).stop > self.oldest]

    @contextmanager
    def writing(self, folder: Path) -> Iterator[None]:
        """Write what a checkpoint saved in the block refers to into `folder`, and delete there what none needs then."""
        # Those of the midpoint, that lie elsewhere, too, so that the folder depends on nothing.
        for path in self.segments:
            if not (folder / path.name).exists():
                checkpoint.link(path, folder / path.name)
        before = self.segments = [folder / path.name for path in self.segments]
        self.write(folder)
        yield
        # Two checkpoints are kept: what the one before this refers to stays.
        for path in set(folder.glob("segment-*.npz")) - {*before, *self.segments}:
            path.unlink()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, getattr(self, name)) for name in ("frames", "begins", "actions", "rewards", "ends"))

    def state_dict(self, root: Path) -> dict[str, Any]:
        """What `load_state_dict` needs besides the segments, which it names relative to `root`.

        Everything complete must have been written.
        """
        self.settle()
        if self.written != max(self.stop - 1, 0):
            raise ValueError(f"{self.stop - 1 - self.written} slots are in no segment")
        row = (self.stop - 1) % self.slots
        return {
            "stop": self.stop,
            "frames": self.frames[row].cpu().clone(),
            "begins": self.begins[row].cpu().clone(),
            "segments": [str(path.relative_to(root)) for path in self.segments],
        }

    def load_state_dict(self, state: dict[str, Any], root: Path) -> None:
        """Go back to a checkpoint; the segments are only read."""
        self.segments = [root / name for name in state["segments"]]
        self.stop = state["stop"]
        for path in self.segments:
            rows = torch.tensor(segments.rows(path))
            there = rows >= self.oldest
            for name, array in segments.read(path).items():
                tensor = getattr(self, name)
                tensor[(rows[there] % self.slots).to(tensor.device)] = torch.from_numpy(array)[there].to(tensor.device)
        self.stop -= 1
        self.begin(state["frames"], state["begins"])
        self.written = self.stop - 1


def place(stored: Stored, capacity: int, device: str) -> str:
    """Where the frames of a buffer of `capacity` transitions go: `device` if they fit beside everything else, or RAM.

    Raises:
        UserError: they fit nowhere.
    """
    needed = capacity * stored.bytes
    if device == "cuda" and needed + GPU_RESERVE < available("cuda"):
        return "cuda"
    if needed + RAM_RESERVE > (free := available("cpu")):
        raise UserError(
            f"the replay buffer of {capacity:,} transitions (budget.buffer) takes {needed / 1e9:.2f} GB, but this "
            f"machine has {free / 1e9:.2f} GB of memory left; lower budget.buffer to at most "
            f"{max(0, free - RAM_RESERVE) // stored.bytes:,}"
        )
    return "cpu"
