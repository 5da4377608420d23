"""Typed configuration of the vision domain; the values are in `configs/vision/`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from experiments.common.config import BaseConfig, ModelConfig
from experiments.common.schema import COUNT, EACH_PHASE, HUGE, LATER_PHASES, setting


@dataclass
class DataConfig:
    """A data set.

    Attributes:
        name: as in `experiments.vision.datasets.DATA_SETS`.
    """

    name: str = MISSING


@dataclass
class BenchmarkConfig:
    """What is learned, in which order.

    Attributes:
        name: of the config file.
        order: how the data grow, by images or by classes.
        fractions: share of the training images, or of the classes, each phase has; earlier ones stay available.
        methods_from: the first phase in which methods act that act during training.
    """

    name: str = setting(decides=LATER_PHASES)
    order: str = setting(choices=("images", "classes"))
    fractions: list[float] = setting(above=0, high=1, decides=EACH_PHASE)
    methods_from: int = setting(low=0, high=1000, decides=LATER_PHASES)


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

    train_images: int | None = setting(low=2, high=COUNT)
    test_images: int | None = setting(low=1, high=COUNT)
    width: int = setting(low=1, high=4096)
    batch_size: int = setting(low=1, high=65_536)
    epochs: list[int] = setting(low=1, high=COUNT, decides=EACH_PHASE)
    test_every: list[int] = setting(low=1, high=COUNT, decides=EACH_PHASE)


@dataclass
class OptimizerConfig:
    """Adam as in the paper (section 4.1).

    Attributes:
        learning_rate: after the warm-up.
        warmup_fraction: share of a phase's steps over which the learning rate rises linearly from 0.
        clip_norm: largest norm of the whole gradient.
    """

    learning_rate: float = setting(above=0, high=HUGE)
    warmup_fraction: float = setting(low=0, high=1)
    clip_norm: float = setting(above=0, high=HUGE)


@dataclass
class VisionConfig(BaseConfig):
    """The root."""

    data: DataConfig = field(default_factory=DataConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
