"""Typed configuration of the vision domain; the values are in `configs/vision/`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from experiments.common.config import BaseConfig, ScopeConfig


@dataclass
class BenchmarkConfig:
    """What is learned, in which order.

    Attributes:
        name: warm_start or continual.
        order: images or classes: how the data grow.
        fractions: share of the training images, or of the classes, each phase has; earlier ones stay available.
    """

    name: str = MISSING
    order: str = MISSING
    fractions: list[float] = MISSING


@dataclass
class DataConfig:
    """A data set by its name in `experiments.vision.datasets.DATA_SETS`."""

    name: str = MISSING


@dataclass
class ModelConfig:
    """A network by its name in `experiments.vision.models.MODELS`, and what resets touch in it."""

    name: str = MISSING
    scope: ScopeConfig = field(default_factory=ScopeConfig)


@dataclass
class BudgetConfig:
    """The numbers of a scale.

    Attributes:
        train_images: how many of the data set are used, chosen by the seed; null: all.
        test_images: how many of the data set are used, the first ones; null: all.
        width: of the network.
        batch_size: images a step; the last batch of an epoch may be smaller.
        epochs: of each phase.
        test_every: epochs between tests, for each phase; its last epoch is always tested.
    """

    train_images: int | None = MISSING
    test_images: int | None = MISSING
    width: int = MISSING
    batch_size: int = MISSING
    epochs: list[int] = MISSING
    test_every: list[int] = MISSING


@dataclass
class OptimizerConfig:
    """Adam as in the paper (section 4.1).

    Attributes:
        learning_rate: after the warm-up.
        warmup_fraction: share of a phase's steps over which the learning rate rises linearly from 0.
        clip_norm: largest norm of the whole gradient.
    """

    learning_rate: float = MISSING
    warmup_fraction: float = MISSING
    clip_norm: float = MISSING


@dataclass
class VisionConfig(BaseConfig):
    """The root."""

    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
