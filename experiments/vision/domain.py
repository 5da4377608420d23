"""The description of the vision domain."""

from typing import Any

from omegaconf import DictConfig

import fire
from experiments.common.domain import Domain, Results
from experiments.common.errors import UserError
from experiments.common.experiment import Experiment
from experiments.common.runtime import Runtime
from experiments.common.schema import digest
from experiments.vision.config import VisionConfig
from experiments.vision.datasets import DATA_SETS
from experiments.vision.models import MODELS


class Vision(Domain):
    """Image classification on data that grows (paper, section 4.1 and Figure 2)."""

    name = "vision"
    schema = VisionConfig
    phase_version = 2
    results = Results(
        metric="test/accuracy",
        title="test accuracy",
        step="epoch",
        steps="epochs",
        figure="Figure 2",
        panels={
            "warm_start-cifar10-resnet18": "warm_cifar10_resnet18",
            "continual-cifar10-resnet18": "cont_cifar10_resnet18",
        },
        from_start=lambda benchmark: benchmark.startswith("continual"),
    )

    def check(self, cfg: DictConfig) -> None:
        """Raise UserError for names that are not known and values that do not fit together."""
        for key, known in (("data", DATA_SETS), ("model", MODELS)):
            if cfg[key].name not in known:
                raise UserError(f"{key}.name={cfg[key].name} is unknown; valid: {', '.join(known)}")
        budget, fractions, data_set = cfg.budget, list(cfg.benchmark.fractions), DATA_SETS[cfg.data.name]
        train_images, _ = data_set.used(budget)
        for key, highest in (("train_images", data_set.train_images), ("test_images", data_set.test_images)):
            if budget[key] is not None and budget[key] > highest:
                raise UserError(f"budget.{key}={budget[key]} is more than the {highest} that {cfg.data.name} has")
        for key in ("epochs", "test_every"):
            if len(budget[key]) != len(fractions):
                raise UserError(f"budget.{key}={list(budget[key])} must be {len(fractions)} numbers, one a phase")
        if fractions != sorted(fractions):
            raise UserError(f"benchmark.fractions={fractions} must rise within (0, 1]")
        if cfg.precision == "fp16":
            raise UserError("precision=fp16 needs loss scaling, which this domain has not; use bf16")
        if round(fractions[0] * train_images) < 2:
            raise UserError(f"budget.train_images={train_images} leaves fewer than 2 images for phase 0")
        if cfg.benchmark.order == "classes" and round(fractions[0] * data_set.classes) < 1:
            raise UserError(f"benchmark.fractions={fractions} leave no class for phase 0 of {data_set.classes}")

    def benchmark(self, cfg: DictConfig) -> str:
        """Benchmark, data set and model."""
        return f"{cfg.benchmark.name}-{cfg.data.name}-{cfg.model.name}"

    def choices(self, cfg: DictConfig) -> list[str]:
        """The words that choose them."""
        return [f"benchmark={cfg.benchmark.name}", f"data={cfg.data.name}", f"model={cfg.model.name}"]

    def headline(self, cfg: DictConfig, opened: Any) -> str:
        """Images, width and epochs."""
        images, epochs = DATA_SETS[cfg.data.name].used(cfg.budget)[0], "+".join(map(str, cfg.budget.epochs))
        return f"{images:,} images, width {cfg.budget.width}, {epochs} epochs"

    def extra_identity(self, cfg: DictConfig, opened: Any) -> dict[str, Any]:
        """What the data set's name stands for."""
        data_set = DATA_SETS[cfg.data.name]
        facts = [dict(data_set.files.checksums), data_set.mean, data_set.std, data_set.classes, data_set.shape]
        return {"data_set": digest({"facts": facts})[:16]}

    def experiment(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, opened: Any) -> Experiment:
        """Load the images and build the network."""
        from experiments.vision.train import VisionTraining

        return VisionTraining(cfg, runtime, method)


VISION = Vision()
