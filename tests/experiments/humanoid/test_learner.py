"""The learner against its formulas and a plain SAC, on a task whose solution is known, and what resets do to it."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, TanhTransform, TransformedDistribution

import fire
from experiments.common import checkpoint
from experiments.common.config import build_scope, compose_domain
from experiments.common.runtime import Runtime
from experiments.humanoid import envs, models
from experiments.humanoid.config import HumanoidConfig
from experiments.humanoid.learner import Learner, actor_loss, critic_loss, draw, td_targets
from experiments.humanoid.models import Normaliser
from tests.conftest import Command, run_dirs
from tests.experiments.humanoid.agent import ACTION, EAGER, OBSERVATION, Exact, batch, learner, noise
from tests.experiments.rl.captured import capture_everywhere
from tests.tape import Tape


def policy(actor: models.Actor, states: Tensor) -> TransformedDistribution:
    mean, log_std = actor(states)
    return TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))


def test_log_probability_is_that_of_a_squashed_gaussian() -> None:
    mean, log_std = torch.randn(50, ACTION).double(), torch.randn(50, ACTION).double() - 1
    unit = torch.randn(50, ACTION).double()
    actions, found = draw((mean.float(), log_std.float()), unit.float())
    raw = mean + log_std.exp() * unit
    correction = torch.log1p(-(raw.tanh() ** 2))
    expected = (Normal(mean, log_std.exp()).log_prob(raw) - correction).sum(1)
    torch.testing.assert_close(actions, raw.tanh().float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    # Far out, where 1 - tanh^2 rounds to zero, it is still finite.
    far = draw((torch.full((1, ACTION), 40.0), torch.zeros(1, ACTION)), torch.zeros(1, ACTION))[1]
    assert float(far[0]) == pytest.approx(ACTION * (-math.log(2 * math.pi) / 2 - 2 * math.log(2) + 80), rel=1e-5)


def test_losses_are_those_of_the_paper() -> None:
    """Against the formulas, transition by transition."""
    ours, transitions = learner(), batch(9)
    with torch.no_grad():
        for parameter in ours.target.parameters():
            parameter.mul_(1.5)
    states, next_states = transitions.frames.unbind(1)
    unit, next_unit = noise(9).unbind(1)
    actor, critic, target = ours.network.actor, ours.network.critic, ours.target
    temperature, discount = torch.tensor(0.3), 0.9
    weights = (torch.arange(9) != 4).float()
    targets = td_targets(actor, target, temperature, transitions, next_states, next_unit, discount)
    loss, entropy = actor_loss(actor, critic, temperature, states, unit, weights)
    error, value = critic_loss(critic, states, transitions.actions, targets, weights)
    expected_actor, expected_critic, entropies = 0.0, 0.0, []
    for i in range(9):
        mean, log_std = actor(next_states[i : i + 1])
        drawn = (mean + log_std.exp() * next_unit[i]).tanh()
        log_probability = policy(actor, next_states[i : i + 1]).log_prob(drawn).sum()
        after = min(q.item() for q in target(next_states[i : i + 1], drawn)) - 0.3 * log_probability.item()
        wanted = transitions.rewards[i].item() + (0.0 if i % 3 == 0 else discount * after)
        assert targets[i].item() == pytest.approx(wanted, abs=2e-3)
        mean, log_std = actor(states[i : i + 1])
        drawn = (mean + log_std.exp() * unit[i]).tanh()
        log_probability = policy(actor, states[i : i + 1]).log_prob(drawn).sum()
        entropies.append(-log_probability.item())
        if i != 4:
            lower = min(q.item() for q in critic(states[i : i + 1], drawn))
            expected_actor += (0.3 * log_probability.item() - lower) / 9
            pair = critic(states[i : i + 1], transitions.actions[i : i + 1])
            expected_critic += sum((q.item() - targets[i].item()) ** 2 for q in pair) / 9
    assert loss.item() == pytest.approx(expected_actor, abs=2e-3)
    assert error.item() == pytest.approx(expected_critic, rel=1e-4)
    assert entropy.item() == pytest.approx(np.mean(entropies), abs=2e-3)
    assert value.item() == pytest.approx(critic(states, transitions.actions).mean().item())


def test_updates_equal_those_of_a_plain_sac() -> None:
    ours = learner("optimizer.learning_rate=1e-3")
    plain = Exact(ours)
    for _ in range(20):
        seen = torch.randn(OBSERVATION) * 3 - 1
        for one in (ours, plain):
            one.normaliser.update(seen)
    for i in range(15):
        for one in (ours, plain):
            one.update((*batch(), noise(32, seed=i)))  # two updates of 16
    for name, tensor in ours.network.state_dict().items():
        torch.testing.assert_close(tensor.double(), plain.network.state_dict()[name], rtol=2e-3, atol=2e-5)
    for name, tensor in ours.target.state_dict().items():
        torch.testing.assert_close(tensor.double(), plain.target.state_dict()[name], rtol=2e-3, atol=2e-5)
    assert ours.log_temperature.item() == pytest.approx(plain.log_temperature.item(), rel=1e-4)
    assert ours.totals[-1] == 30
    assert dict(zip(ours.TOTALS, ours.totals.tolist(), strict=True))["plasticity/grad_norm"] > 0


@pytest.mark.slow
def test_compiled_update_is_the_same() -> None:
    one, other = learner(), learner(runtime=Runtime("cpu", "fp32", "true", 1))
    for i in range(3):
        for each in (one, other):
            each.update((*batch(seed=i), noise(seed=i)))
    for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_normaliser_has_the_mean_and_variance_of_what_it_saw() -> None:
    seen = torch.randn(400, OBSERVATION, dtype=torch.float64) * torch.arange(1, 6) + 7
    ours = Normaliser(OBSERVATION, "cpu")
    for observation in seen:
        ours.update(observation)
    # That it begins with a ten-thousandth of an observation of mean 0 and variance 1 is all that differs.
    torch.testing.assert_close(ours.mean, seen.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.variance, seen.var(0, unbiased=False), rtol=1e-3, atol=0)
    normal = ours(seen.float())
    torch.testing.assert_close(normal.mean(0), torch.zeros(OBSERVATION), atol=1e-3, rtol=0)
    torch.testing.assert_close(normal.std(0), torch.ones(OBSERVATION), atol=5e-3, rtol=0)


def test_reset_reaches_the_target_and_the_temperature_begins_anew() -> None:
    cfg = compose_domain("humanoid", HumanoidConfig, ["scale=smoke"])
    ours = learner()
    initial = {name: tensor.clone() for name, tensor in ours.network.state_dict().items()}
    for i in range(5):
        ours.update((*batch(seed=i), noise(seed=i)))
    addresses = [p.data_ptr() for p in (*ours.network.parameters(), *ours.target.parameters(), ours.log_temperature)]
    assert ours.log_temperature.item() != pytest.approx(math.log(0.01))
    fire.build("fire").reset(ours.network, initial, build_scope(cfg.model.scope))
    ours.follow()
    ours.new_optimizers()
    for name, tensor in ours.target.state_dict().items():
        assert torch.equal(tensor, ours.network.critic.state_dict()[name])
    assert ours.log_temperature.item() == pytest.approx(math.log(0.01))
    assert not any(optimizer.state for optimizer in ours.optimizers)
    assert addresses == [
        p.data_ptr() for p in (*ours.network.parameters(), *ours.target.parameters(), ours.log_temperature)
    ]


class Aim(gym.Env[np.ndarray, np.ndarray]):
    """A state of one number is shown; the reward is how near the action comes to half of it. Episodes of four steps,
    of which every second one ends in a terminal state."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,))
        self.action_space = gym.spaces.Box(-1, 1, (1,))
        self.data = SimpleNamespace(warning={kind: SimpleNamespace(number=0) for kind in envs.FATAL})

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.left, self.state = 4, self.np_random.uniform(-1, 1, 1)
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = 1 - (float(action[0]) - float(self.state[0]) / 2) ** 2
        self.left -= 1
        self.state = self.np_random.uniform(-1, 1, 1)
        return self.state, reward, self.left == 0, False, {}


@pytest.mark.parametrize(
    ("way", "precision"), [("plain", "fp32"), pytest.param("captured", "bf16", marks=pytest.mark.slow)]
)
def test_solves_a_task_whose_solution_is_known(
    way: str, precision: str, humanoid: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taped: list[Tape]
) -> None:
    if way == "captured":
        capture_everywhere(monkeypatch)
    monkeypatch.setattr(envs, "make", lambda *_: Aim())
    monkeypatch.setattr(envs.Player, "state_dict", lambda _: {})
    monkeypatch.setattr(envs.Player, "load_state_dict", lambda *_: None)
    status, printed = humanoid(
        "method=none", "sac.action_repeat=1", "sac.discount=0.5", "optimizer.learning_rate=3e-3", "sac.tau=0.05",
        "budget.steps=[1200,400]", "budget.critic_width=16", "budget.batch_size=32", "sac.replay_ratio=1",
        "budget.eval_every=800", f"precision={precision}",
    )  # fmt: skip
    assert status == 0, printed
    assert bool(taped) == (way == "captured")
    (run,) = run_dirs(tmp_path / "outputs")
    weights = checkpoint.final_weights(run)
    cfg = compose_domain("humanoid", HumanoidConfig, ["scale=smoke", "budget.critic_width=16"])
    solved = Learner(models.build(1, 1, cfg.budget, 0), 1, 1, cfg, EAGER)
    solved.network.load_state_dict(weights["agent"])
    solved.normaliser.load_state_dict(weights["normaliser"])
    states = torch.linspace(-0.9, 0.9, 7)[:, None]
    torch.testing.assert_close(solved.act(states), states / 2, atol=0.12, rtol=0)


@pytest.mark.parametrize("which", ["final", "wrong"])
def test_weights_of_a_finished_run(which: str, tmp_path: Path, humanoid: Callable[..., tuple[int, str]]) -> None:
    """What is left of a run is enough to act with, and damage is noticed."""
    status, printed = humanoid("method=none")
    assert status == 0, printed
    (run,) = run_dirs(tmp_path / "outputs")
    if which == "final":
        assert checkpoint.final_weights(run).keys() == {"agent", "normaliser"}
    else:
        (path,) = run.glob("kept-final-*.pt")
        path.write_bytes(path.read_bytes()[:-1])
        status, printed = humanoid("method=none", "record_video=true")
        assert status == 1
        assert f"the final weights in {run} are missing or damaged; overwrite=true trains them again" in printed
