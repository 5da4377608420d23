"""Labelled images: what a data set is, the part of it that a run uses, and the part of that in each phase.

Images are kept as bytes on the training device, where they are shuffled and normalised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.common.fetch import Files
from experiments.common.seeding import generator

Split = tuple[np.ndarray, np.ndarray]
"""Images, (count, channels, height, width) in uint8, and their labels, (count,) whole numbers from 0."""


@dataclass(frozen=True)
class DataSet:
    """An image classification data set.

    Attributes:
        classes: how many there are.
        shape: of an image: channels, height, width.
        mean, std: of each channel of the training images, whose values lie in [0, 1].
        train_images, test_images: how many there are.
        files: its files, and where to get them.
        read: training and test images from the folder of the verified files.
    """

    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_images: int
    test_images: int
    files: Files
    read: Callable[[Path], tuple[Split, Split]]

    def used(self, budget: Any) -> tuple[int, int]:
        """How many training and test images a run with this `budget` uses."""
        every = {"train_images": self.train_images, "test_images": self.test_images}
        train, test = (every[key] if budget[key] is None else budget[key] for key in every)
        return train, test


@dataclass
class Images:
    """Labelled images on one device.

    Attributes:
        images: (count, channels, height, width), uint8.
        labels: (count,), int64.
        mean, std: of each channel, by which batches are normalised.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        # Made once: a tensor made on the GPU from Python numbers would stop every batch for a transfer.
        self._mean = torch.tensor(self.mean, device=self.images.device).view(-1, 1, 1)
        self._std = torch.tensor(self.std, device=self.images.device).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str) -> "Images":
        """The same images on another device."""
        return Images(self.images.to(device), self.labels.to(device), self.mean, self.std)

    def batch(self, indices: Tensor | slice, channels_last: bool = False) -> tuple[Tensor, Tensor]:
        """Normalised float images (batch, channels, height, width) and their labels (batch,)."""
        images = self.images[indices].float().div_(255).sub_(self._mean).div_(self._std)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, self.labels[indices]


def load(data_set: DataSet, data_dir: Path, train_images: int, test_images: int, seed: int) -> tuple[Images, Images]:
    """So many training images in an order drawn from `seed`, and the first test images, on the CPU.

    Files that are missing in `data_dir` are fetched; UserError where they cannot be had.
    """
    train, test = data_set.read(data_set.files.prepare(data_dir))
    order = torch.randperm(len(train[1]), generator=generator(seed, "subset"))[:train_images].numpy()
    return _images(data_set, train, order), _images(data_set, test, slice(test_images))


def _images(data_set: DataSet, split: Split, chosen: np.ndarray | slice) -> Images:
    images, labels = (part[chosen] for part in split)
    return Images(torch.tensor(images), torch.tensor(labels, dtype=torch.int64), data_set.mean, data_set.std)


def phase_images(order: str, fraction: float, labels: Tensor, classes: int, seed: int) -> Tensor:
    """Which training images a phase has; those of earlier phases, with smaller fractions, are among them.

    Args:
        order: "images": the first ones. "classes": those of the first classes in an order drawn from `seed`.
        fraction: share of the images, or of the classes.
        labels: of all training images, (count,).
        classes: how many there are.
        seed: of the run.

    Returns:
        Indices in rising order, (count of the phase,), on the device of `labels`.
    """
    if order == "images":
        return torch.arange(round(fraction * len(labels)), device=labels.device)
    chosen = torch.randperm(classes, generator=generator(seed, "classes"))[: round(fraction * classes)]
    return torch.isin(labels, chosen.to(labels.device)).nonzero().flatten()
