"""Matrices and their Gram matrices, on which both Newton-Schulz and Polar Express work.

X is a batch (batch, m, n) of matrices with m >= n, G = X^T X their Gram matrices (batch, n, n).

On a GPU launching an operation costs the CPU some 10 microseconds, more than most of these matrices take to compute. So
there the number of operations counts, and on a CPU what fits its cache: where the two ways differ, `on_gpu` chooses.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby

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


def tall_side(W: Tensor) -> Tensor:
    """`W` (..., m, n) itself, or its transpose where it is wider than tall."""
    return W.mT if W.shape[-2] < W.shape[-1] else W


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where a parameter of `dtype` is projected: at least float32 (bfloat16 leaves an orthogonality error of 1e-3)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class Batch:
    """Matrices that are replaced by their polar factors, in place.

    Attributes:
        X: (batch, m, n), m >= n, float32 or float64, of Frobenius norms 1 or 0.
        G: their Gram matrices, which become those of the factors.
        originals: gives the matrices (m, n) before normalisation, for the few that need it.
    """

    X: Tensor
    G: Tensor
    originals: Callable[[], Sequence[Tensor] | Tensor]


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
    """X^T X of X (batch, m, n). To be called under `full_precision`."""
    return torch.bmm(X.mT, X)


def deviation(G: Tensor, scale: Tensor) -> Tensor:
    """Deviation from isometry of V = W / scale, ||G / scale^2 - I||_F^2, for Gram matrices G = W^T W (batch, n, n) and
    scale (batch,): (batch,), float64."""
    square = square_of(scale)
    return (double(distance_to_identity(G, square)) / square).square()


def square_of(scale: Tensor) -> Tensor:
    """scale^2 in float64, kept in a range beyond which G / scale^2 vanishes beside I."""
    return double(scale).square().clamp(1e-300, 1e15)


def distance_to_identity(G: Tensor, square: Tensor | None = None) -> Tensor:
    """||G - s I||_F for s = `square` (batch,), or 1, and G (batch, n, n): (batch,)."""
    if on_gpu(G):
        return distance_to_identity_(G.clone(), square)
    diagonal = G.diagonal(dim1=-2, dim2=-1)
    kept = diagonal.clone()
    distance = distance_to_identity_(G, square)
    diagonal.copy_(kept)  # less memory than a copy of G
    return distance


def distance_to_identity_(G: Tensor, square: Tensor | None = None) -> Tensor:
    """`distance_to_identity`, which leaves s subtracted from the diagonals of G."""
    diagonal = G.diagonal(dim1=-2, dim2=-1)
    if square is None:
        diagonal.sub_(1)
    else:
        diagonal.sub_((square if on_gpu(G) else square.to(G))[:, None])
    return frobenius(G)


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors (size,) on the CPU; those of one GPU, in float64, by one transfer, so that they are waited for once."""
    known = list(tensors)
    for device in {tensor.device for tensor in tensors if tensor.device.type != "cpu"}:
        # By dtype first: joining different ones is an operation for each.
        places = sorted((i for i, t in enumerate(tensors) if t.device == device), key=lambda i: str(tensors[i].dtype))
        same_dtype = groupby(places, key=lambda i: tensors[i].dtype)
        joined = torch.cat([double(torch.cat([tensors[i] for i in same])) for _, same in same_dtype]).cpu()
        for i, value in zip(places, joined.split([tensors[i].numel() for i in places]), strict=True):
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


# Polynomial steps.

# From this many times as long a side on, several steps in a row are made on the Gram matrix before X is touched.
TALL = 4
# On a GPU only where a step is this many multiplications or more; the small ones cost what launching them does.
_LARGE = 1 << 27


def by_gram(X: Tensor) -> bool:
    """Whether several steps in a row on the Gram matrices of X (batch, m, n) are cheaper than on X."""
    m, n = X.shape[-2:]
    return m >= TALL * n and (not on_gpu(X) or X.numel() * n >= _LARGE)


class Iteration:
    """X (batch, m, n) with its Gram matrices G, under X <- X (a I + b G + c G^2), in place.

    Besides X and G it needs memory for one more X. A single matrix on a CPU, which may be as large as all others
    together, is multiplied by blocks of rows instead.
    """

    def __init__(self, X: Tensor, G: Tensor) -> None:
        self.X, self.G, self._result = X, G, X
        self._spare = torch.empty_like(X) if len(X) > 1 or on_gpu(X) else None

    def step(self, a: float, b: float, c: float = 0.0) -> None:
        """Multiply X by the polynomial of its Gram matrix, and bring that up to date."""
        if self._spare is None:

            def multiplied(rows: Tensor) -> Tensor:
                inner, factor = (rows, b) if c == 0 else (torch.addmm(rows, rows, self.G[0], beta=b, alpha=c), 1.0)
                return torch.addmm(rows, inner, self.G[0], beta=a, alpha=factor)

            self._by_rows(multiplied)
            return
        square = self._spare.as_strided(self.G.shape, self.G.stride())  # G is no larger than X
        if on_gpu(self.X):
            if c != 0:
                self.G.add_(torch.bmm(self.G, self.G, out=square), alpha=c / b)
            torch.baddbmm(self.X, self.X, self.G, beta=a, alpha=b, out=self._spare)
            self._swap(self._spare)
        else:
            self.multiply(_polynomial_(self.G, a, b, c, square))

    def multiply(self, R: Tensor) -> None:
        """X <- X R, R (batch, n, n) symmetric, and the new Gram matrix."""
        if self._spare is None:
            self._by_rows(lambda rows: rows @ R[0])
        else:
            self._swap(torch.bmm(self.X, R, out=self._spare))

    def _by_rows(self, multiplied: Callable[[Tensor], Tensor]) -> None:
        for rows in self.X[0].split(max(1, SLICE // (4 * self.X.shape[-1]))):
            rows.copy_(multiplied(rows))
        torch.bmm(self.X.mT, self.X, out=self.G)

    def _swap(self, new: Tensor) -> None:
        """Let the spare memory, which holds the new X, be X."""
        self.X, self._spare = new, self.X
        torch.bmm(new.mT, new, out=self.G)

    def finish(self) -> None:
        """Leave the result in the memory X came in."""
        if self.X is not self._result:
            self._result.copy_(self.X)


def _polynomial_(G: Tensor, a: float, b: float, c: float, square: Tensor | None = None) -> Tensor:
    """a I + b G + c G^2 in the memory of G, (batch, n, n); `square` is memory for G^2."""
    if c != 0:
        square = torch.bmm(G, G, out=square)
        G.mul_(b).add_(square, alpha=c)
    else:
        G.mul_(b)
    G.diagonal(dim1=-2, dim2=-1).add_(a)
    return G


def product(G: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """What X is multiplied by in all, (batch, n, n), each polynomial in turn being of its Gram matrix, first G."""
    if on_gpu(G):
        return _product_in_few_operations(G, polynomials)
    total = R = _polynomial_(G.clone(), *polynomials[0])
    for coefficients in polynomials[1:]:
        G = R @ G @ R  # all of these are polynomials of the first G, so they commute
        R = _polynomial_(G.clone(), *coefficients)
        total = total @ R
    return total


def _product_in_few_operations(G: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """`product`, with each polynomial as a I + b R, so that multiplying by it is one operation."""
    total = None
    for number, (a, b, c) in enumerate(polynomials):
        R = G if c == 0 else torch.add(G, torch.bmm(G, G), alpha=c / b)
        if total is None:
            total = R * b
            total.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            total = torch.baddbmm(total, total, R, beta=a, alpha=b)
        if number + 1 < len(polynomials):
            for _ in range(2):
                G = torch.baddbmm(G, G, R, beta=a, alpha=b)
    assert total is not None
    return total
