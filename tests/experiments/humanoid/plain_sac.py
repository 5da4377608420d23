"""SAC in float64 as one writes it first: three optimisers, everything through backward()."""

import math
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from experiments.common.replay import Batch
from experiments.humanoid.learner import Learner


class PlainSac:
    """Learns like a learner, from the weights it has now."""

    def __init__(self, learner: Learner) -> None:
        self.agent, self.target = deepcopy(learner.agent).double(), deepcopy(learner.target).double()
        self.log_temperature = nn.Parameter(learner.log_temperature.detach().double().clone())
        self.normaliser = deepcopy(learner.normaliser)
        self._batch_size, self._tau, self._discount = learner.batch_size, learner._tau, learner._discount
        self._target_entropy, self._first = learner._target_entropy, learner._first_log_temperature
        self._rate, self._decay = learner._rate, learner._decay
        self.new_optimizers()

    def new_optimizers(self) -> None:
        groups = (
            (self.agent.actor.parameters(), self._decay), (self.agent.critic.parameters(), self._decay),
            ([self.log_temperature], 0.0),
        )  # fmt: skip
        self.optimizers = [
            torch.optim.AdamW([p for p in parameters if p.requires_grad], self._rate, weight_decay=decay, foreach=False)
            for parameters, decay in groups
        ]

    def begin_anew(self) -> None:
        with torch.no_grad():
            self.log_temperature.fill_(self._first)
        self.new_optimizers()

    def follow(self) -> None:
        self.target = deepcopy(self.agent.critic).requires_grad_(False)

    def update(self, batches: Batch, noise: Tensor) -> None:
        size = self._batch_size
        for batch, drawn in zip(batches.split(size), noise.double().split(size), strict=True):
            self._update(Batch(*(tensor.double() for tensor in batch)), *drawn.unbind(1))

    def _update(self, batch: Batch, noise: Tensor, next_noise: Tensor) -> None:
        normaliser, critic = self.normaliser, self.agent.critic
        mean, variance = normaliser.mean.to(noise.device), normaliser.variance.to(noise.device)
        states, next_states = ((batch.frames - mean) / (variance + 1e-8).sqrt()).unbind(1)
        actions, log_probabilities = self._draw(states, noise)
        temperature = self.log_temperature.exp().detach()
        self._step(0, (batch.weights * (temperature * log_probabilities - critic(states, actions).amin(0))).mean())
        entropy = -log_probabilities.detach().mean()
        self._step(2, self.log_temperature.exp() * (entropy - self._target_entropy))
        temperature = self.log_temperature.exp().detach()
        with torch.no_grad():
            actions, log_probabilities = self._draw(next_states, next_noise)
            after = self.target(next_states, actions).amin(0) - temperature * log_probabilities
            targets = batch.rewards + self._discount * (1 - batch.ends) * after
        errors = (critic(states, batch.actions) - targets).square()
        self._step(1, (batch.weights * errors).mean(1).sum())
        with torch.no_grad():
            for there, here in zip(self.target.parameters(), critic.parameters(), strict=True):
                there.copy_((1 - self._tau) * there + self._tau * here)

    def _draw(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.agent.actor(states)
        raw = mean + log_std.exp() * noise
        slope = 2 * (math.log(2) - raw - F.softplus(-2 * raw))  # the logarithm of 1 - tanh^2
        return raw.tanh(), (Normal(mean, log_std.exp()).log_prob(raw) - slope).sum(1)

    def _step(self, which: int, loss: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        self.optimizers[which].step()
