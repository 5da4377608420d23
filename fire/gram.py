"""Matrices by their Gram matrices, which is what both Newton-Schulz and Polar Express work on.

X is a batch (batch, m, n) of matrices with m >= n, G = X^T X (batch, n, n).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

# From this many rows a column on, several steps in a row are made on the Gram matrix before X is touched.
TALL = 4
# Elements of what counts as a small part of a stack of matrices.
SLICE = 1 << 20


def tall_side(W: Tensor) -> Tensor:
    """`W` (..., m, n) itself, or its transpose where it is wider than tall."""
    return W.mT if W.shape[-2] < W.shape[-1] else W


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where a parameter of `dtype` is projected: at least float32 (bfloat16 leaves an orthogonality error of 1e-3)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def batches(X: Tensor) -> Iterator[slice]:
    """Which of X (batch, m, n) to project together, one slice after the other.

    The working memory is about four times a slice, so no more than a quarter of a stack is taken unless all of it is
    small; on a CPU also no more than its cache holds, but enough to keep its cores busy.
    """
    count, each = len(X), X.shape[-2] * X.shape[-1]
    size = count if count * each <= SLICE else max(1, count // 4)
    if X.device.type == "cpu":
        size = min(size, max(4, SLICE // each))
    for start in range(0, count, size):
        yield slice(start, start + size)


def normalise_(X: Tensor) -> Tensor:
    """Divide each matrix of X (batch, m, n) by its Frobenius norm, in place; a zero matrix stays.

    Returns:
        The norms, (batch,), float64.
    """
    # Divided twice because the squares of entries beyond 1e19 or below 1e-22 leave float32's range.
    flat = X.flatten(1)
    largest = torch.maximum(flat.amax(1), -flat.amin(1))[:, None, None]
    X.div_(torch.where(largest > 0, largest, 1.0))
    norm = frobenius(X)[:, None, None]
    X.div_(torch.where(norm > 0, norm, 1.0))
    return (double(largest) * double(norm)).flatten()


def frobenius(X: Tensor) -> Tensor:
    """Frobenius norm of each matrix of X (batch, m, n): (batch,).

    Row by row, because PyTorch adds up one long float32 sum on a CPU without care: the norm of a 50304 x 768 matrix
    comes out 0.2 % wrong.
    """
    return torch.linalg.vector_norm(torch.linalg.vector_norm(X, dim=-1), dim=-1)


def gram(X: Tensor) -> Tensor:
    """X^T X of X (batch, m, n). To be called under `full_precision`."""
    return torch.bmm(X.mT, X)


def deviation(G: Tensor, scale: Tensor) -> Tensor:
    """Deviation from isometry of V = W / scale, ||G / scale^2 - I||_F^2, for Gram matrices G = W^T W (batch, n, n) and
    scale (batch,): (batch,), float64."""
    square = double(scale).square().clamp(1e-300, 1e15)  # beyond this G / scale^2 vanishes beside I
    diagonal = G.diagonal(dim1=-2, dim2=-1)
    kept = diagonal.clone()
    diagonal.sub_(square.to(G)[:, None])
    norm = frobenius(G)
    diagonal.copy_(kept)  # cheaper than a copy of G
    return (double(norm) / square).square()


def double(X: Tensor) -> Tensor:
    """X in float64."""
    # Apple's GPUs have no float64.
    return (X.cpu() if X.device.type == "mps" else X).double()


def eps(X: Tensor) -> float:
    """Rounding unit of X's dtype."""
    return torch.finfo(X.dtype).eps


class Iteration:
    """X (batch, m, n) with its Gram matrix G, under X <- X (a I + b G + c G^2), in place.

    Besides X and G it needs memory for one more X and, with c, one more G; for a single matrix, which may be as large
    as all others together, only for a block of rows.
    """

    def __init__(self, X: Tensor, G: Tensor) -> None:
        self.X, self.G = X, G
        self._home = X
        self._spare = torch.empty_like(X) if len(X) > 1 else None
        self._square: Tensor | None = None

    def step(self, a: float, b: float, c: float = 0.0) -> None:
        """Multiply X by the polynomial of its Gram matrix, and bring that up to date."""
        if self._spare is None:
            for rows in self._rows():
                inner, factor = (rows, b) if c == 0 else (torch.addmm(rows, rows, self.G[0], beta=b, alpha=c), 1.0)
                rows.copy_(torch.addmm(rows, inner, self.G[0], beta=a, alpha=factor))
            torch.bmm(self.X.mT, self.X, out=self.G)
        else:
            if c != 0 and self._square is None:
                self._square = torch.empty_like(self.G)
            self.multiply(polynomial_(self.G, self._square, a, b, c))

    def multiply(self, R: Tensor) -> None:
        """X <- X R, R (batch, n, n), and the new Gram matrix."""
        if self._spare is None:
            for rows in self._rows():
                rows.copy_(rows @ R[0])
        else:
            torch.bmm(self.X, R, out=self._spare)
            self.X, self._spare = self._spare, self.X
        torch.bmm(self.X.mT, self.X, out=self.G)

    def _rows(self) -> Sequence[Tensor]:
        return self.X[0].split(max(1, SLICE // (4 * self.X.shape[-1])))

    def finish(self) -> None:
        """Leave the result in the memory X came in."""
        if self.X is not self._home:
            self._home.copy_(self.X)


def polynomial_(G: Tensor, square: Tensor | None, a: float, b: float, c: float) -> Tensor:
    """a I + b G + c G^2 in the memory of G, (batch, n, n); `square` is memory for G^2."""
    if c != 0:
        square = torch.bmm(G, G) if square is None else torch.bmm(G, G, out=square)
        G.mul_(b).add_(square, alpha=c)
    else:
        G.mul_(b)
    G.diagonal(dim1=-2, dim2=-1).add_(a)
    return G


def product(G: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """What X is multiplied by in all, (batch, n, n), each polynomial in turn being of its Gram matrix, first G."""
    total = R = polynomial_(G.clone(), None, *polynomials[0])
    for coefficients in polynomials[1:]:
        G = R @ G @ R  # all of these are polynomials of the first G, so they commute
        R = polynomial_(G.clone(), None, *coefficients)
        total = total @ R
    return total


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """True float32 products inside: no autocast, no TF32 or bfloat16 shortcuts, whatever the caller has chosen."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device_type, enabled=False))
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch >= 2.9; the older switch may refuse a read
            for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):  # type: ignore[attr-defined]
                # What is inherited from the general switch must go on being so.
                old = backend.fp32_precision
                inherited = old == torch.backends.fp32_precision  # type: ignore[attr-defined]
                stack.callback(setattr, backend, "fp32_precision", "none" if inherited else old)
                backend.fp32_precision = "ieee"
        else:
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        yield
