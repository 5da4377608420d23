"""The vision loop as one writes it first: torchvision's data set, a DataLoader with worker processes, Adam."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from experiments.common import config
from experiments.vision import data, models
from experiments.vision.datasets import DATA_SETS


class Cifar10(torchvision.datasets.CIFAR10):
    """torchvision's data set, over images in memory already."""

    def __init__(self, images: data.Images) -> None:
        self.data = np.ascontiguousarray(images.images.permute(0, 2, 3, 1).numpy())
        self.targets = images.labels.tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(images.mean, images.std)])
        self.target_transform = None


class StandardLoop:
    """The loop as one writes it first."""

    def __init__(self, cfg: DictConfig, runtime: config.Runtime, train: data.Images, test: data.Images, workers: int):
        self.cfg, self.runtime, self.workers = cfg, runtime, workers
        settings: dict[str, Any] = {"num_workers": workers, "pin_memory": runtime.device == "cuda"}
        settings |= {"persistent_workers": workers > 0, "batch_size": cfg.budget.batch_size}
        self.train_loader: DataLoader = DataLoader(Cifar10(train), shuffle=True, **settings)
        self.test_loader: DataLoader = DataLoader(Cifar10(test), **settings)
        data_set = DATA_SETS[cfg.data.name]
        model = models.build(cfg.model.name, data_set.classes, data_set.shape, cfg.budget.width, seed=0)
        self.model = model.to(runtime.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=cfg.optimizer.learning_rate)

    def train(self) -> None:
        """One epoch."""
        self.model.train()
        total = 0.0
        for images, labels in self.train_loader:
            images, labels = (t.to(self.runtime.device, non_blocking=True) for t in (images, labels))
            with self.runtime.autocast:
                loss = F.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.optimizer.clip_norm)
            self.optimizer.step()
            total += loss.item()

    @torch.no_grad()
    def test(self) -> None:
        """Accuracy on the test images."""
        self.model.eval()
        correct = 0
        for images, labels in self.test_loader:
            images, labels = (t.to(self.runtime.device, non_blocking=True) for t in (images, labels))
            with self.runtime.autocast:
                correct += (self.model(images).argmax(1) == labels).sum().item()
