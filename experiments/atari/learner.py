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
from experiments.common.device_replay import DeviceReplay
from experiments.common.replay import Batch
from experiments.common.transfers import Reply

# Sums since the last row: of the loss, of the mean value of the actions taken, of the gradient's norm; and the updates.
TOTALS = ("loss", "q", "grad_norm", "updates")


@torch.no_grad()
def td_targets(target: nn.Module, batch: Batch, discount: float, runtime: Runtime) -> Tensor:
    """What the value of each action should be, (batch,): the reward, clipped to [-1, 1], plus the discounted value that
    the target network gives the next state."""
    with runtime.autocast:
        following = target(batch.frames[:, 1:]).float().amax(1)
    return batch.rewards.clamp(-1, 1) + discount * (1 - batch.ends) * following


def huber_loss(online: nn.Module, batch: Batch, targets: Tensor, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Huber loss of the temporal-difference errors, and the mean value of the actions taken."""
    with runtime.autocast:
        values = online(batch.frames[:, :STACK]).float().gather(1, batch.actions[:, None])[:, 0]
    errors = F.smooth_l1_loss(values, targets, reduction="none")
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
        self._td_targets, self._huber_loss = compiled(td_targets), compiled(huber_loss)
        self._graphs, self._reply = UpdateGraphs(), Reply()
        self.new_optimizer()

    def new_optimizer(self) -> None:
        """Adam with empty moments, for the parameters that learn."""
        parameters = [p for p in self.online.parameters() if p.requires_grad]
        graphs = self.runtime.compile == "graphs"
        self.optimizer = torch.optim.Adam(parameters, self._rate, eps=self._eps, fused=True, capturable=graphs)
        self._graphs.forget()

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of a batch, and the mean value of its actions; uncompiled."""
        targets = td_targets(self.target, batch, self._discount, self.runtime)
        return huber_loss(self.online, batch, targets, self.runtime)

    def update(self, batches: Batch) -> None:
        """A step of the optimiser for every `dqn.batch_size` transitions."""
        if self.runtime.compile != "graphs":
            self._update(batches)
            return
        self._graphs.run(self._update, batches, self._changed, [self.optimizer])

    def update_from(self, buffer: DeviceReplay, count: int) -> None:
        """`update` on the `count` transitions drawn in a buffer on the device, as one graph; waits for nothing."""
        self._graphs.play(("update", count), lambda: self._update(buffer.drawn(count)), self._changed, [self.optimizer])

    def _changed(self) -> list[Tensor]:
        return [*self.online.parameters(), self.totals]

    def _update(self, given: Sequence[Tensor]) -> None:
        batches = Batch(*given)
        # For all batches at once: the target network does not change between them.
        targets = self._td_targets(self.target, batches, self._discount, self.runtime)
        parts = list(zip(batches.split(self._batch_size), targets.split(self._batch_size), strict=True))
        for batch, batch_targets in parts:
            loss, value = self._huber_loss(self.online, batch, batch_targets, self.runtime)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.totals[0].add_(loss.detach())
            self.totals[1].add_(value)
        # The last gradient stands for those of the other batches: a norm is as dear as a twentieth of an update.
        gradients = [p.grad for p in self.optimizer.param_groups[0]["params"] if p.grad is not None]
        self.totals[2].add_(len(parts) * nn.utils.get_total_norm(gradients))
        self.totals[3].add_(len(parts))

    def act(self, states: Tensor) -> Tensor:
        """The action of highest value in each state, (batch,) int64 on the CPU; waits for the device.

        Args:
            states: (batch, 4, 84, 84) uint8, on the CPU.
        """
        if self.runtime.compile == "graphs":
            return self._graphs.call(self._greedy, states, self.runtime.device)
        return self._greedy(states.to(self.runtime.device, non_blocking=True)).cpu()

    def act_in(self, buffer: DeviceReplay) -> Tensor:
        """`act` in the newest states of a buffer on the device: one copy there, one graph, one copy back, one wait.
        What it returns is overwritten by the next call."""
        buffer.send()
        return self._reply.fetch(self._graphs.play("act", lambda: self._greedy(buffer.arrive())))

    @torch.no_grad()
    def _greedy(self, states: Tensor) -> Tensor:
        with self.runtime.autocast:
            return self.online(states).argmax(1)

    @torch.no_grad()
    def update_target(self) -> None:
        """Copy the Q-network into the target network, in place."""
        torch._foreach_copy_(list(self.target.parameters()), list(self.online.parameters()))

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
