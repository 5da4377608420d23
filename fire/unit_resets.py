"""What methods that reset units of a network while it trains have in common: settings, measuring hooks, bookkeeping."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_variant
from .during import During
from .gram import on_cpu
from .matrices import unwrap
from .methods import TrainingMethod, check_initial
from .scope import Scope
from .units import UnitLayer, unit_layers


@dataclass
class UnitMethod(TrainingMethod):
    """Base of methods that reset units. The layers are those in the scope's `units`.

    Attributes:
        variant: published or as_published_code. Each method says what the authors' code does in another way.
    """

    variant: str = field(default="published", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_variant(self.variant)

    def check(self, model: nn.Module, scope: Scope) -> None:
        """Raise ValueError where the scope names no units."""
        super().check(model, scope)
        if not scope.units:
            raise ValueError(
                f"{self.method_name} needs a scope whose `units` names the network's layers; this scope names no units"
            )

    def during(self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, seed: int = 0) -> During:
        """Measure the units from now on, by hooks; `seed` is that of the fresh weights."""
        model = unwrap(model)
        check_initial(model, initial)
        self.check(model, scope)
        return self.resets(unit_layers(model, scope.units), initial, seed)

    @abstractmethod
    def resets(self, layers: Sequence[UnitLayer], initial: Mapping[str, Tensor], seed: int) -> "UnitResets":
        """What it does to the units of these layers."""


class UnitResets(During):
    """Measures units in training passes and resets some after a step. A subclass implements `act`.

    Attributes:
        layers: whose units these are.
        steps: of the optimiser so far, the present one included.
        activity: for each layer what its units did in the last training pass, (units,); below 0 until there was one.
    """

    def __init__(self, layers: Sequence[UnitLayer], initial: Mapping[str, Tensor], variant: str, seed: int) -> None:
        self.layers, self.steps, self.published = layers, 0, variant == "published"
        self.activity = [torch.full((layer.size,), -1.0, device=layer.outgoing[0].device) for layer in layers]
        self._initial = {
            name: initial[name].detach().cpu() for layer in layers for name in [*layer.drawn, *layer.restored]
        }
        self._generator = torch.Generator().manual_seed(seed)
        self._reset, self._checked = 0, False
        self._hooks = [
            layer.activation.register_forward_hook(self._measure_into(activity, layer))
            for layer, activity in zip(layers, self.activity, strict=True)
        ]

    @abstractmethod
    def act(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Use `activity` after a step, and reset units where it is time."""

    def measure(self, activity: Tensor, values: Tensor) -> None:
        """Keep the mean absolute activation of each unit.

        Args:
            activity: where to, (units,).
            values: the activation, (..., units), samples first if it has more than one dimension.
        """
        activity.copy_(values[None].abs().mean(tuple(range(values.ndim)), dtype=torch.float32))

    def reset(self, layer: UnitLayer, units: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Reset units of a layer, (count,) on any device, in the way of this variant; does not wait for the device."""
        change = layer.reset if self.published else layer.reset_as_published_code
        change(units, self._initial, self._generator, optimizers)
        self._reset += len(units)

    @torch.no_grad()
    def after_step(self, *optimizers: torch.optim.Optimizer) -> None:
        """Count the step and act.

        Raises:
            RuntimeError: no training pass has measured the units.
        """
        self.steps += 1
        self.act(optimizers)

    def read_activity(self) -> list[Tensor]:
        """`activity` on the CPU; waits for the device.

        Raises:
            RuntimeError: no training pass has measured the units.
        """
        activity = on_cpu(self.activity)
        for layer, values in zip(self.layers, activity, strict=True):
            if (values < 0).any():
                raise RuntimeError(
                    f"nothing has measured the units of {layer.name}: no training pass has run its hook, which code "
                    "that was compiled before it was set does not know; call torch.compiler.reset() after `during`"
                )
        return activity

    def check_measured_once(self) -> None:
        """`read_activity` at the first call, for its error."""
        if not self._checked:
            self.read_activity()
            self._checked = True

    def metrics(self) -> dict[str, float]:
        """How many units have been reset since the last call."""
        count, self._reset = self._reset, 0
        return {"method/units_reset": count}

    def measured(self) -> Sequence[Tensor]:
        return self.activity

    def is_due(self) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "units_reset": self._reset, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self._reset = state["steps"], state["units_reset"]
        self._generator.set_state(state["generator"].cpu())

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _measure_into(self, activity: Tensor, layer: UnitLayer) -> Callable[[nn.Module, Any, Tensor], None]:
        """A forward hook that measures; only training passes, and in place, so that it does the same in a captured
        graph and in compiled code."""

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if torch.is_grad_enabled() and module.training:
                values = output.detach().movedim(layer.axis, -1)
                if values.shape[-1] != layer.size:
                    raise ValueError(f"units of {layer.name}: its output has {values.shape[-1]}, not {layer.size}")
                self.measure(activity, values)

        return hook
