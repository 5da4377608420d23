"""The DQN agent, small, as the tests of both agents use it; and in float64, as the paper's formulas have it."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.atari import models
from experiments.atari.config import AtariConfig
from experiments.atari.learner import Learner
from experiments.atari.models import QNetwork
from experiments.atari.train import AtariTraining
from experiments.common.config import build_method, compose_domain
from experiments.common.runtime import Runtime
from experiments.rl.replay import Batch

EAGER = Runtime("cpu", "fp32", "false", 1)
STEP = "take_step"  # the name of the method that is a step
MOST_INSIDE = 269  # operations in the graphs of a step with 4 updates; 24 are copies of gradients, made for the tape
SHORT = (
    "budget.steps=[320,240]", "budget.log_every=80", "budget.eval_every=160", "budget.restart_every=112",
    "budget.buffer=200", "budget.learning_starts=64", "replay_ratio=0.5",
)  # fmt: skip
STOPS = (30, 55, 40)  # of such a run: in phase 0, after its end, near that of phase 1


def learner(*overrides: str, actions: int = 3, runtime: Runtime = EAGER) -> Learner:
    cfg = compose_domain("atari", AtariConfig, ["scale=smoke", *overrides])
    return Learner(models.build(cfg.budget, actions, seed=0), cfg, runtime)


def transitions(size: int = 8, seed: int = 0, actions: int = 3) -> Batch:
    """What an update is given."""
    rng = torch.Generator().manual_seed(seed)
    frames = torch.randint(256, (size, 5, 84, 84), generator=rng, dtype=torch.uint8)
    chosen = torch.randint(actions, (size,), generator=rng)
    rewards, ends = 3 * torch.randn(size, generator=rng), (torch.arange(size) % 3 == 0).float()
    return Batch(frames, chosen, rewards, ends, (torch.arange(size) != 5).float())


def training(outputs: Path, *overrides: str, runtime: Runtime = EAGER) -> AtariTraining:
    """One that has begun, at the paper's replay ratio."""
    given = ["scale=smoke", "replay_ratio=1", "budget.learning_starts=64", "method=none", f"outputs_dir={outputs}"]
    cfg = compose_domain("atari", AtariConfig, [*given, *overrides])
    ours = AtariTraining(cfg, runtime, build_method(cfg))
    ours.restart_environments()
    return ours


def same_actions(one: AtariTraining, other: AtariTraining) -> bool:
    """Whether the last step was the same."""
    return torch.equal(one.played[-1], other.played[-1])


def next_actions(ours: AtariTraining) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The actions of training and those without exploration, by graphs, each before what they should be."""
    assert ours.on_device is not None
    assert ours.observations is not None
    with torch.no_grad():
        expected = ours.learner.network(ours.observations).argmax(1)
    return ours.learner.act_in(ours.on_device), expected, ours.learner.act(ours.observations), expected


def weights(one: "Learner | Exact") -> dict[str, Tensor]:
    """All that is learned."""
    return one.network.state_dict()


class Exact:
    """Learns like a learner, from the weights it has now."""

    def __init__(self, learner: Learner) -> None:
        self.network, self.target = deepcopy(learner.network).double(), deepcopy(learner.target).double()
        self._discount, self.batch_size, self._settings = learner.discount, learner.batch_size, learner.settings
        self.penalty: Callable[[], Tensor | float] = lambda: 0.0  # what a method adds to the loss
        self.new_optimizers()

    def new_optimizers(self) -> None:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        rate, eps = self._settings.learning_rate, self._settings.eps
        self.optimizer = torch.optim.Adam(parameters, rate, eps=eps, foreach=False)

    def update(self, given: Sequence[Tensor]) -> None:
        for batch in Batch(*given).split(self.batch_size):
            rewards, ends, weights = batch.rewards.double(), batch.ends.double(), batch.weights.double()
            with torch.no_grad():
                following = values(self.target, batch.frames[:, 1:]).amax(1)
            targets = rewards.clamp(-1, 1) + self._discount * (1 - ends) * following
            taken = values(self.network, batch.frames[:, :4]).gather(1, batch.actions[:, None])[:, 0]
            loss = (weights * F.smooth_l1_loss(taken, targets, reduction="none")).mean()
            self.optimizer.zero_grad()
            (loss + self.penalty()).backward()
            self.optimizer.step()

    def follow(self) -> None:
        self.target = deepcopy(self.network).requires_grad_(False)


def values(network: nn.Module, states: Tensor) -> Tensor:
    """The action values of states, (batch, 4, 84, 84) uint8."""
    assert isinstance(network, QNetwork)
    return network.head(network.convolutions(states.double() / 255))
