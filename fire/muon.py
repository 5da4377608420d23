"""Muon (Jordan et al. 2024): the step of a matrix is its momentum, made nearly orthogonal; all else is Adam's."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from .checks import check_number, check_type, check_variant
from .matrices import WeightMatrix, storage_key, unwrap, weight_matrices
from .methods import TrainingMethod, register
from .scope import Scope

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
BETAS, EPS = (0.9, 0.95), 1e-10
"""Of Adam beside Muon, as in the code of FIRE's authors."""


@register("muon")
@dataclass
class Muon(TrainingMethod):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): weight matrices are trained by `MuonWithAdam`
    instead of Adam. A convolution is one matrix (out, in * kernel positions). The scope's `fused` weights are several.

    Adam, with betas .9 and .95 and eps 1e-10, trains the scope's `adam`, such as the head, and embeddings, vectors and
    what `fire.matrices` refuses, at the training loop's learning rate. Weight decay is the training loop's, decoupled:
    for a matrix it is multiplied by Muon's learning rate.

    Attributes:
        learning_rate: of the matrices, where the training loop's schedule is highest: about a step's spectral norm.
        momentum: of the matrices' gradients, in [0, 1].
        variant: published: a step is scaled by sqrt(max(1, rows / columns)) of the flattened matrix.
            as_published_code: for a convolution by the same of its kernel's last two dimensions, so by 1 where these
            are equal, as in the code of FIRE's authors.
    """

    resets_optimizer: ClassVar[bool] = True
    has_optimizer: ClassVar[bool] = True

    learning_rate: float = 0.01
    momentum: float = 0.95
    variant: str = "published"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("learning_rate", self.learning_rate, 0)
        check_number("momentum", self.momentum, 0, 1)
        check_variant(self.variant)

    def check(self, model: nn.Module, scope: Scope) -> None:
        """Raise ValueError where no matrix is left to Muon, too."""
        super().check(model, scope)
        if not self._matrices(model, scope):
            raise ValueError(f"muon finds no weight matrix in {type(unwrap(model)).__name__} that `adam` leaves to it")

    def optimizer(self, plain: torch.optim.Optimizer, model: nn.Module, scope: Scope) -> "MuonWithAdam":
        """The optimiser.

        Args:
            plain: Adam or AdamW of the model's parameters, whose learning rates, weight decays, `fused` and
                `capturable` are taken over.
            model, scope: as of `reset`.

        Raises:
            ValueError: a scope that does not fit the model, or `plain` maximises or is AMSGrad. TypeError: another kind
                of optimiser.
        """
        check_type("plain", plain, (torch.optim.Adam, torch.optim.AdamW), "a torch.optim.Adam or AdamW")
        for group in plain.param_groups:
            if group["maximize"] or group["amsgrad"]:
                raise ValueError("muon takes the place of an Adam without maximize and amsgrad")
        self.check(model, scope)
        found = self._matrices(model, scope)
        places = {storage_key(matrix.parameter) for matrix in found}
        groups: list[dict[str, Any]] = []
        for group in plain.param_groups:
            kept = {name: group[name] for name in ("lr", "weight_decay", "fused", "capturable")}
            parts: tuple[list[Tensor], list[Tensor]] = ([], [])
            for p in group["params"]:
                parts[storage_key(p) in places].append(p)
            others, matrices = parts
            if matrices:
                rates = {"lr": self.learning_rate, "momentum": self.momentum}
                groups.append({**kept, **rates, "params": matrices, "muon": True})
            if others:
                groups.append({**kept, "betas": BETAS, "eps": EPS, "params": others, "muon": False})
        return MuonWithAdam(groups, [(matrix, self._scale(matrix)) for matrix in found])

    def _matrices(self, model: nn.Module, scope: Scope) -> list[WeightMatrix]:
        return weight_matrices(
            model, exclude=scope.adam, fused=scope.fused, layouts=scope.layouts, frozen=False
        )[0]  # fmt: skip

    def _scale(self, matrix: WeightMatrix) -> float:
        """The factor of a matrix's step."""
        of_kernel = matrix.kernel and self.variant == "as_published_code"
        rows, columns = (matrix.parameter if of_kernel else matrix.flat(matrix.parameter.detach())).shape[-2:]
        return math.sqrt(max(1, rows / columns))


class MuonWithAdam(torch.optim.Optimizer):
    """Muon for the groups whose `muon` is True, AdamW for the others, in one optimiser: schedulers, `state_dict`s and
    CUDA graphs see no difference from Adam. It waits for the device in no step; a learning rate may be a tensor.

    torch.optim.Muon does not serve: PyTorch before 2.9 has none, it takes parameters of two dimensions alone, and it
    waits for a learning rate that is a tensor.

    Args:
        groups: of parameters, with all settings: `lr` and `weight_decay`; Muon's `momentum`; Adam's `betas`, `eps`,
            `fused` and `capturable`.
        matrices: those of Muon's parameters, and the factors of their steps.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], matrices: Sequence[tuple[WeightMatrix, float]]) -> None:
        super().__init__([dict(group) for group in groups], {})
        parameters = {storage_key(p): p for group in self.param_groups for p in group["params"]}
        self._matrices: dict[Tensor, list[tuple[WeightMatrix, float]]] = {}
        for matrix, scale in matrices:
            if (p := parameters.get(storage_key(matrix.parameter))) is not None:  # which the training loop trains
                self._matrices.setdefault(p, []).append((matrix, scale))

    def __getstate__(self) -> dict[str, Any]:
        """Raise TypeError: a copy would step without its matrices."""
        raise TypeError("MuonWithAdam cannot be copied or pickled; make another one and load its state_dict")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._muon_step if group["muon"] else self._adam_step)(group, parameters)
        return loss

    def _muon_step(self, group: Mapping[str, Any], parameters: list[Tensor]) -> None:
        gradients: list[Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        means = [self._kept(p, "momentum_buffer") for p in parameters]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        steps = torch._foreach_lerp(gradients, means, group["momentum"])  # Nesterov's
        self._orthogonalise(parameters, steps)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_mul_(steps, group["lr"])
        torch._foreach_sub_(parameters, steps)

    def _orthogonalise(self, parameters: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
        """Make the matrices of the steps nearly orthogonal and scale them, in place; those of one shape together."""
        members: dict[tuple, list[tuple[Tensor, WeightMatrix, float, bool, Tensor]]] = {}
        for parameter, step in zip(parameters, steps, strict=True):
            for matrix, scale in self._matrices[parameter]:
                X = matrix.flat(step)
                tall = X.shape[1] > X.shape[2]
                X = X.mT if tall else X
                members.setdefault((X.shape[1:], X.dtype, X.device), []).append((step, matrix, scale, tall, X))
        for group in members.values():
            wide = [X for *_, X in group]
            near = nearly_orthogonal(torch.cat(wide)).split([len(X) for X in wide])
            for (step, matrix, scale, tall, _), new in zip(group, near, strict=True):
                scaled = new if scale == 1 else new * scale
                matrix.write_flat(step, scaled.mT if tall else scaled)

    def _adam_step(self, group: Mapping[str, Any], parameters: list[Tensor]) -> None:
        on_device = group["fused"] or group["capturable"]
        for p in parameters:
            if "step" not in self.state[p]:
                device = p.device if on_device else torch.device("cpu")
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=device)
        adamw(
            parameters, [p.grad for p in parameters], [self._kept(p, "exp_avg") for p in parameters],  # type: ignore[misc]
            [self._kept(p, "exp_avg_sq") for p in parameters], [], [self.state[p]["step"] for p in parameters],
            fused=group["fused"], capturable=group["capturable"], amsgrad=False, beta1=group["betas"][0],
            beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
            maximize=False,
        )  # fmt: skip

    def _kept(self, parameter: Tensor, name: str) -> Tensor:
        """What is kept of a parameter between steps, zero at first."""
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state[name]


def nearly_orthogonal(X: Tensor) -> Tensor:
    """Five quintic Newton-Schulz steps for matrices (batch, m, n), m <= n, after which singular values lie around 1,
    between about .7 and 1.2. They are computed in bfloat16, of float64 in float64."""
    a, b, c = COEFFICIENTS
    X = X / (torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True) + 1e-7)
    X = X if X.dtype == torch.float64 else X.bfloat16()
    for _ in range(STEPS):
        G = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(G, G, G, beta=b, alpha=c), X, beta=a)
    return X
