"""The learner of SAC (Haarnoja et al. 2018, arXiv 1812.05905) as SimBa has it: actor, two critics, their targets,
temperature, optimisers, and the update."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from experiments.common.experiment import with_penalty
from experiments.common.runtime import Runtime
from experiments.humanoid.models import Actor, Agent, Critics, Normaliser
from experiments.rl import learner
from experiments.rl.device_replay import DeviceReplay
from experiments.rl.learner import compiled
from experiments.rl.replay import Batch
from experiments.rl.transfers import Field, Parcel, to


def draw(policy: tuple[Tensor, Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions, (batch, action), and their log-probabilities, (batch,).

    Args:
        policy: mean and log standard deviation of the Gaussian, (batch, action) each.
        noise: of the unit normal, (batch, action).
    """
    mean, log_std = policy[0].float(), policy[1].float()
    raw = mean + log_std.exp() * noise
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


class Learner(learner.Learner):
    """SAC. Its totals are the critics' and the actor's loss, the mean value and entropy, the norm of the critics'
    gradient, and the updates.

    Attributes:
        log_temperature: a scalar.
        normaliser: of observations.
    """

    TOTALS = (
        "train/loss", "train/actor_loss", "train/q", "train/entropy", "plasticity/grad_norm", "updates",
    )  # fmt: skip
    network: Agent
    target: Critics

    def __init__(self, agent: Agent, observation: int, actions: int, cfg: DictConfig, runtime: Runtime) -> None:
        """`observation`, `actions`: how many numbers those are."""
        super().__init__(agent, runtime, cfg.budget.batch_size)
        self.observation, self.actions = observation, actions
        self.sac, self.settings = cfg.sac, cfg.optimizer
        self._target_entropy = cfg.sac.target_entropy * actions
        self.log_temperature = torch.zeros((), device=runtime.device, requires_grad=True)
        self.normaliser = Normaliser(observation, runtime.device)
        self._actor_loss, self._critic_loss = compiled(actor_loss, runtime), compiled(critic_loss, runtime)
        self._td_targets = compiled(td_targets, runtime)
        self.new_optimizers()

    def source_of_target(self) -> Critics:
        return self.network.critic

    def make_optimizers(self, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
        """AdamW of the actor and of the critics; the temperature, in the actor's, starts again from its first value."""
        with torch.no_grad():
            self.log_temperature.fill_(math.log(self.sac.temperature))
        networks = (self.network.actor, self.network.critic)
        actor, critic = ([p for p in network.parameters() if p.requires_grad] for network in networks)
        # The temperature's step needs the same actions as the actor's and comes with it.
        groups: Any = [{"params": actor}, {"params": [self.log_temperature], "weight_decay": 0.0}]
        rate, options = self.settings.learning_rate, {**options, "weight_decay": self.settings.weight_decay}
        return [torch.optim.AdamW(groups, rate, **options), torch.optim.AdamW(critic, rate, **options)]

    def given(self, batch: Batch, generator: torch.Generator) -> Sequence[Tensor]:
        """With unit normal numbers, (batch, 2, action), for the actions in the states and in the next states."""
        drawn = torch.randn((len(batch.rewards), 2, self.actions), generator=generator)
        return *batch, to(drawn, self.runtime.device)

    def fields(self, most: int) -> dict[str, Field]:
        """Noise, and the normaliser's numbers."""
        return {
            "shift": ((self.observation,), torch.float32),
            "scale": ((self.observation,), torch.float32),
            "action_noise": ((1, self.actions), torch.float32),
            "noise": ((most, 2, self.actions), torch.float32),
        }

    def pack(self, parcel: Parcel, count: int, exploration: torch.Generator, drawing: torch.Generator) -> None:
        """Draw noise for the next action, and for updates on `count` transitions, into `parcel`."""
        here = parcel.open()
        for name, rows, source in (("action_noise", 1, exploration), ("noise", count, drawing)):
            if rows:
                noise = torch.from_numpy(here[name])[:rows]
                torch.randn(noise.shape, generator=source, out=noise)

    def _drawn(self, buffer: DeviceReplay, count: int) -> Sequence[Tensor]:
        return *buffer.drawn(count), buffer.parcel.there["noise"][:count]

    def _changed(self) -> list[Tensor]:
        return [*self.network.parameters(), *self.target.parameters(), self.log_temperature]

    def _update(self, given: Sequence[Tensor]) -> None:
        batches, noise, size = Batch(*given[:-1]), given[-1], self.batch_size
        states = self.normaliser(batches.frames)  # (count, 2, observation)
        parts = list(zip(batches.split(size), states.split(size), noise.split(size), strict=True))
        for batch, both, drawn in parts:
            self._update_once(batch, *both.unbind(1), *drawn.unbind(1))
        # The last gradient stands for those of the other batches.
        gradients = [p.grad for p in self.optimizers[1].param_groups[0]["params"]]
        self.totals[4].add_(len(parts) * nn.utils.get_total_norm(gradients))
        self.totals[5].add_(len(parts))

    def _update_once(
        self, batch: Batch, states: Tensor, next_states: Tensor, noise: Tensor, next_noise: Tensor
    ) -> None:
        actor, critic, temperature = self.network.actor, self.network.critic, self.log_temperature.detach().exp()
        actor_optimizer, critic_optimizer = self.optimizers
        with self.runtime.autocast:
            loss, entropy = self._actor_loss(actor, critic, temperature, states, noise, batch.weights)
        parameters = actor_optimizer.param_groups[0]["params"]
        # Of the actor alone: those of the critics, which this loss runs through, would cost as much as a forward pass.
        gradients = torch.autograd.grad(with_penalty(loss, self.during), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        # The temperature's loss is temperature * (entropy - target), in the logarithm.
        self.log_temperature.grad = temperature * (entropy - self._target_entropy)
        actor_optimizer.step()
        temperature = self.log_temperature.detach().exp()
        with self.runtime.autocast:
            targets = self._td_targets(
                actor, self.target, temperature, batch, next_states, next_noise, self.sac.discount
            )
            error, value = self._critic_loss(critic, states, batch.actions, targets, batch.weights)
        critic_optimizer.zero_grad(set_to_none=True)
        # The penalty is of the actor's parameters too, which get no gradient here.
        with_penalty(error, self.during).backward(inputs=critic_optimizer.param_groups[0]["params"])
        critic_optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(critic.parameters()), self.sac.tau)
        self.totals[:4].add_(torch.stack((error.detach(), loss.detach(), value, entropy)))

    def _act_in(self, buffer: DeviceReplay) -> Tensor:
        return self.policy(buffer.arrive()[:, 0], buffer.parcel.there["action_noise"])

    @torch.no_grad()
    def policy(self, observations: Tensor, noise: Tensor | None = None) -> Tensor:
        """The actions, (batch, action), drawn with `noise` or without."""
        with self.runtime.autocast:
            mean, log_std = self.network.actor(self.normaliser(observations))
        return (mean.float() if noise is None else mean.float() + log_std.float().exp() * noise).tanh()

    def critics_loss(self, given: Sequence[Tensor]) -> Tensor:
        """Loss of the critics on a batch with noise, given as to an update; uncompiled."""
        batch, noise = Batch(*given[:-1]), given[-1]
        states, next_states = self.normaliser(batch.frames).unbind(1)
        actor, critic, temperature = self.network.actor, self.network.critic, self.log_temperature.detach().exp()
        targets = td_targets(actor, self.target, temperature, batch, next_states, noise[:, 1], self.sac.discount)
        return critic_loss(critic, states, batch.actions, targets, batch.weights)[0]

    def state_dict(self) -> dict[str, Any]:
        own = {"log_temperature": self.log_temperature.detach(), "normaliser": self.normaliser.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        self.normaliser.load_state_dict(state["normaliser"])
