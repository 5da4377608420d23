"""Plasticity injection (Nikishin et al. 2023): new capacity beside a frozen head, without any change of its output."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn

from .methods import Method, Scope, register
from .report import Recorder


class InjectedHead(nn.Module):
    """frozen(x) + (new(x) - copy(x)), where `copy` is what `new` was at the injection: only `new` learns."""

    def __init__(self, head: nn.Module, initial: Mapping[str, Tensor]) -> None:
        """`initial`: the state_dict that the new head starts with, on any device."""
        super().__init__()
        self.copy = copy.deepcopy(head)
        self.copy.load_state_dict(initial)
        self.new = copy.deepcopy(self.copy)
        self.frozen = head.requires_grad_(False)
        self.copy.requires_grad_(False)
        for parameter in self.frozen.parameters():
            parameter.grad = None

    def forward(self, x: Tensor) -> Tensor:
        """The output; the gradient reaches `x` through all three heads."""
        frozen, at_injection = self.frozen(x), self.copy(x)
        # The difference first: it is exactly zero at the injection. The new head last, where probes of a network's last
        # activations find it.
        return frozen + (self.new(x) - at_injection)


@register("plasticity_injection")
@dataclass
class PlasticityInjection(Method):
    """Freeze the head and add a new one minus a frozen copy of it (Nikishin et al. 2023). No weight and no output
    changes; the new head starts from the initial weights, as every reset here does. The modules that are the head are
    the scope's `inject`."""

    resets_optimizer: ClassVar[bool] = True

    def check(self, model: nn.Module, scope: Scope) -> None:
        super().check(model, scope)
        if not scope.inject:
            raise ValueError(
                "plasticity_injection needs a scope whose `inject` names the network's head; this one has none"
            )

    @torch.no_grad()
    def restructure(self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope) -> None:
        """Put an `InjectedHead` in the place of each head."""
        injected: list[str] = []
        for name, module in list(model.named_modules()):
            inside = any(name.startswith(f"{head}.") for head in injected)
            if name and not inside and any(fnmatchcase(name, pattern) for pattern in scope.inject):
                injected.append(name)
                state = {key: initial[f"{name}.{key}"] for key in module.state_dict()}
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, InjectedHead(module, state))

    def change(self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, recorder: Recorder) -> None:
        self.restructure(model, initial, scope)
