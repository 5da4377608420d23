"""Matrices by their Gram matrices, which is what both Newton-Schulz and Polar Express work on.

X is a batch (batch, m, n) of matrices, G the Gram matrices of their smaller side, (batch, k, k): X^T X where m >= n.
Only on a GPU is a wide X, m < n, worked on as it lies, with G = X X^T.

On a GPU launching an operation costs the CPU some 10 microseconds, more than most of these matrices take to compute. So
there the number of operations counts, and on a CPU what fits its cache: where the two ways differ, `on_gpu` chooses.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements of what counts as a small part of a stack of matrices.
SLICE = 1 << 20
# Bytes of working memory that a GPU may always take.
GPU_MEMORY = 1 << 30
GPUS = ["cuda"]


def on_gpu(X: Tensor) -> bool:
    """Whether launching operations on X is what costs time."""
    return X.device.type in GPUS


def is_wide(W: Tensor) -> bool:
    """Whether matrices have more columns than rows."""
    return W.shape[-2] < W.shape[-1]


def tall_side(W: Tensor) -> Tensor:
    """`W` (..., m, n) itself, or its transpose where it is wider than tall."""
    return W.mT if is_wide(W) else W


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where a parameter of `dtype` is projected: at least float32 (bfloat16 leaves an orthogonality error of 1e-3)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class Batch:
    """Matrices that are replaced by their polar factors, in place.

    Attributes:
        X: (batch, m, n), m >= n except on a GPU, contiguous, float32 or float64, of Frobenius norms 1 or 0.
        G: the Gram matrices of the smaller side; they become those of the factors.
        original: gives each matrix (m, n) before normalisation, for those that need it.
    """

    X: Tensor
    G: Tensor
    original: Callable[[int], Tensor]


def slices(X: Tensor) -> Iterator[slice]:
    """Which of X (batch, m, n) to project together, one slice after the other.

    The working memory is about four times a slice. On a GPU a stack is cut where that exceeds `GPU_MEMORY`. Elsewhere
    no more than a quarter of a stack is taken unless all of it is small; on a CPU also no more than its cache holds,
    but enough to keep its cores busy.
    """
    count, each = len(X), X.shape[-2] * X.shape[-1]
    size = count if count * each <= SLICE else max(1, count // 4)
    if on_gpu(X):
        size = max(1, GPU_MEMORY // (4 * each * X.element_size()))
    elif X.device.type == "cpu":
        size = min(size, max(4, SLICE // each))
    for start in range(0, count, size):
        yield slice(start, start + size)


def normalise_(X: Tensor) -> Tensor:
    """Divide each matrix of X (batch, m, n) by its Frobenius norm, in place; a zero matrix stays.

    Returns:
        The norms, (batch,), float64.
    """
    if on_gpu(X) and X.dtype == torch.float32:  # whose squares float64 holds; the copy is gone before others are made
        norm = torch.linalg.vector_norm(X.double(), dim=(-2, -1))
        X.div_(norm.clamp(min=1e-150)[:, None, None])
        return norm
    # Divided twice because the squares of entries beyond 1e19 or below 1e-22 leave float32's range.
    flat = X.flatten(1)
    largest = torch.maximum(flat.amax(1), -flat.amin(1))[:, None, None]
    X.div_(torch.where(largest > 0, largest, 1.0))
    norm = frobenius(X)[:, None, None]
    X.div_(torch.where(norm > 0, norm, 1.0))
    return (double(largest) * double(norm)).flatten()


def frobenius(X: Tensor) -> Tensor:
    """Frobenius norm of each matrix of X (batch, m, n): (batch,).

    On a CPU row by row, because PyTorch adds up one long float32 sum there without care: the norm of a 50304 x 768
    matrix comes out 0.2 % wrong.
    """
    if on_gpu(X):
        return torch.linalg.vector_norm(X, dim=(-2, -1))
    return torch.linalg.vector_norm(torch.linalg.vector_norm(X, dim=-1), dim=-1)


def gram(X: Tensor) -> Tensor:
    """The Gram matrices of X's smaller side, (batch, k, k). To be called under `full_precision`."""
    return torch.bmm(X, X.mT) if is_wide(X) else torch.bmm(X.mT, X)


def deviation(G: Tensor, scale: Tensor) -> Tensor:
    """Deviation from isometry of V = W / scale, ||G / scale^2 - I||_F^2, for Gram matrices G = W^T W (batch, n, n) and
    scale (batch,): (batch,), float64."""
    square = square_of(scale)
    return (double(distance_to_identity(G, square)) / square).square()


def square_of(scale: Tensor) -> Tensor:
    """scale^2 in float64, kept in a range beyond which G / scale^2 vanishes beside I."""
    return double(scale).square().clamp(1e-300, 1e15)


def distance_to_identity(G: Tensor, square: Tensor | None = None) -> Tensor:
    """||G - s I||_F for s = `square` (batch,), or 1: (batch,). With `square`, G (batch, n, n) is as before afterwards;
    without it, its diagonal is not."""
    diagonal = G.diagonal(dim1=-2, dim2=-1)
    if square is None:
        diagonal.sub_(1)
        return frobenius(G)
    if on_gpu(G):  # one operation less
        shifted = G.clone()
        shifted.diagonal(dim1=-2, dim2=-1).sub_(square[:, None])
        return frobenius(shifted)
    kept = diagonal.clone()
    diagonal.sub_(square.to(G)[:, None])
    norm = frobenius(G)
    diagonal.copy_(kept)  # cheaper than a copy of G
    return norm


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors (size,) on the CPU; those of one GPU, in float64, by one transfer, so that they are waited for once."""
    known = list(tensors)
    for device in {tensor.device for tensor in tensors if tensor.device.type != "cpu"}:
        places = [i for i, tensor in enumerate(tensors) if tensor.device == device]
        # Those of one type first: joining different ones is an operation for each.
        types = {tensors[i].dtype for i in places}
        ordered = [[i for i in places if tensors[i].dtype == dtype] for dtype in types]
        joined = [double(torch.cat([tensors[i] for i in same])) for same in ordered]
        values = torch.cat(joined).cpu().split([tensors[i].numel() for same in ordered for i in same])
        for i, value in zip((i for same in ordered for i in same), values, strict=True):
            known[i] = value
    return known


def double(X: Tensor) -> Tensor:
    """X in float64."""
    # Apple's GPUs have no float64.
    return (X.cpu() if X.device.type == "mps" else X).double()


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """True float32 products inside: no autocast, no TF32 or bfloat16 shortcuts, whatever the caller has chosen."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device_type, enabled=False))
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch >= 2.9; the older switch may refuse a read
            for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):  # type: ignore[attr-defined]
                # What is inherited from the general switch must stay inherited.
                old = backend.fp32_precision
                inherited = old == torch.backends.fp32_precision  # type: ignore[attr-defined]
                stack.callback(setattr, backend, "fp32_precision", "none" if inherited else old)
                backend.fp32_precision = "ieee"
        else:
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        yield
