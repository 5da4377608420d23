"""Actor and critics of SimBa (Lee et al. 2024, arXiv 2410.09754, section 4): a linear encoder, residual blocks with
layer normalisation before them, a last normalisation, linear heads; and the statistics that observations are normalised
with."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.rl.transfers import Parcel, copy

LOG_STD = (-10.0, 2.0)
NORM_EPS = 1e-6


class StackedLinear(nn.Module):
    """Several linear layers in one: (members, batch, in) -> (members, batch, out)."""

    def __init__(self, members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.members, self.in_features, self.out_features = members, in_features, out_features
        self.weight = nn.Parameter(torch.empty(members, in_features, out_features))  # so that no product copies it
        self.bias = nn.Parameter(torch.zeros(members, 1, out_features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class StackedLayerNorm(nn.Module):
    """Several layer normalisations in one: (members, batch, width) -> the same."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, width))
        self.bias = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), self.weight)


def linear(members: int, in_features: int, out_features: int) -> nn.Module:
    """A linear layer, or several stacked."""
    if members == 1:
        return nn.Linear(in_features, out_features)
    return StackedLinear(members, in_features, out_features)


def norm(members: int, width: int) -> nn.Module:
    """A layer normalisation, or several stacked."""
    return nn.LayerNorm(width, eps=NORM_EPS) if members == 1 else StackedLayerNorm(members, width)


class Block(nn.Module):
    """x + Linear(ReLU(Linear(LayerNorm(x)))), four times as wide inside."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.norm = norm(members, width)
        self.up, self.down = linear(members, width, 4 * width), linear(members, 4 * width, width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.relu(self.up(self.norm(x))))


class Encoder(nn.Sequential):
    """Linear layer, blocks, normalisation."""

    def __init__(self, members: int, inputs: int, width: int, blocks: int) -> None:
        layers = [linear(members, inputs, width), *(Block(members, width) for _ in range(blocks)), norm(members, width)]
        super().__init__(*layers)


class Actor(nn.Module):
    """The policy: mean and log standard deviation of a Gaussian that tanh brings into [-1, 1]."""

    def __init__(self, observation: int, action: int, width: int, blocks: int) -> None:
        super().__init__()
        self.encoder = Encoder(1, observation, width, blocks)
        self.mean, self.log_std = nn.Linear(width, action), nn.Linear(width, action)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:  # (batch, observation) -> 2 x (batch, action)
        features = self.encoder(observations)
        low, high = LOG_STD
        return self.mean(features), low + (high - low) / 2 * (1 + torch.tanh(self.log_std(features)))


class Critics(nn.Module):
    """Two critics as one network."""

    def __init__(self, observation: int, action: int, width: int, blocks: int) -> None:
        super().__init__()
        self.encoder = Encoder(2, observation + action, width, blocks)
        self.head = StackedLinear(2, width, 1)

    def features(self, observations: Tensor, actions: Tensor) -> Tensor:
        """What the heads see, (2, batch, width)."""
        inputs = torch.cat((observations, actions), 1)
        return self.encoder(inputs.expand(2, *inputs.shape))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:  # (batch, ...) -> (2, batch)
        return self.head(self.features(observations, actions))[..., 0]


class Agent(nn.Module):
    """Everything that a reset concerns."""

    def __init__(self, observation: int, action: int, budget: Any) -> None:
        super().__init__()
        self.actor = Actor(observation, action, budget.actor_width, budget.actor_blocks)
        self.critic = Critics(observation, action, budget.critic_width, budget.critic_blocks)


def build(observation: int, action: int, budget: Any, seed: int) -> Agent:
    """Networks on the CPU whose initial weights depend on `seed` alone: He in the blocks, orthogonal elsewhere, biases
    of zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        agent = Agent(observation, action, budget)
        for name, module in agent.named_modules():
            if isinstance(module, nn.Linear | StackedLinear):
                nn.init.zeros_(module.bias)
                initialise = he_normal_ if name.endswith((".up", ".down")) else nn.init.orthogonal_
                if isinstance(module, nn.Linear):
                    initialise(module.weight)
                else:
                    for matrix in module.weight.detach():
                        matrix.copy_(initialise(torch.empty(module.out_features, module.in_features)).T)
    return agent


def he_normal_(matrix: Tensor) -> Tensor:
    """He et al. (2015) with a normal distribution cut off at two standard deviations, as Flax has it."""
    # 0.8796 is the standard deviation of the unit normal that is cut off so.
    std = math.sqrt(2 / matrix.shape[1]) / 0.87962566103423978
    return nn.init.trunc_normal_(matrix, std=std, a=-2 * std, b=2 * std)


class Normaliser:
    """Running mean and variance of observations (Welford), with which networks see them.

    Attributes:
        mean, variance: (observation,) float64 on the CPU; count: observations seen.
        shift, scale: the same as the networks use them, float32 on the device, always in one place.
    """

    def __init__(self, size: int, device: str) -> None:
        self.mean, self.variance = torch.zeros(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64)
        self.count = 1e-4  # as if little had been seen
        self.shift, self.scale = torch.zeros(size, device=device), torch.ones(size, device=device)
        self._parcel: Parcel | None = None

    def travel_in(self, parcel: Parcel) -> None:
        """From here on what the networks use comes with `parcel`, in its fields `shift` and `scale`."""
        self._parcel = parcel
        self.shift, self.scale = parcel.there["shift"], parcel.there["scale"]
        self._publish(at_once=True)

    def update(self, observation: Tensor) -> None:
        """Take in one observation, (observation,). Where a parcel carries it, it counts when that has been sent."""
        # By NumPy, which is quicker with so few numbers.
        mean, variance, total = self.mean.numpy(), self.variance.numpy(), self.count + 1
        difference = observation.numpy().astype(np.float64) - mean
        mean += difference / total
        variance[:] = (variance * self.count + difference * difference * (self.count / total)) / total
        self.count = total
        self._publish(at_once=self._parcel is None)

    def _publish(self, at_once: bool) -> None:
        scale = 1 / np.sqrt(self.variance.numpy() + 1e-8)
        if self._parcel is not None:
            here = self._parcel.open()
            here["shift"][:], here["scale"][:] = self.mean.numpy(), scale
        if at_once:
            copy(self.shift, self.mean)
            copy(self.scale, torch.from_numpy(scale))

    def __call__(self, observations: Tensor) -> Tensor:
        """Centred and of unit variance."""
        return (observations - self.shift) * self.scale

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "variance": self.variance, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.variance, self.count = state["mean"].clone(), state["variance"].clone(), state["count"]
        self._publish(at_once=True)
