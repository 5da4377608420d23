"""The vision experiment against a standard torchvision loop.

Both train the same network on the same images with the same batch size and precision. The standard one is what one
writes first: `torchvision.datasets.CIFAR10` with ToTensor and Normalize, a DataLoader with worker processes, Adam,
`loss.item()` for the log, and a test loop of the same kind.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fire
from experiments.common.config import compose_domain, data_folder
from experiments.common.runtime import resolve_runtime
from experiments.vision import data, models
from experiments.vision.config import VisionConfig
from experiments.vision.datasets.cifar10 import CIFAR10
from experiments.vision.train import VisionTraining
from scripts.benchmark.cases import Case, Loop

SCALES = {"cpu": ["scale=laptop"], "cuda": ["scale=paper", "precision=bf16"]}
WORKERS = {"cpu": (0, 2), "cuda": (8,)}  # processes of the DataLoader


def cases(device: str, synthetic: bool) -> list[Case]:
    """An epoch of both loops, with its test."""
    cfg = compose_domain("vision", VisionConfig, [*SCALES[device], f"device={device}"])
    name = f"whole epoch, width {cfg.budget.width}, batch {cfg.budget.batch_size}, {cfg.precision}"
    loops = {"ours": partial(ours, cfg, synthetic)}
    for workers in WORKERS[device]:
        loops[f"standard, {workers} workers"] = partial(standard, cfg, synthetic, workers)
    return [Case(f"{name}, synthetic images" if synthetic else name, loops, "images")]


def images(cfg: DictConfig, synthetic: bool) -> list[data.Images]:
    """For training and for tests; random ones if `synthetic`, which are as much work."""
    counts = CIFAR10.used(cfg.budget)
    if not synthetic:
        return list(data.load(CIFAR10, data_folder(cfg), *counts, seed=0))
    made = [(torch.randint(256, (n, *CIFAR10.shape), dtype=torch.uint8), torch.randint(10, (n,))) for n in counts]
    return [data.Images(*pair, CIFAR10.mean, CIFAR10.std) for pair in made]


def ours(cfg: DictConfig, synthetic: bool, _: ExitStack) -> Loop:
    """An epoch as `python -m experiments.vision` trains it."""
    runtime = resolve_runtime(cfg, compile_on_cuda="graphs")
    with patch.object(data, "load", return_value=images(cfg, synthetic)):
        training = VisionTraining(cfg, runtime, fire.build("none"))
    learner, count = training.learner, len(training.train_set)

    def epoch() -> None:
        training.model.train()
        order = torch.randperm(count).to(runtime.device)
        for indices in order.split(cfg.budget.batch_size):
            learner.update(indices, cfg.optimizer.learning_rate)
        learner.read_totals()
        learner.test()

    return Loop(epoch, count)


def standard(cfg: DictConfig, synthetic: bool, workers: int, _: ExitStack) -> Loop:
    """An epoch as one writes it first."""
    from torchvision import datasets, transforms

    class Cifar10(datasets.CIFAR10):
        """torchvision's data set, over images in memory already."""

        def __init__(self, part: data.Images) -> None:
            self.data = part.images.permute(0, 2, 3, 1).contiguous().numpy()
            self.targets = part.labels.tolist()
            self.transform = transforms.Compose(
                [transforms.ToTensor(), transforms.Normalize(CIFAR10.mean, CIFAR10.std)]
            )
            self.target_transform = None

    runtime = resolve_runtime(cfg)
    train, test = map(Cifar10, images(cfg, synthetic))
    settings: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    settings |= {"pin_memory": runtime.device == "cuda", "batch_size": cfg.budget.batch_size}
    train_loader: DataLoader = DataLoader(train, shuffle=True, **settings)
    test_loader: DataLoader = DataLoader(test, **settings)
    model = models.build(cfg.model.name, 10, CIFAR10.shape, cfg.budget.width, seed=0).to(runtime.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.optimizer.learning_rate)

    def batches(loader: DataLoader) -> Iterator[list[Tensor]]:
        for batch in loader:
            yield [tensor.to(runtime.device, non_blocking=True) for tensor in batch]

    def epoch() -> None:
        model.train()
        for images, labels in batches(train_loader):
            with runtime.autocast:
                loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), cfg.optimizer.clip_norm)
            optimizer.step()
            loss.item()
        model.eval()
        for images, labels in batches(test_loader):
            with torch.no_grad(), runtime.autocast:
                (model(images).argmax(1) == labels).sum().item()

    return Loop(epoch, len(train))
