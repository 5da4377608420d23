"""Self-normalised resets (Farias and Jozefiak 2024): reset units that have been silent for longer than they used to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import check_number, check_whole
from .methods import register
from .unit_resets import UnitMethod, UnitResets
from .units import UnitLayer

EXPANSION = 2
"""By how much a threshold grows where the percentile does not lie below it."""


@register("snr")
@dataclass
class SelfNormalizedResets(UnitMethod):
    """Self-normalised resets (Farias and Jozefiak 2024, Algorithm 1, in the form of their code).

    A unit fires in a batch in which it is above 0 for some sample, at some position. Its age is the number of samples
    of the batches since then. Every `period` steps each unit gets a new threshold: the smallest age that is at least
    the ages of a share `percentile` of its firings since the last time, where only ages above 0 count, and a reset as a
    firing; 1 if there was none. If that is not below the present threshold, twice the present one. It is at least the
    samples of a batch and at most `tau_max`, and at first half of that. Then units whose age has reached their
    threshold are reset (`UnitLayer.reset`), and are of age 0. The authors' code also resets in the steps between,
    which would wait for the device in every step.

    `variant=as_published_code`: only incoming weights and biases change, and Adam's step count of the whole tensors
    becomes 0 (`UnitLayer.reset_as_published_code`).

    Attributes:
        percentile: share of a unit's firings, in [0, 1].
        tau_max: samples; the highest threshold.
        period: steps of the optimiser from one look at the units to the next: reset_freq in the authors' code.
    """

    percentile: float = 0.99
    tau_max: int = 20_000
    period: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("percentile", self.percentile, 0, 1)
        check_whole("tau_max", self.tau_max, 1, 10**7)  # which float32 counts exactly
        check_whole("period", self.period, 1, 1000)  # as many ages are kept for each unit

    def resets(self, layers: Sequence[UnitLayer], initial: Mapping[str, Tensor], seed: int) -> UnitResets:
        return SilentResets(layers, initial, self, seed)


class SilentResets(UnitResets):
    """Resets units that are silent for too long. Waits for the device every `period` steps.

    Instead of a histogram of all possible ages it keeps the ages themselves, which are at most one a step.
    """

    def __init__(
        self, layers: Sequence[UnitLayer], initial: Mapping[str, Tensor], method: SelfNormalizedResets, seed: int
    ) -> None:
        self._samples = torch.zeros(1, device=layers[0].outgoing[0].device)  # of the last batch
        super().__init__(layers, initial, method.variant, seed)
        self._method = method
        self._ages = torch.zeros_like(torch.cat(self.activity))
        self._thresholds = torch.full_like(self._ages, max(1, method.tau_max // 2))
        # Ages at firing since the last look, by step, and in the last row those at the resets then; 0: none.
        self._fired = self._ages.new_zeros(method.period + 1, len(self._ages))

    def measure(self, activity: Tensor, values: Tensor) -> None:
        """Keep the highest activation of each unit, or 0, and the number of samples."""
        activity.copy_(values[None].amax(tuple(range(values.ndim))).clamp_min(0))
        self._samples.fill_(values.shape[0] if values.ndim > 1 else 1)

    def measured(self) -> Sequence[Tensor]:
        return [*self.activity, self._samples]

    def act(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        fires = torch.cat(self.activity) > 0
        torch.mul(self._ages, fires, out=self._fired[self.steps % self._method.period])
        self._ages.add_(self._samples).masked_fill_(fires, 0)
        if self.steps % self._method.period:
            return
        self.check_measured_once()
        self._thresholds.copy_(self._new_thresholds())
        silent = self._ages >= self._thresholds
        self._fired.zero_()
        torch.mul(self._ages, silent, out=self._fired[-1])
        self._ages.masked_fill_(silent, 0)
        for layer, mask in zip(self.layers, silent.cpu().split([layer.size for layer in self.layers]), strict=True):
            units = mask.nonzero().flatten()
            if len(units):
                self.reset(layer, units, optimizers)

    def _new_thresholds(self) -> Tensor:
        """The thresholds from now on, (units of all layers,)."""
        ages = self._fired.sort(0).values
        counted = ages > 0
        count = counted.sum(0)
        # Of the ages in order, the first up to which lies the share; where none is counted, the first, which is 0.
        reached = counted & (counted.cumsum(0).double() / count >= self._method.percentile)
        age = ages.gather(0, reached.int().argmax(0)[None])[0].clamp_min(1)
        new = torch.where(age < self._thresholds, age, EXPANSION * self._thresholds)
        return new.clamp_max(self._method.tau_max).maximum(self._samples)

    def state_dict(self) -> dict[str, Any]:
        own = {"ages": self._ages, "thresholds": self._thresholds, "fired": self._fired}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._ages.copy_(state["ages"])
        self._thresholds.copy_(state["thresholds"])
        self._fired.copy_(state["fired"])
