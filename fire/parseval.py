"""Parseval regularisation (Chung et al. 2024): weights are kept near isometries while the network trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_number
from .during import During
from .matrices import WeightMatrix, storage_key, unwrap, weight_matrices
from .methods import TrainingMethod, check_initial, register
from .scope import Scope


@register("parseval")
@dataclass
class Parseval(TrainingMethod):
    """Parseval regularisation (Chung et al. 2024): the loss grows by coefficient sum ||W W^T - I||_F^2, over the
    weights W of all layers, the head included.

    A convolution's W is (out, in * kernel positions). The scope's `fused` weights are several. The scale gamma of a
    normalisation counts as ||gamma^2 - 1||^2. Left out are biases, embeddings, unless a Linear shares their weight, and
    what `fire.matrices` refuses.

    Memory during a step: a Gram matrix of min(out, in)^2 numbers for each W, in the forward and again in the backward
    pass. Of a tall W it is W^T W, for ||W W^T - I||^2 = ||W^T W - I||^2 + out - in.

    Attributes:
        coefficient: of the penalty, at least 0.
    """

    coefficient: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("coefficient", self.coefficient, 0)

    def check(self, model: nn.Module, scope: Scope) -> None:
        """Raise ValueError where there is nothing to penalise, too."""
        super().check(model, scope)
        if not any(_penalised(model, scope)):
            raise ValueError(f"parseval finds no weight matrix and no normalisation in {type(unwrap(model)).__name__}")

    def during(self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, seed: int = 0) -> During:
        """The penalty."""
        model = unwrap(model)
        check_initial(model, initial)
        self.check(model, scope)
        return IsometryPenalty(*_penalised(model, scope), self.coefficient)


def _penalised(model: nn.Module, scope: Scope) -> tuple[list[WeightMatrix], list[Tensor]]:
    """The weights and the scales of normalisation layers that are trained. Such a scale is the `weight` of a module
    whose class has Norm in its name, as those of PyTorch have."""
    matrices, _ = weight_matrices(model, fused=scope.fused, layouts=scope.layouts, frozen=False)
    norms = [module for module in unwrap(model).modules() if "Norm" in type(module).__name__]
    scales = [p for norm in norms for name, p in norm.named_parameters(recurse=False) if name == "weight"]
    return matrices, list({storage_key(p): p for p in scales if p.requires_grad}.values())


class IsometryPenalty(During):
    """coefficient (sum ||W W^T - I||_F^2 + sum ||gamma^2 - 1||^2)."""

    def __init__(self, matrices: Sequence[WeightMatrix], scales: Sequence[Tensor], coefficient: float) -> None:
        self._matrices, self._scales, self._coefficient = matrices, scales, coefficient
        made: dict[tuple, Tensor] = {}
        self._identities, self._constant = [], 0
        for W in (matrix.flat(matrix.parameter.detach()) for matrix in matrices):
            count, out, fan_in = W.shape
            size = min(out, fan_in)
            if (key := (size, W.dtype, W.device)) not in made:
                made[key] = torch.eye(size, dtype=W.dtype, device=W.device)
            self._identities.append(made[key])
            self._constant += count * max(out - fan_in, 0)

    def penalty(self) -> Tensor:
        flat = [matrix.flat(matrix.parameter) for matrix in self._matrices]
        wide = [W if W.shape[1] <= W.shape[2] else W.mT for W in flat]
        return _SquaredDeviation.apply(self._coefficient, self._constant, self._identities, *wide, *self._scales)

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """The penalty at the present weights."""
        return {"method/penalty": float(self.penalty())}


def _without_autocast(function: Callable) -> Callable:
    """Autocast is off inside: in half precision W W^T - I would be rounding errors."""

    @wraps(function)
    def called(ctx: Any, *arguments: Any) -> Any:
        device = next(each.device.type for each in reversed(arguments) if isinstance(each, Tensor))
        with torch.autocast(device, enabled=False):
            return function(ctx, *arguments)

    return called


class _SquaredDeviation(torch.autograd.Function):
    """The penalty. Its gradient, 4 coefficient (W W^T - I) W, takes two products a matrix, where autograd's own would
    take three and several operations for each tensor."""

    @staticmethod
    @_without_autocast
    def forward(ctx: Any, coefficient: float, constant: int, identities: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.coefficient, ctx.identities = coefficient, identities
        ctx.save_for_backward(*tensors)
        errors = _errors(tensors, identities)
        dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        norms = torch._foreach_norm(errors, 2, dtype)
        total = torch.stack([norm.to(norms[0].device) for norm in norms]).square().sum()
        return (total + constant) * coefficient

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, count = ctx.saved_tensors, len(ctx.identities)
        errors = _errors(tensors, ctx.identities)
        slopes = [torch.bmm(G, W) for G, W in zip(errors[:count], tensors[:count], strict=True)]
        slopes += torch._foreach_mul(errors[count:], list(tensors[count:])) if len(tensors) > count else ()
        return None, None, None, *torch._foreach_mul(slopes, gradient * (4 * ctx.coefficient))


def _errors(tensors: Sequence[Tensor], identities: Sequence[Tensor]) -> list[Tensor]:
    """W W^T - I of the matrices (batch, rows, columns), which come first, and gamma^2 - 1 of the scales."""
    wide, scales = tensors[: len(identities)], list(tensors[len(identities) :])
    errors = [torch.baddbmm(eye, W, W.mT, beta=-1) for eye, W in zip(identities, wide, strict=True)]
    return [*errors, *(torch._foreach_sub(torch._foreach_mul(scales, scales), 1) if scales else ())]
