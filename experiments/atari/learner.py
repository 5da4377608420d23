"""The learner of DQN (Mnih et al. 2015): Q-network, target network, optimiser, and the update."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from experiments.atari.envs import STACK
from experiments.common.experiment import with_penalty
from experiments.common.runtime import Runtime
from experiments.rl import learner
from experiments.rl.device_replay import DeviceReplay
from experiments.rl.learner import compiled
from experiments.rl.replay import Batch


@torch.no_grad()
def td_targets(target: nn.Module, batch: Batch, discount: float, runtime: Runtime) -> Tensor:
    """What the value of each action should be, (batch,): the reward, clipped to [-1, 1], plus the discounted value that
    the target network gives the next state."""
    with runtime.autocast:
        next_values = target(batch.frames[:, 1:]).float().amax(1)
    return batch.rewards.clamp(-1, 1) + discount * (1 - batch.ends) * next_values


def huber_loss(network: nn.Module, batch: Batch, targets: Tensor, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Huber loss of the temporal-difference errors, and the mean value of the actions taken."""
    with runtime.autocast:
        values = network(batch.frames[:, :STACK]).float().gather(1, batch.actions[:, None])[:, 0]
    errors = F.smooth_l1_loss(values, targets, reduction="none")
    return (batch.weights * errors).mean(), values.detach().mean()


class Learner(learner.Learner):
    """DQN. `train/q` is the mean value of the actions taken."""

    TOTALS = ("train/loss", "train/q", "plasticity/grad_norm", "updates")

    def __init__(self, network: nn.Module, cfg: DictConfig, runtime: Runtime) -> None:
        super().__init__(network, runtime, cfg.dqn.batch_size)
        self.discount, self.settings = cfg.dqn.discount, cfg.optimizer
        self._td_targets, self._huber_loss = compiled(td_targets, runtime), compiled(huber_loss, runtime)
        self.new_optimizers()

    def source_of_target(self) -> nn.Module:
        return self.network

    def make_optimizers(self, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        return [torch.optim.Adam(parameters, self.settings.learning_rate, eps=self.settings.eps, **options)]

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch, uncompiled."""
        targets = td_targets(self.target, batch, self.discount, self.runtime)
        return huber_loss(self.network, batch, targets, self.runtime)[0]

    def _update(self, given: Sequence[Tensor]) -> None:
        batches, (optimizer,) = Batch(*given), self.optimizers
        # For all batches at once: the target network does not change between them.
        targets = self._td_targets(self.target, batches, self.discount, self.runtime)
        parts = list(zip(batches.split(self.batch_size), targets.split(self.batch_size), strict=True))
        for batch, batch_targets in parts:
            loss, value = self._huber_loss(self.network, batch, batch_targets, self.runtime)
            optimizer.zero_grad(set_to_none=True)
            with_penalty(loss, self.during).backward()
            optimizer.step()
            self.totals[0].add_(loss.detach())
            self.totals[1].add_(value)
        # The last gradient stands for those of the other batches: a norm costs a twentieth of an update.
        gradients = [p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None]
        self.totals[2].add_(len(parts) * nn.utils.get_total_norm(gradients))
        self.totals[3].add_(len(parts))

    def _changed(self) -> list[Tensor]:
        return list(self.network.parameters())

    @torch.no_grad()
    def policy(self, states: Tensor) -> Tensor:
        """The action of highest value in each of `states`, (batch, 4, 84, 84) uint8: (batch,) int64."""
        with self.runtime.autocast:
            return self.network(states).argmax(1)

    def _act_in(self, buffer: DeviceReplay) -> Tensor:
        return self.policy(buffer.arrive())

    @torch.no_grad()
    def update_target(self) -> None:
        """Copy the Q-network into the target network, in place."""
        torch._foreach_copy_(list(self.target.parameters()), list(self.network.parameters()))
