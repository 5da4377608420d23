"""ReDo (Sokar et al. 2023): recycle dormant units while the network trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_number, check_whole
from .methods import register
from .unit_resets import UnitMethod, UnitResets
from .units import UnitLayer


@register("redo")
@dataclass
class ReDo(UnitMethod):
    """ReDo (Sokar et al. 2023): every `period` steps, units whose score is at most `tau` are reset (`UnitLayer.reset`).
    A unit's score is its mean absolute activation over the last training batch, divided by the mean of its layer.

    `variant=as_published_code`: only incoming weights and biases change, and Adam's step count of the whole tensors
    becomes 0 (`UnitLayer.reset_as_published_code`).

    Attributes:
        tau: highest score of a dormant unit, at least 0.
        period: steps of the optimiser from one reset to the next.
    """

    tau: float = 0.1
    period: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tau", self.tau, 0)
        check_whole("period", self.period, 1)

    def resets(self, layers: Sequence[UnitLayer], initial: Mapping[str, Tensor], seed: int) -> UnitResets:
        return DormantResets(layers, initial, self, seed)


class DormantResets(UnitResets):
    """Resets dormant units every `period` steps. Waits for the device only then."""

    def __init__(self, layers: Sequence[UnitLayer], initial: Mapping[str, Tensor], method: ReDo, seed: int) -> None:
        super().__init__(layers, initial, method.variant, seed)
        self._method = method

    def act(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        if self.steps % self._method.period:
            return
        for layer, activity in zip(self.layers, self.read_activity(), strict=True):
            units = (activity <= self._method.tau * activity.mean()).nonzero().flatten()
            if len(units):
                self.reset(layer, units, optimizers)

    def is_due(self) -> bool:
        return (self.steps + 1) % self._method.period == 0
