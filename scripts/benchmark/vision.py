"""The vision experiment against a standard torchvision loop, and four methods with and without the shared phase.

Both loops train the same network on the same images with the same batch size and precision. The standard one is what
one writes first: `torchvision.datasets.CIFAR10` with ToTensor and Normalize, a DataLoader with worker processes, Adam,
`loss.item()` for the log, and a test loop of the same kind.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torchvision
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from experiments.common import config
from experiments.common.errors import StopSignals
from experiments.common.progress import Progress
from experiments.common.workspace import Workspace
from experiments.vision import data, models
from experiments.vision.config import VisionConfig
from experiments.vision.train import VisionTraining, describe
from scripts.benchmark.timing import alternate, ratio

SCALES = {"cpu": ["scale=laptop"], "cuda": ["scale=paper", "precision=bf16"]}
# Phase 0 and 1 in the paper's proportions: as many images in each, and a fifth as many test images as training images.
PROPORTIONS = {"train_images": 1000, "test_images": 200, "epochs": "[100,10]", "test_every": "[1,1]"}
METHODS = "none,shrink_perturb,full_reset,fire"
WORKERS = sorted({0, 2, min(8, os.cpu_count() or 1)})


class Cifar10(torchvision.datasets.CIFAR10):
    """torchvision's data set, over images in memory already."""

    def __init__(self, images: data.Images) -> None:
        self.data = np.ascontiguousarray(images.images.permute(0, 2, 3, 1).numpy())
        self.targets = images.labels.tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(data.MEAN, data.STD)])
        self.target_transform = None


class StandardLoop:
    """The loop as one writes it first."""

    def __init__(self, cfg: DictConfig, runtime: config.Runtime, train: data.Images, test: data.Images, workers: int):
        self.cfg, self.runtime, self.workers = cfg, runtime, workers
        settings: dict[str, Any] = {"num_workers": workers, "pin_memory": runtime.device == "cuda"}
        settings |= {"persistent_workers": workers > 0, "batch_size": cfg.budget.batch_size}
        self.train_loader: DataLoader = DataLoader(Cifar10(train), shuffle=True, **settings)
        self.test_loader: DataLoader = DataLoader(Cifar10(test), **settings)
        self.model = models.build(cfg.model.name, cfg.budget.width, 10, seed=0).to(runtime.device)
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


@contextmanager
def ours(cfg: DictConfig, runtime: config.Runtime, train: data.Images, test: data.Images) -> Iterator[Callable]:
    """A function that trains one epoch as `python -m experiments.vision` does, with its test or without."""
    training = VisionTraining(cfg, runtime, config.build_method(cfg), train, test)
    job = describe(cfg, runtime)
    with StopSignals() as stop, Workspace(Path(cfg.outputs_dir), job.identity, cfg, stop=stop) as workspace:
        workspace.resume()
        with Progress("epoch", sys.maxsize, 0, "images") as progress:

            def epoch(tested: bool) -> None:
                cfg.budget.test_every = [1 if tested else sys.maxsize] * 2
                training.train_epoch(workspace, len(train), sys.maxsize, progress)

            yield epoch


def run(device: str, repeats: int) -> pd.DataFrame:
    """Images a second of both loops, and the share of its cost that the shared phase leaves to a sweep."""
    with tempfile.TemporaryDirectory() as scratch:
        overrides = [*SCALES[device], f"device={device}", f"outputs_dir={scratch}/run"]
        cfg = config.compose_domain("vision", VisionConfig, overrides)
        cfg.optimizer.warmup_fraction = 0.0  # of a number of epochs that is not known here
        loops = _loops(cfg, config.resolve_runtime(cfg, compile_on_cuda="graphs"), repeats)
        sweeps = _sweeps(device, Path(scratch))
    return pd.concat([loops, sweeps], ignore_index=True)


def _loops(cfg: DictConfig, runtime: config.Runtime, repeats: int) -> pd.DataFrame:
    budget = cfg.budget
    train, test = data.load("cifar10", config.data_folder(cfg), budget.train_images, budget.test_images, seed=0)
    standard = {f"standard, {n} workers": StandardLoop(cfg, runtime, train, test, n) for n in WORKERS}
    with ours(cfg, runtime, train, test) as epoch:
        contestants: dict[str, Callable[[], object]] = {}
        for name, loop in standard.items():
            contestants |= {f"{name}, training": loop.train, f"{name}, test": loop.test}
        contestants |= {"ours, training": partial(epoch, False), "ours, whole epoch": partial(epoch, True)}
        times = alternate(contestants, repeats, runtime.device)
    names = [*standard, "ours"]
    trained = {name: times[f"{name}, training"] for name in names}
    whole = {"ours": times["ours, whole epoch"]}
    for name in standard:
        whole[name] = [a + b for a, b in zip(trained[name], times[f"{name}, test"], strict=True)]
    setting = f"width {budget.width}, batch {budget.batch_size}, {runtime.precision}"
    return pd.DataFrame(
        {
            "case": f"{part}, {setting}",
            "loop": name,
            "seconds": statistics.median(values[name]),
            "images_per_second": budget.train_images / statistics.median(values[name]),
            "over_ours": ratio(values[name], values["ours"]),
            "repeats": repeats,
        }
        for part, values in (("training", trained), ("whole epoch", whole))
        for name in names
    )


def _sweeps(device: str, scratch: Path) -> pd.DataFrame:
    """Four methods from one phase 0 against four runs that each train their own."""
    overrides = [f"budget.{key}={value}" for key, value in PROPORTIONS.items()]
    elapsed = {}
    for name, cache in (("shared phase", "true"), ("four separate runs", "false")):
        command = [
            sys.executable, "-m", "experiments.vision", "-m", f"method={METHODS}", f"device={device}",
            f"phase_cache={cache}", "compile=false", "wandb.mode=disabled",
            f"outputs_dir={scratch / cache}", *overrides,
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        elapsed[name] = time.perf_counter() - started
        print(f"sweep, {name}: {elapsed[name]:.1f} s", flush=True)
    return pd.DataFrame(
        {
            "case": "sweep of four methods, paper's proportions",
            "loop": name,
            "seconds": value,
            "over_ours": value / elapsed["shared phase"],
            "repeats": 1,
        }
        for name, value in elapsed.items()
    )


def table(results: pd.DataFrame) -> str:
    """Markdown: a row for each loop."""
    rate = results.images_per_second.map("{:,.0f}".format).where(results.images_per_second.notna(), "")
    shown = pd.DataFrame(
        {
            "": results.case.where(~results.case.duplicated(), ""),
            "loop": results.loop,
            "seconds": results.seconds.map("{:.1f}".format),
            "training images / s": rate,
            "this / ours": results.over_ours.map("{:.2f}".format),
        }
    )
    return shown.to_markdown(index=False, disable_numparse=True)
