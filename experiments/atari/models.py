"""The Q-network of DQN: three convolutions and two linear layers (Mnih et al. 2015)."""

from typing import Any

import torch
from torch import Tensor, nn

from experiments.atari.envs import STACK


class QNetwork(nn.Module):
    """Action values of states.

    `width` is the number of the first convolution's channels, the others have twice as many (32 in the paper), `hidden`
    that of the hidden units (512).
    """

    def __init__(self, width: int, hidden: int, actions: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(STACK, width, 8, stride=4), nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 4, stride=2), nn.ReLU(inplace=True),
            nn.Conv2d(2 * width, 2 * width, 3), nn.ReLU(inplace=True),
            nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(2 * width * 7 * 7, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, actions)
        )

    def forward(self, states: Tensor) -> Tensor:  # (batch, 4, 84, 84) uint8 -> (batch, actions)
        # Channels last is what the convolutions are fast in, on CPUs above all.
        pixels = states.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)
        return self.head(self.convolutions(pixels))


def build(budget: Any, actions: int, seed: int) -> QNetwork:
    """A network on the CPU whose initial weights, Xavier-uniform with biases of zero, depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = QNetwork(budget.width, budget.hidden, actions)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
    return network.to(memory_format=torch.channels_last)
