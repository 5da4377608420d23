"""Short runs on noise, in memory: what a captured step is compared with, on the CPU and on a GPU."""

import signal
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from experiments.common.config import build_method, compose_domain
from experiments.common.errors import Interrupted
from experiments.common.runtime import Runtime
from experiments.vision import data, learner
from experiments.vision.config import VisionConfig
from experiments.vision.data import Images
from experiments.vision.datasets.cifar10 import CIFAR10
from experiments.vision.train import VisionTraining
from tests.conftest import CLOCK

# Phases of 80 and 200 images: the last batch of an epoch has 16 and 8. All learning rates are multiples of 2^-13, which
# float32 holds exactly: a captured step has the rate in float32, an eager one in float64.
SETTINGS = (
    "scale=smoke", "outputs_dir=outputs", "budget.train_images=200", "budget.test_images=20", "budget.epochs=[2,2]",
    "budget.batch_size=64", "benchmark.fractions=[0.4,1.0]", "optimizer.learning_rate=0.0009765625",
    "optimizer.warmup_fraction=1.0",
)  # fmt: skip


class Storage:
    """What the loop needs of a workspace, in memory; the run is stopped when it asks for the `stop_at`-th time whether
    to save."""

    path = Path("memory")

    def __init__(self, stop_at: int | None = None) -> None:
        self.log: list[dict[str, Any]] = []
        self.state: dict[str, Any] = {}
        self._asked, self._stop_at = 0, stop_at

    def save_due(self) -> bool:
        self._asked += 1
        return self._asked == self._stop_at

    def save(self, state: dict[str, Any]) -> None:
        self.state = deepcopy(state)

    def stop_if_asked(self) -> None:
        raise Interrupted(signal.SIGINT)

    def numbers(self) -> list[dict[str, Any]]:
        """The rows without clock readings."""
        return [{key: value for key, value in row.items() if not key.startswith(CLOCK)} for row in self.log]


def training(compile: str, *overrides: str, device: str = "cpu") -> VisionTraining:
    """A run on noise."""
    cfg = compose_domain("vision", VisionConfig, [*SETTINGS, *overrides])
    generator = torch.Generator().manual_seed(0)
    sets = [
        Images(
            torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator),
            torch.randint(0, 10, (count,), generator=generator),
            CIFAR10.mean,
            CIFAR10.std,
        )
        for count in (cfg.budget.train_images, cfg.budget.test_images)
    ]
    torch.set_num_threads(1)
    with patch.object(data, "load", return_value=sets):
        return VisionTraining(cfg, Runtime(device, cfg.precision, compile, 1), build_method(cfg))


def trained(one: VisionTraining, storage: Storage) -> list[dict[str, Any]]:
    """The rows of a run to its end, or to where its storage stops it."""
    one.train(storage, one.phases)  # type: ignore[arg-type]
    return storage.numbers()


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile gives back what it is given, so that what a graph captures are the operations of an eager step."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(learner, "EVAL_BATCH", {"cpu": 12, "cuda": 12})  # two batches, of 12 and of 8
