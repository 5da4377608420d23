"""The learner of SAC (Haarnoja et al. 2018, arXiv 1812.05905) as SimBa has it: actor, two critics, their targets,
temperature, optimisers, and the update."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.common.config import Runtime
from experiments.common.cuda_graphs import UpdateGraphs
from experiments.common.device_replay import DeviceReplay
from experiments.common.replay import Batch
from experiments.common.transfers import Field, Parcel, Reply, to
from experiments.humanoid.models import Actor, Agent, Critics
from experiments.humanoid.normaliser import Normaliser

# Sums since the last row: of the critics' and the actor's loss, of the value and the entropy, of the norm of the
# critics' gradient; and the updates.
TOTALS = ("loss", "actor_loss", "q", "entropy", "grad_norm", "updates")


def unsquashed(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """What the actions that `draw` draws are the tanh of."""
    return mean + log_std.exp() * noise


def draw(policy: tuple[Tensor, Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions, (batch, action), and their log-probabilities, (batch,).

    Args:
        policy: mean and log standard deviation of the Gaussian, (batch, action) each.
        noise: of the unit normal, (batch, action).
    """
    mean, log_std = policy[0].float(), policy[1].float()
    raw = unsquashed(mean, log_std, noise)
    density = -(noise.square() / 2 + log_std + math.log(2 * math.pi) / 2)
    # Of tanh, whose derivative is 1 - tanh(x)^2 = 4 / (e^x + e^-x)^2; so it never becomes log 0.
    slope = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    # The tanh last: the order of gradients' sums, and so the last bit, depends on it.
    return raw.tanh(), (density - slope).sum(1)


def actor_loss(
    actor: Actor, critic: Critics, temperature: Tensor, states: Tensor, noise: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss of the policy (SAC, eq. 7), and its entropy, estimated from the actions drawn."""
    actions, log_probabilities = draw(actor(states), noise)
    value = critic(states, actions).float().amin(0)
    return (weights * (temperature * log_probabilities - value)).mean(), -log_probabilities.detach().mean()


@torch.no_grad()
def td_targets(
    actor: Actor, target: Critics, temperature: Tensor, batch: Batch, next_states: Tensor, noise: Tensor,
    discount: float,
) -> Tensor:  # fmt: skip
    """What the value of each action should be, (batch,) (SAC, eq. 3): the reward plus the discounted value of the next
    state, by the lower of the target critics."""
    actions, log_probabilities = draw(actor(next_states), noise)
    value = target(next_states, actions).float().amin(0) - temperature * log_probabilities
    return batch.rewards + discount * (1 - batch.ends) * value


def critic_loss(
    critic: Critics, states: Tensor, actions: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared errors of both critics, summed over them, and their mean value (SAC, eq. 5)."""
    values = critic(states, actions).float()
    return (weights * (values - targets).square()).sum(0).mean(), values.detach().mean()


class Learner:
    """Everything that an update changes.

    Attributes:
        agent: actor and critics.
        target: the copy of the critics that values of next states come from.
        log_temperature: a scalar.
        normaliser: of observations.
        totals: (6,) float64, as in `TOTALS`, kept on the device so that no update waits for it.
    """

    def __init__(self, agent: Agent, observation: int, actions: int, cfg: DictConfig, runtime: Runtime) -> None:
        self.runtime, self.actions = runtime, actions
        self.batch_size, self._tau, self._discount = cfg.budget.batch_size, cfg.sac.tau, cfg.sac.discount
        self._target_entropy = cfg.sac.target_entropy * actions
        self._first_log_temperature = math.log(cfg.sac.temperature)
        self._rate, self._decay = cfg.optimizer.learning_rate, cfg.optimizer.weight_decay
        self.agent = agent.to(runtime.device)
        self.target = deepcopy(self.agent.critic).requires_grad_(False)
        self.log_temperature = torch.zeros((), device=runtime.device, requires_grad=True)
        self.normaliser = Normaliser(observation, runtime.device)
        self.totals = torch.zeros(len(TOTALS), dtype=torch.float64, device=runtime.device)
        # Plain functions, because a method kept here would keep the learner, and its graphs, alive after its use.
        compiled: Any = torch.compile if runtime.compile == "true" else lambda function: function
        self._actor_loss, self._critic_loss = compiled(actor_loss), compiled(critic_loss)
        self._td_targets = compiled(td_targets)
        self._graphs, self._reply = UpdateGraphs(), Reply()
        self.begin_anew()

    def begin_anew(self) -> None:
        """The temperature as it was at first, and optimisers with empty moments."""
        with torch.no_grad():
            self.log_temperature.fill_(self._first_log_temperature)
        self.new_optimizers()

    def new_optimizers(self) -> None:
        """AdamW with empty moments for the parameters that learn."""
        options: dict[str, Any] = {"fused": True, "capturable": self.runtime.compile == "graphs"}
        actor, critic = (
            [p for p in network.parameters() if p.requires_grad] for network in (self.agent.actor, self.agent.critic)
        )
        # The temperature's step needs the same actions as the actor's and comes with it.
        groups: Any = [{"params": actor}, {"params": [self.log_temperature], "weight_decay": 0.0}]
        self.actor_optimizer = torch.optim.AdamW(groups, self._rate, weight_decay=self._decay, **options)
        self.critic_optimizer = torch.optim.AdamW(critic, self._rate, weight_decay=self._decay, **options)
        self._keep_lists()

    def _keep_lists(self) -> None:
        """What every update needs a list of; to be called when there are other parameters."""
        self._critics: list[Tensor] = list(self.agent.critic.parameters())
        self._targets: list[Tensor] = list(self.target.parameters())
        self._graphs.forget()

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Of actor with temperature, and of the critics."""
        return self.actor_optimizer, self.critic_optimizer

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """The unit normal numbers of updates on `count` transitions, (count, 2, action), drawn by a CPU generator."""
        drawn = torch.randn((count, 2, self.actions), generator=generator)
        return to(drawn, self.runtime.device)

    def update(self, batches: Batch, noise: Tensor) -> None:
        """An update for every `batch_size` transitions; `noise` as `noise` draws it."""
        given = (*batches, noise)
        if self.runtime.compile != "graphs":
            self._update(given)
            return
        self._graphs.run(self._update, given, self._changed, self.optimizers)

    @staticmethod
    def fields(observation: int, actions: int, most: int) -> dict[str, Field]:
        """What a learner needs in the parcel of a buffer on the device, with updates on at most `most` transitions."""
        return {
            "shift": ((observation,), torch.float32),
            "scale": ((observation,), torch.float32),
            "action_noise": ((1, actions), torch.float32),
            "noise": ((most, 2, actions), torch.float32),
        }

    def pack(self, parcel: Parcel, count: int, exploration: torch.Generator, drawing: torch.Generator) -> None:
        """Draw noise for the next action, and for updates on `count` transitions, into `parcel`."""
        here = parcel.open()
        for name, rows, source in (("action_noise", 1, exploration), ("noise", count, drawing)):
            if rows:
                noise = torch.from_numpy(here[name])[:rows]
                torch.randn(noise.shape, generator=source, out=noise)

    def update_from(self, buffer: DeviceReplay, count: int) -> None:
        """`update` on the `count` transitions drawn in a buffer on the device, as one graph; waits for nothing."""

        def update() -> None:
            self._update((*buffer.drawn(count), buffer.parcel.there["noise"][:count]))

        self._graphs.play(("update", count), update, self._changed, self.optimizers)

    def _changed(self) -> list[Tensor]:
        return [*self.agent.parameters(), *self.target.parameters(), self.log_temperature, self.totals]

    def _update(self, given: Sequence[Tensor]) -> None:
        batches, noise = Batch(*given[:-1]), given[-1]
        states = self.normaliser(batches.frames)  # (count, 2, observation)
        size = self.batch_size
        parts = list(zip(batches.split(size), states.split(size), noise.split(size), strict=True))
        for batch, both, drawn in parts:
            self._update_once(batch, *both.unbind(1), *drawn.unbind(1))
        # The last gradient stands for those of the other batches.
        gradients = [p.grad for p in self.critic_optimizer.param_groups[0]["params"]]
        self.totals[4].add_(len(parts) * nn.utils.get_total_norm(gradients))
        self.totals[5].add_(len(parts))

    def _update_once(
        self, batch: Batch, states: Tensor, next_states: Tensor, noise: Tensor, next_noise: Tensor
    ) -> None:
        agent, temperature = self.agent, self.log_temperature.detach().exp()
        with self.runtime.autocast:
            loss, entropy = self._actor_loss(agent.actor, agent.critic, temperature, states, noise, batch.weights)
        parameters = self.actor_optimizer.param_groups[0]["params"]
        # Of the actor alone: those of the critics, which this loss runs through, would cost as much as a forward pass.
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        # The temperature's loss is temperature * (entropy - target), in the logarithm.
        self.log_temperature.grad = temperature * (entropy - self._target_entropy)
        self.actor_optimizer.step()
        temperature = self.log_temperature.detach().exp()
        with self.runtime.autocast:
            targets = self._td_targets(
                agent.actor, self.target, temperature, batch, next_states, next_noise, self._discount
            )
            error, value = self._critic_loss(agent.critic, states, batch.actions, targets, batch.weights)
        self.critic_optimizer.zero_grad(set_to_none=True)
        error.backward()
        self.critic_optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._targets, self._critics, self._tau)
        self.totals[:4].add_(torch.stack((error.detach(), loss.detach(), value, entropy)))

    def act(self, observations: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions, (batch, action) on the CPU; waits for the device.

        Args:
            observations: (batch, observation) float32, on the CPU.
            noise: of the unit normal, (batch, action), on the CPU; None: the policy's mean, without noise.
        """
        if noise is None:
            if self.runtime.compile == "graphs":
                return self._graphs.call(self._choose, observations, self.runtime.device)
            return self._choose(observations.to(self.runtime.device)).cpu()
        return self._choose(observations.to(self.runtime.device), noise.to(self.runtime.device)).cpu()

    def act_in(self, buffer: DeviceReplay) -> Tensor:
        """`act` with noise in the newest state of a buffer on the device: one copy there, one graph, one copy back, one
        wait. What it returns is overwritten by the next call."""

        def choose() -> Tensor:
            return self._choose(buffer.arrive()[:, 0], buffer.parcel.there["action_noise"])

        buffer.send()
        return self._reply.fetch(self._graphs.play("act", choose))

    @torch.no_grad()
    def _choose(self, observations: Tensor, noise: Tensor | None = None) -> Tensor:
        with self.runtime.autocast:
            mean, log_std = self.agent.actor(self.normaliser(observations))
        return (mean.float() if noise is None else unsquashed(mean.float(), log_std.float(), noise)).tanh()

    def critics_loss(self, batch: Batch, noise: Tensor) -> Tensor:
        """Loss of the critics on a batch, uncompiled."""
        states, next_states = self.normaliser(batch.frames).unbind(1)
        temperature, critic = self.log_temperature.detach().exp(), self.agent.critic
        actor, discount = self.agent.actor, self._discount
        targets = td_targets(actor, self.target, temperature, batch, next_states, noise[:, 1], discount)
        return critic_loss(critic, states, batch.actions, targets, batch.weights)[0]

    def restructure(self, method: fire.Method, initial: Mapping[str, Tensor], scope: fire.Scope) -> None:
        """Give all networks the modules they have after `method`'s reset, and the optimisers their parameters."""
        method.restructure(self.agent, initial, scope)
        self.follow()
        self.new_optimizers()

    def follow(self) -> None:
        """Make the target critics a copy of the critics, whose modules may be new ones."""
        if self.target.state_dict().keys() == self.agent.critic.state_dict().keys():
            self.target.load_state_dict(self.agent.critic.state_dict())
        else:
            self.target = deepcopy(self.agent.critic).requires_grad_(False)
            self._keep_lists()

    def state_dict(self) -> dict[str, Any]:
        """All a checkpoint needs."""
        return {
            "model": self.agent.state_dict(),
            "target": self.target.state_dict(),
            "log_temperature": self.log_temperature.detach(),
            "normaliser": self.normaliser.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "totals": self.totals,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of networks with the same modules."""
        self.agent.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        self.normaliser.load_state_dict(state["normaliser"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.totals.copy_(state["totals"])
        self._graphs.forget()
