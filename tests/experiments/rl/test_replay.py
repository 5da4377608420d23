"""The replay buffer against a list of stacked transitions."""

from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.atari.envs import STORED
from experiments.common.errors import UserError
from experiments.rl import replay
from experiments.rl.device_replay import DeviceReplay
from experiments.rl.replay import ReplayBuffer

ENVIRONMENTS, CAPACITY = 3, 60
Transition = tuple[tuple[int, ...], int, float, float, tuple[int, ...]]


def plain(stored: replay.Stored = STORED, capacity: int = CAPACITY, environments: int = ENVIRONMENTS) -> ReplayBuffer:
    return ReplayBuffer(stored, capacity, environments)


def on_device(
    stored: replay.Stored = STORED, capacity: int = CAPACITY, environments: int = ENVIRONMENTS
) -> ReplayBuffer:
    return DeviceReplay(stored, capacity, environments, "cpu", most=64)


both = pytest.mark.parametrize("build", [plain, on_device])
Build = Callable[..., ReplayBuffer]


class Naive:
    """Plays random episodes into a buffer, and keeps every transition with its two stacks.

    Each frame is uniform and known by its brightness, 1 to 255, so it must not play longer than those last.
    """

    def __init__(self, buffer: ReplayBuffer, seed: int) -> None:
        self.buffer, self.rng = buffer, np.random.default_rng(seed)
        self.transitions: deque[tuple[int, Transition]] = deque()
        self.stacks = [deque([0] * 4, maxlen=4) for _ in range(ENVIRONMENTS)]
        self.shade, self.over = 0, [True] * ENVIRONMENTS
        self.begin([True] * ENVIRONMENTS)

    def begin(self, begins: list[bool]) -> None:
        shades = []
        for stack, first in zip(self.stacks, begins, strict=True):
            if first:
                stack.extend([0] * 4)
            self.shade = self.shade % 255 + 1
            shades.append(self.shade)
            stack.append(self.shade)
        frames = torch.tensor(shades, dtype=torch.uint8)[:, None, None].expand(-1, 84, 84)
        self.buffer.begin(frames, torch.tensor(begins))
        self.over = [False] * ENVIRONMENTS

    def restart(self) -> None:
        self.begin([True] * ENVIRONMENTS)

    def step(self) -> None:
        actions, rewards = self.rng.integers(0, 9, ENVIRONMENTS), self.rng.integers(-5, 6, ENVIRONMENTS)
        slot, before, was_over = self.buffer.stop - 1, [tuple(stack) for stack in self.stacks], self.over
        terminated = (self.rng.random(ENVIRONMENTS) < 0.15) & ~np.array(was_over)
        truncated = (self.rng.random(ENVIRONMENTS) < 0.1) & ~terminated & ~np.array(was_over)
        self.buffer.complete(torch.tensor(actions), torch.tensor(rewards).float(), torch.tensor(terminated))
        self.begin(was_over)
        for i in range(ENVIRONMENTS):
            if not was_over[i]:
                after = (before[i], int(actions[i]), float(rewards[i]), float(terminated[i]), tuple(self.stacks[i]))
                self.transitions.append((slot, after))
        self.over = list(terminated | truncated)

    def there(self) -> set[Transition]:
        """The transitions that can be drawn: a stack must not reach beyond the oldest frame."""
        oldest = self.buffer.oldest
        low = oldest + 3 if oldest else 0
        return {transition for slot, transition in self.transitions if slot >= low}


def drawn(batch: replay.Batch) -> list[Transition]:
    assert (batch.frames == batch.frames[:, :, :1, :1]).all()
    shades = batch.frames[:, :, 0, 0].tolist()
    rest = zip(batch.actions.tolist(), batch.rewards.tolist(), batch.ends.tolist(), strict=True)
    return [(tuple(s[:4]), *r, tuple(s[1:])) for s, r, w in zip(shades, rest, batch.weights, strict=True) if w]


@both
@pytest.mark.parametrize("steps", [4, 15, 70])
def test_draws_exactly_the_transitions_there_are(steps: int, build: Build) -> None:
    buffer = build()
    naive = Naive(buffer, seed=steps)
    for step in range(steps):
        if step % 13 == 12:
            naive.restart()
        naive.step()
    batch = buffer.sample(6000, torch.Generator().manual_seed(0))
    counts = Counter(drawn(batch))
    assert set(counts) == naive.there()
    assert (batch.weights == 1).float().mean() > 0.99
    expected = sum(counts.values()) / len(counts)
    assert max(abs(count - expected) for count in counts.values()) < 6 * expected**0.5  # uniformly
    if steps == 70:
        assert buffer.oldest > 0  # it has gone round


def test_same_generator_same_batch() -> None:
    buffer = ReplayBuffer(STORED, CAPACITY, ENVIRONMENTS)
    naive = Naive(buffer, seed=0)
    for _ in range(40):
        naive.step()
    one, other = (buffer.sample(32, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    parts = list(one.split(8))
    assert len(parts) == 4
    assert torch.equal(torch.cat([part.frames for part in parts]), one.frames)


@pytest.mark.parametrize("steps", [3, 40, 70])
def test_batches_of_a_step_on_the_device(steps: int) -> None:
    """Drawn through the parcel, as a training step does: the very same as drawn from a plain buffer; and the newest
    states are the stacks that the environments show."""
    buffers = (plain(), on_device())
    naives = [Naive(buffer, seed=3) for buffer in buffers]
    for step in range(steps):
        for naive in naives:
            if step % 13 == 12:
                naive.restart()
            naive.step()
    one, other = buffers
    assert isinstance(other, DeviceReplay)
    generators = [torch.Generator().manual_seed(7) for _ in buffers]
    for count in (64, 32):
        expected = one.sample(count, generators[0])
        other.draw(count, generators[1])
        other.send()
        states = other.arrive()
        assert all(torch.equal(a, b) for a, b in zip(expected, other.drawn(count), strict=True))
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    assert states[:, :, 5, 5].tolist() == [list(stack) for stack in naives[1].stacks]
    for name in ("frames", "begins", "actions", "rewards", "ends"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@both
@pytest.mark.parametrize("checkpoints", [(30,), (5, 11, 50), (10, 12, 65, 66)])
def test_segments_bring_back_the_buffer(tmp_path: Path, checkpoints: tuple[int, ...], build: Build) -> None:
    """Written piece by piece while it goes round, then read into another buffer, which goes on in the same way."""
    buffer = build()
    naive = Naive(buffer, seed=1)
    for step in range(max(checkpoints) + 1):
        naive.step()
        if step in checkpoints:
            buffer.write(tmp_path / ".")
    state = buffer.state_dict(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = build()
    Naive(other, seed=2).step()  # so that something else is in it
    other.load_state_dict(state, tmp_path)
    naive.buffer = other
    for _ in range(7):
        naive.step()
    assert set(drawn(other.sample(6000, torch.Generator().manual_seed(0)))) == naive.there()
    other.write(tmp_path)
    assert {path: path.read_bytes() for path in files} == files  # nothing is changed that was written
    assert len(list(tmp_path.iterdir())) == len(files) + 1


def test_damaged_and_missing_segments(tmp_path: Path) -> None:
    buffer = ReplayBuffer(STORED, CAPACITY, ENVIRONMENTS)
    naive = Naive(buffer, seed=1)
    for _ in range(10):
        naive.step()
    with pytest.raises(ValueError, match="10 slots are in no segment"):
        buffer.state_dict(tmp_path)
    buffer.write(tmp_path)
    state, (path,) = buffer.state_dict(tmp_path), tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged segment"):
        ReplayBuffer(STORED, CAPACITY, ENVIRONMENTS).load_state_dict(state, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="is missing, which a checkpoint refers to"):
        ReplayBuffer(STORED, CAPACITY, ENVIRONMENTS).load_state_dict(state, tmp_path)


def test_a_million_transitions_fit() -> None:
    assert 1_000_000 * STORED.bytes <= 7.5e9
    buffer = ReplayBuffer(STORED, 4000, 4)
    tensors = (buffer.frames, buffer.begins, buffer.actions, buffer.rewards, buffer.ends)
    total = sum(t.numel() * t.element_size() for t in tensors)
    assert total == pytest.approx(4000 * STORED.bytes, rel=2e-3)


@both
@pytest.mark.parametrize("steps", [30, 200])
def test_unstacked_vectors_with_episodes_that_begin_at_once(steps: int, build: Build) -> None:
    """As the humanoid stores them: an episode's last observation, then the first of the next; the ring goes round."""
    stored, rng = replay.Stored((2,), torch.float32, 1, (3,), torch.float32), torch.Generator().manual_seed(steps)
    buffer = build(stored, 40, 1)
    transitions: dict[int, tuple] = {}
    observation = torch.randn(1, 2, generator=rng)
    buffer.begin(observation, torch.ones(1, dtype=torch.bool))
    for step in range(steps):
        action, reward = torch.randn(1, 3, generator=rng), torch.randn(1, generator=rng)
        after, ends = torch.randn(1, 2, generator=rng), step % 7 == 6
        transitions[buffer.stop - 1] = (observation[0], after[0], action[0], reward[0], float(ends))
        buffer.complete(action, reward, torch.tensor([ends]))
        buffer.begin(after, torch.zeros(1, dtype=torch.bool))
        observation = after
        if step % 7 in (3, 6):  # truncated, terminated
            observation = torch.randn(1, 2, generator=rng)
            buffer.begin(observation, torch.ones(1, dtype=torch.bool))
    kept = [one for slot, one in transitions.items() if slot >= buffer.oldest]
    there = {(*torch.cat((*one[:3], one[3][None])).tolist(), one[4]) for one in kept}
    batch = buffer.sample(4000, torch.Generator().manual_seed(0))
    assert batch.weights.all()
    flat = torch.cat((batch.frames.flatten(1), batch.actions, batch.rewards[:, None], batch.ends[:, None]), 1)
    assert {tuple(row) for row in flat.tolist()} == there
