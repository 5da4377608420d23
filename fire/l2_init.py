"""Regularisation towards the initial weights (L2 init, Kumar et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_number
from .during import During
from .matrices import unwrap
from .methods import TrainingMethod, check_initial, register, state_of
from .scope import Scope


@register("l2_init")
@dataclass
class L2Init(TrainingMethod):
    """L2 init (Kumar et al. 2023): the loss grows by coefficient / 2 ||theta - theta_0||^2, over all parameters that
    are trained, norms and biases included.

    Attributes:
        coefficient: of the penalty, at least 0.
    """

    coefficient: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("coefficient", self.coefficient, 0)

    def during(self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, seed: int = 0) -> During:
        """The penalty. It keeps a copy of the initial weights beside the parameters."""
        model = unwrap(model)
        check_initial(model, initial)
        trained = [(p, names[0]) for p, names in state_of(model) if p.requires_grad]
        start = [initial[name].detach().to(p.device, p.dtype, copy=True) for p, name in trained]
        return DistancePenalty([p for p, _ in trained], start, self.coefficient)


@dataclass(eq=False)
class DistancePenalty(During):
    """coefficient / 2 ||parameters - start||^2."""

    parameters: list[Tensor]
    start: list[Tensor]
    coefficient: float

    def penalty(self) -> Tensor:
        return _HalfSquaredDistance.apply(self.coefficient, self.start, *self.parameters)

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """The penalty at the present weights."""
        return {"method/penalty": float(self.penalty())}


class _HalfSquaredDistance(torch.autograd.Function):
    """The penalty, with a gradient that takes two operations on lists instead of several for each parameter."""

    @staticmethod
    def forward(ctx: Any, coefficient: float, start: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.coefficient, ctx.start = coefficient, start
        ctx.save_for_backward(*parameters)
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        norms = torch._foreach_norm(torch._foreach_sub(parameters, start), 2, dtype)
        return torch.stack([norm.to(norms[0].device) for norm in norms]).square().sum() * (coefficient / 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        difference = torch._foreach_sub(ctx.saved_tensors, ctx.start)
        return None, None, *torch._foreach_mul(difference, gradient * ctx.coefficient)
