"""Sticky actions of whole agent steps: what is played, what is stored, and how often, against the definition."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.atari import envs
from experiments.atari.envs import STICKY, StickySteps
from experiments.atari.train import AtariTraining
from experiments.common.seeding import generator
from tests.experiments.atari import agent
from tests.experiments.atari.scripted import Scripted
from tests.experiments.rl.captured import GRAPHS, check_stops, cost
from tests.tape import Tape

Atari = Callable[..., tuple[int, str]]
COUNT, ACTIONS, LENGTH = 4, 18, 11
RESTART = 44 * COUNT  # steps, not at an episode's end


class Echo:
    """Environments with 18 actions whose episodes take 11 steps, and which write down what is played.

    Attributes:
        played: of each step, those included that only reset, (environments,).
    """

    def __init__(self, count: int) -> None:
        self.count, self.single_action_space = count, SimpleNamespace(n=ACTIONS)
        self.played: list[np.ndarray] = []

    def reset(self, seed: np.ndarray) -> tuple[np.ndarray, dict]:
        self.age = np.zeros(self.count, dtype=int)
        return np.zeros((self.count, 4, 84, 84), dtype=np.uint8), {}

    def send(self, actions: np.ndarray) -> None:
        self.played.append(actions.copy())

    def recv(self) -> tuple[Any, ...]:
        self.age = (self.age + 1) % (LENGTH + 1)  # 0: this step has only reset
        over = self.age == LENGTH
        rewards = np.where(self.age > 0, self.played[-1], 0).astype(np.float32)
        return np.zeros((self.count, 4, 84, 84), np.uint8), rewards, over, np.zeros_like(over), {}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        self.send(actions)
        return self.recv()


def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, *settings: str) -> tuple[AtariTraining, Echo]:
    """Training with random actions, without updates, after some steps, and its environments."""
    monkeypatch.setattr(envs, "make", lambda _game, count, _sticky: Echo(count))
    ours = agent.training(
        tmp_path, f"budget.steps=[{8 * steps},{8 * steps}]", f"budget.learning_starts={8 * steps}",
        f"budget.buffer={8 * steps}", "dqn.epsilon=[1,1]", f"budget.restart_every={RESTART}", *settings,
    )  # fmt: skip
    for _ in range(steps):
        ours.take_step()
    return ours, ours.envs


def chosen_actions(steps: int) -> Tensor:
    """What the agent chooses: uniformly random actions, drawn again from the seed, (steps, environments)."""
    rng = generator(0, "exploration")
    greedy = torch.zeros(COUNT, dtype=torch.int64)
    return torch.stack([envs.epsilon_greedy(greedy, ACTIONS, 1, rng) for _ in range(steps)])


def test_stored_are_the_chosen_and_played_the_repeated_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a plain loop over the definition, environment by environment."""
    steps = 200
    ours, echo = recorded(tmp_path, monkeypatch, steps, "env.sticky=agent_step")
    chosen, rng = chosen_actions(steps), generator(0, "sticky")
    slots = [slot for slot in range(ours.buffer.stop) if slot % 45 != 44]  # without those before a new start
    assert torch.equal(ours.buffer.actions[slots][:steps].long(), chosen)
    draws = [torch.rand(COUNT, generator=rng).tolist() for _ in range(steps)]
    repeats = 0
    for i in range(COUNT):
        previous, age = 0, 0
        for step in range(steps):
            if step % 44 == 0:  # a new start
                previous, age = 0, 0
            elif age == LENGTH:  # the step that only resets
                previous, age = 0, 0
                continue
            action = int(chosen[step, i])
            if draws[step][i] < 0.25:
                action = previous
                repeats += 1
            assert echo.played[step][i] == action, (step, i)
            previous, age = action, age + 1
    assert repeats > 100
    rewards = ours.buffer.rewards[slots][:steps]  # the environment pays what was played
    assert not torch.equal(rewards, chosen.float())


def test_frequencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of all steps repeats, independently of other steps and environments, and none across episodes."""
    steps = 12 * 400
    _, echo = recorded(tmp_path, monkeypatch, steps, "env.sticky=agent_step", "budget.restart_every=100_000")
    chosen, played = chosen_actions(steps).numpy(), np.stack(echo.played)
    # (episodes, steps of an episode, environments); the last of 12 steps only resets.
    chosen, played = (actions.reshape(-1, LENGTH + 1, COUNT)[:, :LENGTH] for actions in (chosen, played))
    before = np.concatenate([np.zeros_like(played[:, :1]), played[:, :-1]], axis=1)
    assert ((played == chosen) | (played == before)).all()
    telling = chosen != before  # elsewhere a repeat changes nothing
    again = played == before

    def near(found: np.ndarray, expected: float) -> bool:
        return abs(found.mean() - expected) < 4 * (expected * (1 - expected) / found.size) ** 0.5

    assert near(again[telling], STICKY)
    first = again[:, 0][telling[:, 0]]
    assert first.size > 1400
    assert near(first, STICKY)  # the no-op, whatever the episode before ended with
    both = telling[:, 1:] & telling[:, :-1]
    assert near((again[:, 1:] & again[:, :-1])[both], STICKY**2)
    together = telling[..., 0] & telling[..., 1]
    assert near((again[..., 0] & again[..., 1])[together], STICKY**2)


def test_frame_leaves_repeats_to_ale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, echo = recorded(tmp_path, monkeypatch, 40)
    assert ours.cfg.env.sticky == "frame"
    assert np.array_equal(np.stack(echo.played), chosen_actions(40).numpy())
    assert torch.equal(ours.buffer.actions[:40].long(), chosen_actions(40))
    rng = generator(0, "sticky")
    state = rng.get_state()
    chosen = torch.arange(3)
    assert StickySteps("frame", 3, rng).play(chosen, torch.zeros(3, dtype=torch.bool)) is chosen
    assert torch.equal(rng.get_state(), state)  # which would shift what an evaluation draws


def test_what_repeats_cost(tmp_path: Path, taped: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    """Four operations on the CPU beside the 8 of test_captured.py; no copy and no wait."""
    ours = agent.training(tmp_path, "env.sticky=agent_step", runtime=GRAPHS)
    while ours.step < 80:  # learning has started at 64
        ours.take_step()
    found = cost(ours.take_step, taped, monkeypatch)
    assert (found.graphs, found.copies) == (2, 2)
    assert found.outside.total() <= 12, found.outside
    assert found.inside.total() <= agent.MOST_INSIDE


def test_ale_repeats_nothing_of_its_own() -> None:
    """Nothing but the actions decides the games then: other seeds, the same pictures."""
    rng, seen = np.random.default_rng(0), {}
    actions = rng.integers(0, 9, (60, 1)).repeat(2, axis=1)
    for sticky in ("agent_step", "frame"):
        env = envs.make("asterix", 2, sticky)
        env.reset(seed=np.array([1, 2]))
        seen[sticky] = np.stack([env.step(played)[0].copy() for played in actions])
    assert np.array_equal(seen["agent_step"][:, 0], seen["agent_step"][:, 1])
    assert not np.array_equal(seen["frame"][:, 0], seen["frame"][:, 1])


def test_evaluations_stick_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that always chooses 5: in an episode the no-op is played until the first step that is no repeat."""
    made: list[Echo] = []

    def make(_game: str, count: int, sticky: str) -> Echo:
        assert sticky == "agent_step"
        made.append(Echo(count))
        return made[-1]

    monkeypatch.setattr(envs, "make", make)

    def policy(states: Tensor) -> Tensor:
        return torch.full((len(states),), 5)

    result = envs.evaluate(policy, "asterix", COUNT, COUNT * (12 * 250 - 1), 0.0, seed=0, at=0, sticky="agent_step")
    (echo,) = made
    played = np.stack([*echo.played, np.zeros(COUNT)]).reshape(-1, LENGTH + 1, COUNT)[:, :LENGTH]
    assert set(np.unique(played)) == {0, 5}
    assert (played[:, 1:] >= played[:, :-1]).all()  # once 5 was played, it is what repeats repeat
    assert (played[:, 0] == 0).mean() == pytest.approx(STICKY, abs=0.055)  # 4 standard deviations of 1,000 episodes
    waited = (played == 0).sum(axis=1)
    assert waited.mean() == pytest.approx(STICKY / (1 - STICKY), abs=0.085)  # a geometric number of steps
    assert result["eval/return"] == pytest.approx(5 * (LENGTH - waited).mean())  # the reward is the action played


def test_videos_stick_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that is shown plays what the other one plays."""
    made: list[Echo] = []

    def make(_game: str, count: int, sticky: str, **_settings: Any) -> Echo:
        assert sticky == "agent_step"
        made.append(Echo(count))
        return made[-1]

    monkeypatch.setattr(envs, "make", make)
    first = []
    for seed in range(200):
        made.clear()
        steps = list(envs.episode(lambda states: torch.full((len(states),), 5), "asterix", 0.0, seed, "agent_step"))
        env, shown = (np.concatenate(echo.played) for echo in made)
        assert len(steps) == len(env) == LENGTH
        assert np.array_equal(env, shown)
        first.append(env[0] == 0)
    assert np.mean(first) == pytest.approx(STICKY, abs=0.12)  # 4 standard deviations


def test_resumed_runs_repeat_the_same_actions(
    atari: Atari, tmp_path: Path, taped: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain run, and a captured one that is stopped in both phases and resumed: the same rows to the bit."""
    monkeypatch.setattr(envs, "make", lambda _game, count, _sticky: Scripted(count))
    played: list[tuple[int, list[int]]] = []
    original = AtariTraining.take_step

    def noted(self: AtariTraining) -> None:
        original(self)
        played.append((self.step, self.played[-1].tolist()))

    monkeypatch.setattr(AtariTraining, "take_step", noted)
    arguments = ("method=none", "env.sticky=agent_step", *agent.SHORT)
    check_stops(atari, arguments, tmp_path, AtariTraining, agent.STEP, agent.STOPS, monkeypatch)
    steps = len(range(0, 560, 4))
    plain, captured = dict(played[:steps]), dict(played[steps:])
    assert len(plain) == steps
    assert plain == captured  # every action that was played, in which steps it was
    assert len(played) > 2 * steps  # some were played twice: after the last checkpoint before a stop
