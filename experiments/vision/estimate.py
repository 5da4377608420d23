"""What a run will cost, measured on a few steps before it starts."""

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from experiments.common.config import Runtime
from experiments.common.throughput import steps_per_second
from experiments.vision import models
from experiments.vision.datasets import DATA_SETS

SECONDS = 10.0
# Evaluating an image costs a forward pass where training costs about three.
EVALUATION_SHARE = 1 / 3


def describe_cost(cfg: DictConfig, runtime: Runtime) -> str:
    """Hours, disk and download of a run with this configuration, in one line.

    A throwaway network trains on noise for about `SECONDS`, uncompiled; no generator of the run is touched.
    """
    images = work(cfg)
    rate = images_per_second(cfg, runtime)
    size = 3 * sum(p.numel() * p.element_size() for p in model_for(cfg).parameters())
    return (
        f"estimated: {images / rate / 3600:.1f} hours here ({images / 1e6:.1f} million images at {rate:,.0f} a second, "
        f"measured; torch.compile and a shared phase 0 make it less), up to {6 * size / 1e9:.1f} GB of checkpoints, "
        f"{DATA_SETS[cfg.data.name].files.megabytes} MB of data"
    )


def work(cfg: DictConfig) -> float:
    """Images trained on in the whole run, the tested ones counted at their cost."""
    total = 0.0
    train_images, test_images = DATA_SETS[cfg.data.name].used(cfg.budget)
    for fraction, epochs, every in zip(cfg.benchmark.fractions, cfg.budget.epochs, cfg.budget.test_every, strict=True):
        tests = epochs // every + (epochs % every > 0)
        total += epochs * round(fraction * train_images)
        total += tests * test_images * EVALUATION_SHARE
    return total


def model_for(cfg: DictConfig) -> torch.nn.Module:
    """A fresh network of the run's kind."""
    data_set = DATA_SETS[cfg.data.name]
    return models.build(cfg.model.name, data_set.classes, data_set.shape, cfg.budget.width, seed=0)


def images_per_second(cfg: DictConfig, runtime: Runtime) -> float:
    """Training throughput on this machine."""
    model = model_for(cfg).to(runtime.device)
    if runtime.device == "cuda":
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(cfg.budget.batch_size, *DATA_SETS[cfg.data.name].shape, generator=generator).to(runtime.device)
    if runtime.device == "cuda":
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(cfg.budget.batch_size, dtype=torch.long, device=runtime.device)

    def step() -> None:
        with runtime.autocast:
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        float(loss.detach())  # waits for the device

    return cfg.budget.batch_size * steps_per_second(step, SECONDS)
