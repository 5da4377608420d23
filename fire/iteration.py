"""Polynomial steps on X (batch, m, n) and its Gram matrices: X <- X (a I + b G + c G^2)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fire.gram import SLICE, is_wide, on_gpu

# From this many times as long a side on, several steps in a row are made on the Gram matrix before X is touched.
TALL = 4
# On a GPU only where a step is this many multiplications or more; the small ones cost what launching them does.
_LARGE = 1 << 27


def by_gram(X: Tensor) -> bool:
    """Whether several steps in a row on the Gram matrices of X are cheaper than on X."""
    short, long = sorted(X.shape[-2:])
    return long >= TALL * short and (not on_gpu(X) or X.numel() * short >= _LARGE)


class Iteration:
    """X (batch, m, n) with its Gram matrices G, under X <- X (a I + b G + c G^2), in place.

    Besides X and G it needs memory for one more X and, on a CPU with c, one more G; there, for a single matrix, which
    may be as large as all others together, only for a block of rows.
    """

    def __init__(self, X: Tensor, G: Tensor) -> None:
        self.X, self.G = X, G
        self._home, self._wide, self._on_gpu = X, is_wide(X), on_gpu(X)
        self._spare = torch.empty_like(X) if len(X) > 1 or self._on_gpu else None
        self._square: Tensor | None = None

    def step(self, a: float, b: float, c: float = 0.0) -> None:
        """Multiply X by the polynomial of its Gram matrix, and bring that up to date."""
        if self._on_gpu:
            if c != 0:
                self.G.add_(torch.bmm(self.G, self.G, out=self._spare_square()), alpha=c / b)
            self._replace_with(lambda out: multiply_add(self.X, self.G, a, b, wide=self._wide, out=out))
        elif self._spare is None:
            for rows in self._rows():
                inner, factor = (rows, b) if c == 0 else (torch.addmm(rows, rows, self.G[0], beta=b, alpha=c), 1.0)
                rows.copy_(torch.addmm(rows, inner, self.G[0], beta=a, alpha=factor))
            torch.bmm(self.X.mT, self.X, out=self.G)
        else:
            if c != 0 and self._square is None:
                self._square = torch.empty_like(self.G)
            self.multiply(polynomial_(self.G, self._square, a, b, c))

    def multiply(self, R: Tensor) -> None:
        """X <- X R, R (batch, n, n) symmetric, and the new Gram matrix."""
        if self._spare is None:
            for rows in self._rows():
                rows.copy_(rows @ R[0])
            torch.bmm(self.X.mT, self.X, out=self.G)
        else:
            self._replace_with(lambda out: torch.bmm(*((R, self.X) if self._wide else (self.X, R)), out=out))

    def _replace_with(self, compute: Callable[[Tensor], Tensor]) -> None:
        """Compute the new X into the spare memory, which becomes X, and its Gram matrix."""
        assert self._spare is not None
        compute(self._spare)
        self.X, self._spare = self._spare, self.X
        torch.bmm(*((self.X, self.X.mT) if self._wide else (self.X.mT, self.X)), out=self.G)

    def _spare_square(self) -> Tensor:
        """Memory for one more G, which the spare X is large enough for."""
        assert self._spare is not None
        return self._spare.view(-1)[: self.G.numel()].view_as(self.G)

    def _rows(self) -> Sequence[Tensor]:
        return self.X[0].split(max(1, SLICE // (4 * self.X.shape[-1])))

    def finish(self) -> None:
        """Leave the result in the memory X came in."""
        if self.X is not self._home:
            self._home.copy_(self.X)


def multiply_add(X: Tensor, R: Tensor, a: float, b: float, wide: bool = False, out: Tensor | None = None) -> Tensor:
    """a X + b X R, or a X + b R X, in one operation."""
    return torch.baddbmm(X, *((R, X) if wide else (X, R)), beta=a, alpha=b, out=out)


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
    if on_gpu(G):
        return _product_in_few_operations(G, _paired(polynomials))
    total = R = polynomial_(G.clone(), None, *polynomials[0])
    for coefficients in polynomials[1:]:
        G = R @ G @ R  # all of these are polynomials of the first G, so they commute
        R = polynomial_(G.clone(), None, *coefficients)
        total = total @ R
    return total


def _product_in_few_operations(G: Tensor, polynomials: Sequence[Sequence[float]]) -> Tensor:
    """`product` for polynomials of degree 1, 2 or 4. Each is c0 I + f R, so that multiplying by it is one operation."""
    total = None
    for number, (c0, c1, *higher) in enumerate(polynomials):
        R, f = G, c1
        if higher:
            square = torch.bmm(G, G)
            R = torch.add(G, square, alpha=higher[0] / c1)
            if len(higher) == 3:
                highest = torch.add(G, square, alpha=higher[2] / higher[1])
                R, f = torch.baddbmm(R, square, highest, beta=c1, alpha=higher[1]), 1.0
        if total is None:
            total = R * f
            total.diagonal(dim1=-2, dim2=-1).add_(c0)
        else:
            total = multiply_add(total, R, c0, f)
        if number + 1 < len(polynomials):
            for _ in range(2):
                G = multiply_add(G, R, c0, f)
    assert total is not None
    return total


def _paired(polynomials: Sequence[tuple[float, float, float]]) -> list[tuple[float, ...]]:
    """Two cubic steps in a row as one of degree 4 in G: five products of matrices instead of six."""
    pairs: list[tuple[float, ...]] = []
    for a, b, c in polynomials:
        if c == 0 and pairs and len(pairs[-1]) == 2:
            a1, b1 = pairs[-1]
            # (a1 + b1 G) (a + b G (a1 + b1 G)^2), by powers of G.
            inner = (a, b * a1 * a1, 2 * b * a1 * b1, b * b1 * b1)
            first, second = (*(a1 * k for k in inner), 0.0), (0.0, *(b1 * k for k in inner))
            pairs[-1] = tuple(x + y for x, y in zip(first, second, strict=True))
        else:
            pairs.append((a, b) if c == 0 else (a, b, c))
    return pairs
