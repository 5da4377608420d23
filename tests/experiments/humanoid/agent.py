"""The SAC agent, small, as the tests of both agents use it; and in float64, as one writes it first: three optimisers,
everything through backward()."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from experiments.common.config import build_method, compose_domain
from experiments.common.runtime import Runtime
from experiments.humanoid import models
from experiments.humanoid.config import HumanoidConfig
from experiments.humanoid.learner import Learner
from experiments.humanoid.train import HumanoidTraining
from experiments.rl.replay import Batch

EAGER = Runtime("cpu", "fp32", "false", 1)
STEP = "take_step"  # the name of the method that is a step
MOST_INSIDE = 508  # operations in the graphs of a step with 2 updates; 24 are copies of gradients, made for the tape
SHORT = (
    "budget.steps=[160,120]", "budget.log_every=40", "budget.eval_every=80", "budget.random_actions=30",
    "budget.buffer=90",
)  # fmt: skip
STOPS = (40, 60, 40)  # of such a run: in phase 0, in phase 1 twice
OBSERVATION, ACTION = 5, 3


def learner(*overrides: str, runtime: Runtime = EAGER) -> Learner:
    cfg = compose_domain("humanoid", HumanoidConfig, ["scale=smoke", "optimizer.learning_rate=1e-3", *overrides])
    return Learner(models.build(OBSERVATION, ACTION, cfg.budget, seed=0), OBSERVATION, ACTION, cfg, runtime)


def batch(size: int = 32, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    frames = 2 * torch.randn(size, 2, OBSERVATION, generator=rng) + 1
    actions = 2 * torch.rand(size, ACTION, generator=rng) - 1
    rewards, ends = torch.rand(size, generator=rng), (torch.arange(size) % 3 == 0).float()
    return Batch(frames, actions, rewards, ends, torch.ones(size))


def noise(size: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(size, 2, ACTION, generator=torch.Generator().manual_seed(seed))


def transitions(size: int = 32, seed: int = 0) -> tuple[Tensor, ...]:
    """What an update is given: two updates of 16, if not told otherwise."""
    return *batch(size, seed), noise(size, seed + 1)


def training(outputs: Path, *overrides: str, runtime: Runtime = EAGER) -> HumanoidTraining:
    """One that has not begun."""
    given = ["scale=smoke", "env.backend=native", "budget.random_actions=30", "method=none", f"outputs_dir={outputs}"]
    cfg = compose_domain("humanoid", HumanoidConfig, [*given, *overrides])
    return HumanoidTraining(cfg, runtime, build_method(cfg))


def same_actions(one: HumanoidTraining, other: HumanoidTraining) -> bool:
    """Whether the last action had the same outcome."""
    assert one.observation is not None
    assert other.observation is not None
    return torch.equal(one.observation, other.observation)


def next_actions(ours: HumanoidTraining) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The actions of training and those without exploration, by graphs, each before what they should be."""
    learner, buffer = ours.learner, ours.on_device
    assert buffer is not None
    assert ours.observation is not None
    with torch.no_grad():
        mean, log_std = learner.network.actor(learner.normaliser(ours.observation[None]))
    learner.pack(buffer.parcel, 0, torch.Generator().manual_seed(0), ours.drawing)
    unit = torch.randn((1, ours.actions), generator=torch.Generator().manual_seed(0))
    explored = (mean + log_std.exp() * unit).tanh()
    return learner.act_in(buffer).clone(), explored, learner.act(ours.observation[None]), mean.tanh()


def weights(one: "Learner | Exact") -> dict[str, Tensor]:
    """All that is learned."""
    target = {f"target.{name}": tensor for name, tensor in one.target.state_dict().items()}
    return {**one.network.state_dict(), **target, "log_temperature": one.log_temperature}


class Exact:
    """Learns like a learner, from the weights it has now."""

    def __init__(self, learner: Learner) -> None:
        self.network, self.target = deepcopy(learner.network).double(), deepcopy(learner.target).double()
        self.log_temperature = nn.Parameter(learner.log_temperature.detach().double().clone())
        self.normaliser = deepcopy(learner.normaliser)
        self.batch_size, self._sac, self._settings = learner.batch_size, learner.sac, learner.settings
        self.penalty: Callable[[], Tensor | float] = lambda: 0.0  # what a method adds to the losses of the networks
        self.new_optimizers()

    def new_optimizers(self) -> None:
        with torch.no_grad():
            self.log_temperature.fill_(math.log(self._sac.temperature))
        rate, decay = self._settings.learning_rate, self._settings.weight_decay
        groups = (
            (self.network.actor.parameters(), decay), (self.network.critic.parameters(), decay),
            ([self.log_temperature], 0.0),
        )  # fmt: skip
        self.optimizers = [
            torch.optim.AdamW([p for p in parameters if p.requires_grad], rate, weight_decay=decay, foreach=False)
            for parameters, decay in groups
        ]

    def follow(self) -> None:
        self.target = deepcopy(self.network.critic).requires_grad_(False)

    def update(self, given: Sequence[Tensor]) -> None:
        size = self.batch_size
        for drawn in zip(*(tensor.double().split(size) for tensor in given), strict=True):
            self._update(Batch(*drawn[:-1]), *drawn[-1].unbind(1))

    def _update(self, batch: Batch, noise: Tensor, next_noise: Tensor) -> None:
        normaliser, critic = self.normaliser, self.network.critic
        mean, variance = normaliser.mean.to(noise.device), normaliser.variance.to(noise.device)
        states, next_states = ((batch.frames - mean) / (variance + 1e-8).sqrt()).unbind(1)
        actions, log_probabilities = self._draw(states, noise)
        temperature = self.log_temperature.exp().detach()
        self._step(0, (batch.weights * (temperature * log_probabilities - critic(states, actions).amin(0))).mean())
        entropy = -log_probabilities.detach().mean()
        target_entropy = self._sac.target_entropy * noise.shape[1]
        self._step(2, self.log_temperature.exp() * (entropy - target_entropy))
        temperature = self.log_temperature.exp().detach()
        with torch.no_grad():
            actions, log_probabilities = self._draw(next_states, next_noise)
            after = self.target(next_states, actions).amin(0) - temperature * log_probabilities
            targets = batch.rewards + self._sac.discount * (1 - batch.ends) * after
        errors = (critic(states, batch.actions) - targets).square()
        self._step(1, (batch.weights * errors).mean(1).sum())
        with torch.no_grad():
            for there, here in zip(self.target.parameters(), critic.parameters(), strict=True):
                there.copy_((1 - self._sac.tau) * there + self._sac.tau * here)

    def _draw(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.network.actor(states)
        raw = mean + log_std.exp() * noise
        slope = 2 * (math.log(2) - raw - F.softplus(-2 * raw))  # the logarithm of 1 - tanh^2
        return raw.tanh(), (Normal(mean, log_std.exp()).log_prob(raw) - slope).sum(1)

    def _step(self, which: int, loss: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        (loss + self.penalty()).backward()
        self.optimizers[which].step()
