"""Networks of the vision domain. A new one is a constructor in `MODELS` and `configs/vision/model/<name>.yaml`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fire import metrics


class ResidualBlock(nn.Module):
    """The basic block of ResNet-18: two 3x3 convolutions and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 for small images: 3x3 stem without max-pool, stages of width (1, 2, 4, 8) x `width`, and a head
    with one hidden layer as wide as the last stage (512 at the paper's width of 64)."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(ResidualBlock(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, classes))

    def features(self, images: Tensor) -> Tensor:
        """Penultimate activations, (batch, 8 * width)."""
        pooled = self.blocks(self.stem(images)).mean(dim=(2, 3))
        return self.head[1](self.head[0](pooled))

    def forward(self, images: Tensor) -> Tensor:  # (batch, *shape) -> (batch, classes)
        return self.head[2](self.features(images))


def plain_cnn(classes: int, shape: tuple[int, int, int], width: int) -> nn.Module:
    """Four 3x3 convolutions of width (1, 2, 4, 8) x `width`, the last three with stride 2, and a hidden layer of
    16 x `width`. Without normalisation or shortcuts: what it computes depends on the norm of every weight."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for stage in range(4):
        layers += [nn.Conv2d(channels, width * 2**stage, 3, 1 if stage == 0 else 2, padding=1), nn.ReLU()]
        channels = width * 2**stage
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, classes),
    )  # fmt: skip


MODELS: dict[str, Callable[[int, tuple[int, int, int], int], nn.Module]] = {
    "resnet18": ResNet18,
    "plain_cnn": plain_cnn,
}
"""Constructors by name, of (classes, shape of an image, width). One may have a method `features(images)`."""


def build(name: str, classes: int, shape: tuple[int, int, int], width: int, seed: int) -> nn.Module:
    """A network on the CPU whose initial weights depend on `seed` alone (PyTorch's default initialisation)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](classes, shape, width)


@torch.no_grad()
def activations(model: nn.Module, images: Tensor) -> tuple[Tensor, list[metrics.Activation]]:
    """Penultimate activations, (batch, units), and the outputs of all nonlinearities, in order of execution.

    Penultimate activations are what a method `features` of the model gives, else the output of its last nonlinearity.

    Raises:
        ValueError: the model has no nonlinearity.
    """
    # Asked of the class: torchvision's networks have a submodule of that name, which is something else.
    described = hasattr(type(model), "features")
    with metrics.record_activations(model) as outputs:
        features = model.features(images) if described else model(images)  # type: ignore[operator]
    if not outputs:
        raise ValueError("the model has no module such as nn.ReLU, which the plasticity metrics look at")
    return features if described else outputs[-1].values, outputs
