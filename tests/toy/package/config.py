"""Settings of the toy domain."""

from dataclasses import dataclass, field

from experiments.common.config import BaseConfig, ModelConfig
from experiments.common.schema import EACH_PHASE, setting


@dataclass
class BudgetConfig:
    """The numbers of a scale.

    Attributes:
        steps: of each phase.
        width: of the network.
    """

    steps: list[int] = setting(low=1, length=2, decides=EACH_PHASE)
    width: int = setting(low=1)


@dataclass
class ToyConfig(BaseConfig):
    """The root."""

    model: ModelConfig = field(default_factory=ModelConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
