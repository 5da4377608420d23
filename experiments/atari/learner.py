"""The learner of DQN (Mnih et al. 2015): Q-network, target network, optimiser, and the update."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.atari.envs import STACK
from experiments.common.config import Runtime
from experiments.common.cuda_graphs import UpdateGraphs
from experiments.common.replay import Batch

# Sums since the last row: of the loss, of the mean value of the actions taken, of the gradient's norm; and the updates.
TOTALS = ("loss", "q", "grad_norm", "updates")


@torch.no_grad()
def goals(target: nn.Module, batch: Batch, discount: float, runtime: Runtime) -> Tensor:
    """What the value of each action should be, (batch,): the reward, clipped to [-1, 1], plus the discounted value that
    the target network gives the next state."""
    with runtime.autocast:
        following = target(batch.frames[:, 1:]).float().amax(1)
    return batch.rewards.clamp(-1, 1) + discount * (1 - batch.ends) * following


def huber_loss(online: nn.Module, batch: Batch, goal: Tensor, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Huber loss of the temporal-difference errors, and the mean value of the actions taken."""
    with runtime.autocast:
        values = online(batch.frames[:, :STACK]).float().gather(1, batch.actions[:, None])[:, 0]
    errors = F.smooth_l1_loss(values, goal, reduction="none")
    return (batch.weights * errors).mean(), values.detach().mean()


class Learner:
    """Everything that an update changes.

    Attributes:
        online: the network that acts and learns.
        target: the copy of it that values of next states come from.
        totals: (4,) float64, as in `TOTALS`, kept on the device so that no update waits for it.
    """

    def __init__(self, network: nn.Module, cfg: DictConfig, runtime: Runtime) -> None:
        self.runtime, self._discount, self._batch_size = runtime, cfg.dqn.discount, cfg.dqn.batch_size
        self._rate, self._eps = cfg.optimizer.learning_rate, cfg.optimizer.eps
        self.online = network.to(runtime.device)
        self.target = deepcopy(self.online).requires_grad_(False)
        self.totals = torch.zeros(len(TOTALS), dtype=torch.float64, device=runtime.device)
        # Plain functions, because a method kept here would keep the learner, and its graphs, alive after its use.
        compiled = torch.compile if runtime.compile == "true" else lambda function: function
        self._goals, self._huber_loss = compiled(goals), compiled(huber_loss)
        self._graphs = UpdateGraphs()
        self.new_optimizer()

    def new_optimizer(self) -> None:
        """Adam with empty moments, for the parameters that learn."""
        parameters = [p for p in self.online.parameters() if p.requires_grad]
        graphs = self.runtime.compile == "graphs"
        self.optimizer = torch.optim.Adam(parameters, self._rate, eps=self._eps, fused=True, capturable=graphs)
        self._graphs.forget()

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of a batch, and the mean value of its actions; uncompiled."""
        goal = goals(self.target, batch, self._discount, self.runtime)
        return huber_loss(self.online, batch, goal, self.runtime)

    def update(self, batches: Batch) -> None:
        """A step of the optimiser for every `dqn.batch_size` transitions."""
        if self.runtime.compile != "graphs":
            self._update(batches)
            return
        self._graphs.run(self._update, batches, lambda: [*self.online.parameters(), self.totals], [self.optimizer])

    def _update(self, given: Sequence[Tensor]) -> None:
        batches = Batch(*given)
        # For all batches at once: the target network does not change between them.
        goal = self._goals(self.target, batches, self._discount, self.runtime)
        parts = list(zip(batches.split(self._batch_size), goal.split(self._batch_size), strict=True))
        for batch, batch_goal in parts:
            loss, value = self._huber_loss(self.online, batch, batch_goal, self.runtime)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.totals[0] += loss.detach()
            self.totals[1] += value
        # The last gradient stands for those of the other batches: a norm is as dear as a twentieth of an update.
        gradients = [p.grad for p in self.optimizer.param_groups[0]["params"] if p.grad is not None]
        self.totals[2] += len(parts) * nn.utils.get_total_norm(gradients)
        self.totals[3] += len(parts)

    @torch.no_grad()
    def act(self, states: Tensor) -> Tensor:
        """The action of highest value in each state, (batch,) int64 on the CPU; waits for the device."""
        with self.runtime.autocast:
            return self.online(states.to(self.runtime.device, non_blocking=True)).argmax(1).cpu()

    @torch.no_grad()
    def update_target(self) -> None:
        """Copy the Q-network into the target network, in place."""
        for there, here in zip(self.target.parameters(), self.online.parameters(), strict=True):
            there.copy_(here)

    def restructure(self, method: fire.Method, initial: Mapping[str, Tensor], scope: fire.Scope) -> None:
        """Give both networks the modules they have after `method`'s reset, and the optimiser their parameters."""
        method.restructure(self.online, initial, scope)
        self.follow()
        self.new_optimizer()

    def follow(self) -> None:
        """Make the target network a copy of the Q-network, whose modules may be new ones."""
        if self.target.state_dict().keys() == self.online.state_dict().keys():
            self.update_target()
        else:
            self.target = deepcopy(self.online).requires_grad_(False)
            self._graphs.forget()

    def state_dict(self) -> dict[str, Any]:
        """All a checkpoint needs."""
        return {
            "model": self.online.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "totals": self.totals,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of networks with the same modules."""
        self.online.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.totals.copy_(state["totals"])
        self._graphs.forget()
