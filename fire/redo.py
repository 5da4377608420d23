"""ReDo (Sokar et al. 2023): recycle dormant units while the network trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_number, check_whole
from .during import During
from .gram import on_cpu
from .matrices import unwrap
from .methods import TrainingMethod, check_initial, register
from .scope import Scope
from .units import UnitLayer, unit_layers


@register("redo")
@dataclass
class ReDo(TrainingMethod):
    """ReDo (Sokar et al. 2023): every `period` steps, units whose score is at most `tau` are reset (`UnitLayer.reset`).
    A unit's score is its mean absolute activation over the last training batch, divided by the mean of its layer.

    The layers are those in the scope's `units`. The FIRE authors' code differs: it means to zero outgoing weights and
    moments too, but does so on copies, so that neither changes, while Adam's `step` of the whole tensor returns to 0.

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

    def check(self, model: nn.Module, scope: Scope) -> None:
        """Raise ValueError where the scope names no units."""
        super().check(model, scope)
        if not scope.units:
            raise ValueError("redo needs a scope whose `units` names the network's layers; this scope names no units")

    def during(self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, seed: int = 0) -> During:
        """Measure the units from now on, by hooks; `seed` is that of the fresh weights."""
        model = unwrap(model)
        check_initial(model, initial)
        self.check(model, scope)
        return UnitResets(unit_layers(model, scope.units), initial, self.tau, self.period, seed)


class UnitResets(During):
    """Resets dormant units every `period` steps."""

    def __init__(
        self, layers: Sequence[UnitLayer], initial: Mapping[str, Tensor], tau: float, period: int, seed: int
    ) -> None:
        self._layers, self._tau, self._period = layers, tau, period
        self._initial = {
            name: initial[name].detach().cpu() for layer in layers for name in [*layer.drawn, *layer.restored]
        }
        self._generator = torch.Generator().manual_seed(seed)
        self._steps = self._reset = 0
        # Below 0 until a training pass has measured it.
        self._activity = [torch.full((layer.size,), -1.0, device=layer.outgoing[0].device) for layer in layers]
        self._hooks = [
            layer.activation.register_forward_hook(_measure_into(activity, layer))
            for layer, activity in zip(layers, self._activity, strict=True)
        ]

    @torch.no_grad()
    def after_step(self, *optimizers: torch.optim.Optimizer) -> None:
        """Count the step and, where it is time, reset the dormant units. Waits for the device only then.

        Raises:
            RuntimeError: no training pass has measured the units.
        """
        due = self.is_due()
        self._steps += 1
        if not due:
            return
        for layer, activity in zip(self._layers, on_cpu(self._activity), strict=True):
            if (activity < 0).any():
                raise RuntimeError(
                    f"nothing has measured the units of {layer.name}: no training pass has run its hook, which code "
                    "that was compiled before it was set does not know; call torch.compiler.reset() after `during`"
                )
            units = (activity <= self._tau * activity.mean()).nonzero().flatten()
            if len(units):
                layer.reset(units, self._initial, self._generator, optimizers)
                self._reset += len(units)

    def metrics(self) -> dict[str, float]:
        """How many units have been reset since the last call."""
        count, self._reset = self._reset, 0
        return {"method/units_reset": count}

    def measured(self) -> Sequence[Tensor]:
        """Mean absolute activation of the units of each layer, (units,)."""
        return self._activity

    def is_due(self) -> bool:
        return (self._steps + 1) % self._period == 0

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "units_reset": self._reset, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps, self._reset = state["steps"], state["units_reset"]
        self._generator.set_state(state["generator"].cpu())

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _measure_into(activity: Tensor, layer: UnitLayer) -> Callable[[nn.Module, Any, Tensor], None]:
    """A forward hook that keeps the mean absolute activation of each unit; only of training passes, and in place, so
    that it does the same in a captured graph and in compiled code."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if torch.is_grad_enabled() and module.training:
            values = output.detach().movedim(layer.axis, -1)[None]
            if values.shape[-1] != layer.size:
                raise ValueError(f"units of {layer.name}: its output has {values.shape[-1]}, not {layer.size}")
            activity.copy_(values.abs().mean(tuple(range(values.ndim - 1)), dtype=torch.float32))

    return hook
