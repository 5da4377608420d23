"""DQN in float64, as the paper's formulas have it."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.atari.learner import Learner
from experiments.atari.models import QNetwork
from experiments.common.replay import Batch


class Reference:
    """Learns like a learner, from the weights it has now."""

    def __init__(self, learner: Learner) -> None:
        self.online, self.target = deepcopy(learner.online).double(), deepcopy(learner.target).double()
        self._discount, self._batch_size = learner._discount, learner._batch_size
        self._rate, self._eps = learner._rate, learner._eps
        self.new_optimizer()

    def new_optimizer(self) -> None:
        parameters = [p for p in self.online.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, self._rate, eps=self._eps, foreach=False)

    def update(self, batches: Batch) -> None:
        for batch in batches.split(self._batch_size):
            rewards, ends, weights = batch.rewards.double(), batch.ends.double(), batch.weights.double()
            with torch.no_grad():
                following = values(self.target, batch.frames[:, 1:]).amax(1)
            targets = rewards.clamp(-1, 1) + self._discount * (1 - ends) * following
            taken = values(self.online, batch.frames[:, :4]).gather(1, batch.actions[:, None])[:, 0]
            loss = (weights * F.smooth_l1_loss(taken, targets, reduction="none")).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def follow(self) -> None:
        self.target = deepcopy(self.online).requires_grad_(False)

    update_target = follow


def values(network: nn.Module, states: Tensor) -> Tensor:
    """The action values of states, (batch, 4, 84, 84) uint8."""
    assert isinstance(network, QNetwork)
    return network.head(network.convolutions(states.double() / 255))
