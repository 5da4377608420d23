"""What FIRE minimises, what it constrains, and how plasticity is usually measured."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checks import check_finite, check_module, check_number, check_tensor, check_whole
from .gram import compute_dtype, deviation, double, full_precision, gram, normalise_, on_gpu, tall_side
from .matrices import check_patterns, matches, unwrap, weight_matrices


def sfe(before: Tensor, after: Tensor) -> float:
    """Squared Frobenius Error ||before - after||_F^2 (FIRE, eq. 1): how far a reset moved the weights.

    Raises:
        ValueError: two shapes. TypeError: no real floating-point tensor.
    """
    check_tensor("before", before)
    check_tensor("after", after)
    if before.shape != after.shape:
        raise ValueError(f"before and after must have one shape, got {tuple(before.shape)} and {tuple(after.shape)}")
    return float(distances([before.detach()], [after.detach()])[0]) ** 2


def distances(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Tensor]:
    """Frobenius norms of the differences of pairs of tensors of one shape: scalars in at least float32. On a GPU in few
    operations."""
    after = [new.to(old.device) for old, new in zip(before, after, strict=True)]
    if before and on_gpu(before[0]):
        dtype = torch.float64 if any(old.dtype == torch.float64 for old in before) else torch.float32
        return list(torch._foreach_norm(torch._foreach_sub(list(before), after), 2, dtype))
    return [_norm((old - new).to(compute_dtype(old.dtype))) for old, new in zip(before, after, strict=True)]


def _norm(difference: Tensor) -> Tensor:
    """Frobenius norm of a tensor of any shape, in parts, the ones farthest apart in memory: see `frobenius`."""
    if difference.ndim == 0 or difference.numel() == 0:
        return difference.abs().sum()
    kept = max(range(difference.ndim), key=difference.stride)
    rest = [d for d in range(difference.ndim) if d != kept]
    return torch.linalg.vector_norm(torch.linalg.vector_norm(difference, dim=rest) if rest else difference)


def dfi(W: Tensor, scale: float = 1.0) -> Tensor:
    """Deviation from Isometry ||V^T V - I||_F^2 of V = W / scale (FIRE, eq. 2), for W (..., m, n): (...), float64.

    Measured on the smaller side, since an expanding matrix cannot be an isometry on the larger one: where m < n, eq. 2
    as it is written, with W^T W, is larger by n - m. In float32 unless W is float64: of an exact isometry its rounding
    remains, about 1e-13 a column.

    Raises:
        ValueError: fewer than two dimensions, or a scale that is not positive.
        TypeError: no real floating-point tensor.
    """
    check_tensor("W", W, 2)
    if W.numel() == 0:
        raise ValueError(f"W of shape {tuple(W.shape)} is empty")
    check_number("scale", scale, 0)
    if scale == 0:
        raise ValueError("scale must be positive, got 0")
    G, norm = _normalised_gram(W)
    return deviation(G, scale / norm).reshape(W.shape[:-2])


def _normalised_gram(W: Tensor) -> tuple[Tensor, Tensor]:
    """Of W (..., m, n) divided by its Frobenius norms, the Gram matrices of the smaller side, (batch, n, n), and those
    norms, (batch,): whatever the size of the entries, nothing overflows."""
    tall = tall_side(W.detach())
    X = tall.reshape(-1, *tall.shape[-2:]).to(compute_dtype(W.dtype), copy=True)
    norm = normalise_(X)
    with full_precision(W.device.type):
        return gram(X), norm


@torch.no_grad()
def isometry(model: nn.Module, fused: Mapping[str, Sequence[int]] | None = None) -> dict[str, float]:
    """Deviation from Isometry of all weight matrices of `model`, each divided by FIRE's scale factor for it.

    Returns:
        `dfi`, their sum; `dfi_normalised`, the mean over matrices of DfI / min(m, n), so 0 for an isometry and 1 for
        a zero matrix; `dfi_raw`, the sum of eq. 2 on the weights as they are; `anisotropy`, the mean over matrices that
        are not zero of 1 - (tr G)^2 / (n ||G||_F^2), where G (n, n) is the Gram matrix of the smaller side: 0 for an
        isometry times any factor, up to 1 - 1/n for rank 1. DfI depends on the norm too, anisotropy does not.

    Raises:
        ValueError: the model has no weight matrix.
    """
    matrices, _ = weight_matrices(model, fused=fused)
    if not matrices:
        raise ValueError(f"{type(unwrap(model)).__name__} has no weight matrix")
    total, normalised, raw, anisotropy = 0.0, [], 0.0, []
    for matrix in matrices:
        G, norm = _normalised_gram(matrix.view)
        deviations = deviation(G, matrix.scale / norm)
        total += float(deviations.sum())
        normalised.append(deviations.cpu() / G.shape[-1])
        raw += float(deviation(G, 1 / norm).sum())
        # tr G is 1 here, so ||G - I / n||_F^2 = ||G||_F^2 - 1 / n: without the cancellation of 1 - 1 / (n ||G||_F^2).
        excess = deviation(G, torch.full_like(norm, G.shape[-1] ** -0.5)) / G.shape[-1]
        anisotropy.append((excess / (1 + excess))[norm > 0].cpu())
    anisotropies = torch.cat(anisotropy)
    return {
        "dfi": total,
        "dfi_normalised": float(torch.cat(normalised).mean()),
        "dfi_raw": raw,
        "anisotropy": float(anisotropies.mean()) if len(anisotropies) else 0.0,
    }


@torch.no_grad()
def weight_norm(model: nn.Module) -> float:
    """L2 norm of all parameters together (its growth as a sign of plasticity loss: Lyle et al. 2024, section 3)."""
    check_module(model)
    return math.sqrt(sum(float(double(p).square().sum()) for p in model.parameters()))


def stable_rank(features: Tensor) -> float:
    """||A||_F^2 / ||A||_2^2 of A (samples, units) (Rudelson and Vershynin 2007, section 1); 0 for A = 0.

    Raises:
        ValueError: fewer than two dimensions, no entry, or a non-finite one; so of the other ranks.
    """
    squares = _singular_values(features).square()
    return float(squares.sum() / squares[0]) if squares[0] > 0 else 0.0


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values of (samples, units), normalised to sum 1 (Roy and Vetterli 2007,
    section 2); 0 for an all-zero matrix."""
    sigma = _singular_values(features)
    if sigma[0] <= 0:
        return 0.0
    return float(torch.exp(torch.special.entr(sigma / sigma.sum()).sum()))


def srank(features: Tensor, delta: float = 0.01) -> int:
    """The fewest singular values of (samples, units) whose sum reaches 1 - delta of the total (Kumar et al. 2021,
    section 3; the srank of FIRE's Theorem 3); 0 for an all-zero matrix. `delta` is in [0, 1)."""
    check_number("delta", delta, 0, 1)
    if delta == 1:
        raise ValueError("delta must be below 1")
    sigma = _singular_values(features)
    if sigma[0] <= 0:
        return 0
    return int((sigma.cumsum(0) < (1 - delta) * sigma.sum()).sum()) + 1


def _singular_values(features: Tensor) -> Tensor:
    check_tensor("features", features, 2)
    if features.numel() == 0:
        raise ValueError(f"features of shape {tuple(features.shape)} are empty")
    check_finite("features", features)
    return torch.linalg.svdvals(double(features.detach().flatten(1)))


_NONLINEARITIES = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh)


@dataclass(frozen=True, eq=False)
class Activation:
    """The output of one nonlinearity.

    Attributes:
        name: of its module.
        values: the output.
        unit_axis: the axis along which its units lie.
    """

    name: str
    values: Tensor
    unit_axis: int


def dormant_ratio(activations: Iterable[Activation], tau: float = 0.025) -> float:
    """Share of tau-dormant units among all layers (Sokar et al. 2023, def. 3.1 and 3.2).

    Args:
        activations: each layer's outputs; all dimensions but the units' are averaged.
        tau: a unit is dormant if its mean absolute activation is at most tau times the mean of its layer. In a layer
            whose outputs are all zero every unit is dormant.

    Raises:
        ValueError: no layer, an empty or non-finite output, a negative tau.
    """
    check_number("tau", tau, 0)
    dormant = units = 0
    for layer in activations:
        check_finite(f"the activation {layer.name}", layer.values)
        if not -layer.values.ndim <= layer.unit_axis < layer.values.ndim:
            raise ValueError(f"the activation {layer.name} has no axis {layer.unit_axis}: {tuple(layer.values.shape)}")
        scores = double(layer.values.detach()).abs().movedim(layer.unit_axis, 0).flatten(1).mean(dim=1)
        dormant += int((scores <= tau * scores.mean()).sum())
        units += scores.numel()
    if not units:
        raise ValueError("there is no activation to count units in")
    return dormant / units


@contextmanager
def record_activations(model: nn.Module, unit_axis: Mapping[str, int] | None = None) -> Iterator[list[Activation]]:
    """Collect, while the block runs, the output of every ReLU, GELU, SiLU and Tanh in `model`, in order of execution.

    Args:
        model: any module.
        unit_axis: pattern of module names -> the axis of their units, where it is not the last of two or three
            dimensions, as after a Linear, or axis 1 of four and more, as after a Conv2d: {"encoder.*": 1} for Conv1d.
    """
    check_module(model)
    outputs: list[Activation] = []

    def record(name: str, given: int | None, module: nn.Module, inputs: Any, output: Tensor) -> None:
        axis = given if given is not None else -1 if output.ndim <= 3 else 1
        outputs.append(Activation(name, output.detach(), axis))

    modules = {name: module for name, module in unwrap(model).named_modules() if isinstance(module, _NONLINEARITIES)}
    axes = unit_axis or {}
    check_patterns("unit_axis", axes, list(modules), "module that is recorded")
    hooks = []
    for name, module in modules.items():
        given = next((axis for pattern, axis in axes.items() if matches(name, [pattern])), None)
        hooks.append(module.register_forward_hook(partial(record, name, given)))
    try:
        yield outputs
    finally:
        for handle in hooks:
            handle.remove()


def sharpness(
    losses: Sequence[Callable[[], Tensor]],
    parameters: Iterable[Tensor],
    *,
    iterations: int = 100,
    tol: float = 1e-2,
) -> tuple[float, float]:
    """Largest eigenvalue of the Hessian of the mean of `losses` (lambda_max of FIRE, Figure 5b), by Lanczos iteration
    on Hessian-vector products.

    Args:
        losses: one function for each fixed batch; each computes its mean loss from the parameters, differentiably
            twice, and gives the same value whenever it is called.
        parameters: what the Hessian is with respect to; those that require no gradient are left out.
        iterations: Hessian-vector products over all batches at most. Each costs about five gradients.
        tol: error bound, relative to the eigenvalue, at which to stop.

    Returns:
        The eigenvalue, and a bound on its distance to an eigenvalue of the Hessian; above `tol` where the iterations
        have not sufficed.

    Raises:
        ValueError: no batch, no parameter, or a curvature that is not finite.
    """
    check_whole("iterations", iterations, 1)
    check_number("tol", tol, 0)
    if isinstance(parameters, Tensor):
        raise TypeError("parameters must be several tensors, got one: [parameters]")
    parameters = [p for p in parameters if p.requires_grad]
    if not losses or not parameters:
        raise ValueError("sharpness needs at least one batch, and a parameter that requires a gradient")
    size = sum(p.numel() for p in parameters)
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    vector = vector.to(parameters[0].device)
    vector /= math.sqrt(float(vector @ vector))
    previous, beta = torch.zeros_like(vector), 0.0
    tridiagonal = torch.zeros(min(iterations, size), min(iterations, size), dtype=torch.float64)
    for k in range(len(tridiagonal)):
        image = _hessian_product(losses, parameters, vector)
        alpha = float(image @ vector)
        image -= alpha * vector + beta * previous
        beta = math.sqrt(float(image @ image))
        if not math.isfinite(alpha + beta):
            raise ValueError("the Hessian of the loss is not finite at these weights")
        # Lost orthogonality only repeats eigenvalues that have converged, so nothing is orthogonalised again.
        tridiagonal[k, k] = alpha
        values, vectors = torch.linalg.eigh(tridiagonal[: k + 1, : k + 1], UPLO="U")
        eigenvalue, error = float(values[-1]), abs(beta * float(vectors[-1, -1]))
        if error <= tol * abs(eigenvalue) or k + 1 == len(tridiagonal):
            break
        tridiagonal[k, k + 1] = beta
        previous, vector = vector, image / beta
    return eigenvalue, error


def _hessian_product(losses: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Hessian of the mean loss times `vector`, which is as long as all `parameters` together."""
    parts = [v.view_as(p) for v, p in zip(vector.split([p.numel() for p in parameters]), parameters, strict=True)]
    total = torch.zeros_like(vector)
    # The fused attention kernels cannot be differentiated twice.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for loss in losses:
            gradients = torch.autograd.grad(loss() / len(losses), parameters, create_graph=True, materialize_grads=True)
            slope = sum((g * v).sum() for g, v in zip(gradients, parts, strict=True))
            if not slope.requires_grad:  # a loss that is linear in its parameters
                continue
            products = torch.autograd.grad(slope, parameters, materialize_grads=True)
            total += torch.cat([product.flatten() for product in products])
    return total
