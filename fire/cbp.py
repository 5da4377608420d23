"""Continual backpropagation (Dohare et al. 2024): replace units of low utility, a few at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import check_number, check_whole
from .methods import register
from .unit_resets import UnitMethod, UnitResets
from .units import UnitLayer


@register("cbp")
@dataclass
class ContinualBackprop(UnitMethod):
    """Continual backpropagation (Dohare et al. 2024, "Loss of plasticity in deep continual learning", Algorithm 1).

    A unit is mature once more than `maturity_threshold` steps have passed since training began or it was replaced. Each
    step adds `replacement_rate` times the number of a layer's mature units to what the layer owes. Once that is 1 or
    more, as many mature units as its whole part, those of lowest utility, are replaced (`UnitLayer.reset`). Utility is
    the mean absolute outgoing weight times a running mean of the mean absolute activation, which starts from 0 and is
    divided by 1 - decay^age, so that it is no smaller for a unit that was replaced lately. New biases are 0. Dohare et
    al. take the running mean of the product, of sums over outgoing weights.

    `variant=as_published_code`: the running mean is added to but never decays, and replaced units keep theirs; a layer
    with a mature unit owes `replacement_rate` times all its units; the optimiser's moments stay. The authors' code also
    draws incoming weights from N(0, 2 / fan_in), which is 2.45 times as wide as the layers' own.

    Attributes:
        replacement_rate: share of a layer's mature units that is replaced each step, in [0, 1].
        maturity_threshold: steps of the optimiser.
        decay: of the running mean in a step, in [0, 1].
    """

    replacement_rate: float = 1e-4
    maturity_threshold: int = 100
    decay: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("replacement_rate", self.replacement_rate, 0, 1)
        check_whole("maturity_threshold", self.maturity_threshold, 0)
        check_number("decay", self.decay, 0, 1)

    def resets(self, layers: Sequence[UnitLayer], initial: Mapping[str, Tensor], seed: int) -> UnitResets:
        return LowUtilityResets(layers, initial, self, seed)


class LowUtilityResets(UnitResets):
    """Replaces mature units of low utility.

    Never waits for the device but in its first step, to see that the hooks run. How many units of a layer are mature is
    known without it: all begin at age 0, and only mature ones are replaced, so each replacement makes as many mature
    ones young. Which ones they are only the device knows.
    """

    def __init__(
        self, layers: Sequence[UnitLayer], initial: Mapping[str, Tensor], method: ContinualBackprop, seed: int
    ) -> None:
        super().__init__(layers, initial, method.variant, seed)
        self._method = method
        self._means = torch.zeros_like(torch.cat(self.activity))
        self._born = torch.zeros_like(self._means, dtype=torch.int64)  # the step of the last replacement
        # For each layer: how many units are mature, how many became young in which step, and what it owes.
        self._mature = [0] * len(layers)
        self._young = [[[0, layer.size]] for layer in layers]
        self._owed = [0.0] * len(layers)

    def act(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.check_measured_once()
        decay, activity = self._method.decay, torch.cat(self.activity)
        if self.published:
            self._means.lerp_(activity, 1 - decay)
        else:
            self._means.add_(activity, alpha=1 - decay)
        sizes = [layer.size for layer in self.layers]
        states = zip(self.layers, self._means.split(sizes), self._born.split(sizes), strict=True)
        for number, (layer, means, born) in enumerate(states):
            if count := self._due(number):
                units = self._least_useful(layer, means, born, count)
                if self.published:
                    self.reset(layer, units, optimizers)
                    means.index_fill_(0, units, 0)
                else:  # outgoing weights and normalisation are reset; it knows of no optimiser
                    self.reset(layer, units, ())
                born.index_fill_(0, units, self.steps)

    def reset(self, layer: UnitLayer, units: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        layer.reset(units, self._initial, self._generator, optimizers)
        for tensor in layer.drawn.values():
            if tensor.ndim == 1:  # a bias
                tensor.index_fill_(0, units, 0)
        self._reset += len(units)

    def _due(self, number: int) -> int:
        """How many units of a layer are to be replaced now; counted as young from now on."""
        young, size = self._young[number], self.layers[number].size
        while young and self.steps - young[0][0] > self._method.maturity_threshold:
            self._mature[number] += young.pop(0)[1]
        mature = self._mature[number]
        self._owed[number] += self._method.replacement_rate * (mature if self.published else size * (mature > 0))
        whole = int(self._owed[number])
        self._owed[number] -= whole
        count = min(whole, mature)
        if count:
            self._mature[number] -= count
            young.append([self.steps, count])
        return count

    def _least_useful(self, layer: UnitLayer, means: Tensor, born: Tensor, count: int) -> Tensor:
        """The mature units of lowest utility, of equal ones the first, (count,) on the device."""
        utility, ages = means * layer.outgoing_magnitude().to(means), self.steps - born
        if self.published:
            utility /= (1 - self._method.decay**ages).clamp_min(1e-12)
        young = ages <= self._method.maturity_threshold
        return utility.masked_fill_(young, torch.inf).sort(stable=True).indices[:count]

    def state_dict(self) -> dict[str, Any]:
        counts = {"mature": list(self._mature), "young": [[*map(list, young)] for young in self._young]}
        return {**super().state_dict(), "means": self._means, "born": self._born, "owed": list(self._owed), **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._means.copy_(state["means"])
        self._born.copy_(state["born"])
        self._owed, self._mature = list(state["owed"]), list(state["mature"])
        self._young = [[list(one) for one in young] for young in state["young"]]
