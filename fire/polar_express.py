"""Polar Express (Amsel et al. 2025, arXiv 2505.16932): the polar factor by minimax quintic steps.

The published method fixes the number of steps in advance for an assumed smallest singular value. Here that is bounded
from below by a Cholesky factor of the Gram matrix as soon as it exceeds rounding, and the steps are chosen for it. On a
GPU, where that costs more than some steps too many, it is assumed first, and bounded only for what has not converged.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .gram import (
    SLICE,
    TALL,
    Batch,
    Iteration,
    by_gram,
    distance_to_identity,
    double,
    frobenius,
    gram,
    normalise_,
    on_cpu,
    on_gpu,
    product,
)

# The minimax problem is solved no closer to zero than this share of the interval: steeper polynomials gain little on
# the smallest singular values and amplify rounding on the others.
_CUSHION = 0.024
# Every polynomial but the last is evaluated as if the matrix were 1 % larger, so that rounding cannot carry a singular
# value past the interval, where a quintic grows without bound.
_SAFETY = 1.01
# A tall matrix is better conditioned than this, or is iterated on directly: a Gram matrix squares the condition number.
_WELL_CONDITIONED = 1e-2
# On a GPU nothing looks for the smallest singular value at first. It is assumed to be this share of the largest: for
# matrices of about as many rows as columns, for longer ones, and in a second attempt.
_ASSUMED, _ASSUMED_LONG, _ASSUMED_LAST = 1e-4, 1.6e-2, 2e-6


def polar_express(batches: Sequence[Batch], tol: float) -> list[list[int]]:
    """Quintic steps, then cubic ones until RMS |sigma^2 - 1| <= tol.

    Returns:
        For each batch, the numbers of the matrices that may be rank-deficient: too near to it to decide here.
    """
    if not (batches and on_gpu(batches[0].X)):
        return [_bounding(batch.X, batch.G, tol) for batch in batches]
    gains = []
    for batch in batches:
        _, m, n = batch.X.shape
        _divide_by_bound_(batch.X, batch.G)
        gains.append(_assume(batch, _ASSUMED_LONG if m >= 2 * n else _ASSUMED, tol))
    left = _not_converged(batches, tol)
    # A null space holds rounding noise of some 4e-7 of the largest singular value. Assuming no less than
    # _ASSUMED_LAST in all, the steps make no more than a third of it, which cannot pass for converged.
    # From a Gram matrix alone the smallest directions come out wrong, not only short.
    again = [i for i, batch in enumerate(batches) if left[i] and not by_gram(batch.X)]
    chosen = [batches[i].X[left[i]] for i in again]
    parts = [Batch(X, gram(X), batches[i].originals) for i, X in zip(again, chosen, strict=True)]
    for i, part in zip(again, parts, strict=True):
        _assume(part, gains[i] * _ASSUMED_LAST, tol)
    for i, part, still in zip(again, parts, _not_converged(parts, tol), strict=True):
        batches[i].X[left[i]], batches[i].G[left[i]] = part.X, part.G
        left[i] = [left[i][k] for k in still]
    return [_with_care(batch, numbers, tol) for batch, numbers in zip(batches, left, strict=True)]


def _with_care(batch: Batch, numbers: list[int], tol: float) -> list[int]:
    """Start again, for some matrices of a batch, from their smallest singular values; those that may be
    rank-deficient."""
    if not numbers:
        return []
    originals = batch.originals()
    part = torch.stack([originals[i].to(batch.X.dtype) for i in numbers])
    normalise_(part)
    G = gram(part)
    suspects = _bounding(part, G, tol)
    batch.X[numbers], batch.G[numbers] = part, G
    return [numbers[i] for i in suspects]


def _assume(batch: Batch, low: float, tol: float) -> float:
    """The steps for singular values of at least `low` of the largest; how much the smallest ones grow by them."""
    table = polar_express_table(low, 1.0, tol)
    iteration = Iteration(batch.X, batch.G)
    if by_gram(batch.X):
        iteration.multiply(product(batch.G, table))
    else:
        for coefficients in table:
            iteration.step(*coefficients)
    iteration.step(1.5, -0.5)
    iteration.finish()
    return 1.5 * math.prod(a for a, _, _ in table)


def _not_converged(batches: Sequence[Batch], tol: float) -> list[list[int]]:
    """For each batch, the numbers of the matrices that are farther than `tol` from isometries."""
    distances = on_cpu([distance_to_identity(batch.G) for batch in batches])
    # A null direction counts as 1, so that it is left however large the tolerance.
    limits = [min(tol * math.sqrt(batch.G.shape[-1]), 0.5) for batch in batches]
    known = zip(distances, limits, strict=True)
    return [[i for i, d in enumerate(found.tolist()) if not d <= limit] for found, limit in known]  # NaN among them


def _divide_by_bound_(X: Tensor, G: Tensor) -> Tensor:
    """Divide X by an upper bound of its largest singular value, G by its square; the bound, (batch,)."""
    # ||G^2||_F^(1/4) bounds the largest singular value far more tightly than the Frobenius norm.
    fourth = frobenius(G @ G)
    if on_gpu(X):
        bound = fourth.pow_(0.25).mul_(_SAFETY).clamp_(min=1e-15)  # by which zero is divided without harm
    else:
        bound = _SAFETY * fourth.sqrt().sqrt()
        bound = torch.where(bound > 0, bound, 1.0)
    X.div_(bound[:, None, None])
    G.div_(bound.square()[:, None, None])
    return bound


def _bounding(X: Tensor, G: Tensor, tol: float) -> list[int]:
    """`polar_express` of X (batch, m, n), m >= n, for the smallest singular value there is, bounded by Cholesky."""
    m, n = X.shape[-2:]
    bound = _divide_by_bound_(X, G)
    iteration = Iteration(X, G)
    # As long as the smallest singular value is lost in the rounding of the Gram matrix, it must be taken for tiny, and
    # the steps are those that lift tiny ones fastest. In a square matrix it is about 1/n of the largest, or less.
    high, grown = 1.0, 1.0
    suspects = torch.ones(len(X), dtype=torch.bool, device="cpu")
    # What rounding may have put into a null space by now: into X when it was stored and in every step.
    noise = 4 * torch.finfo(X.dtype).eps * (m**-0.5 + n**-0.5) / on_cpu([bound])[0]
    while True:
        if m > n or grown > 16 * n * _resolution(X):
            (lows,) = on_cpu([_smallest(G, high)])
            suspects = lows <= grown * noise
        if not suspects.any() or grown * float(noise.min()) > _resolution(X) * high:
            break
        (a, b, c), _, high = _quintic(0.0, high)
        iteration.step(a, b, c)
        grown *= a
    found = suspects.nonzero().flatten().tolist()
    if len(found) == len(X):
        return found
    low = float(lows[~suspects].min())
    # Rounded down, so that a few tables serve all matrices.
    table = polar_express_table(2 ** (math.floor(4 * math.log2(low)) / 4), high, tol)
    if table and m >= TALL * n and low > _WELL_CONDITIONED:
        iteration.multiply(product(G, table))
    else:
        for coefficients in table:
            iteration.step(*coefficients)
    for _ in range(20):
        mean_square = double(distance_to_identity(G)).square() / n
        if not (on_cpu([mean_square])[0][~suspects] > tol**2).any():
            break
        iteration.step(1.5, -0.5)
    iteration.finish()
    return found


def _smallest(G: Tensor, high: float) -> Tensor:
    """Lower bounds on the singular values of matrices with the Gram matrices G (batch, n, n), none above `high`:
    (batch,); 0 where rounding hides them, or the factorisation gives no finite number, whatever it reports."""
    batch, n, _ = G.shape
    shift = (_resolution(G) * high) ** 2
    diagonal = G.diagonal(dim1=-2, dim2=-1)
    kept = diagonal.clone()
    diagonal.sub_(shift)
    factor, failed = torch.linalg.cholesky_ex(G)
    diagonal.copy_(kept)
    if failed.all():
        return torch.zeros_like(failed, dtype=G.dtype)
    # ||L^-1||_F^2 is the trace of the inverse, the sum of 1 / sigma^2; by columns, to need less memory.
    trace = torch.zeros_like(failed, dtype=G.dtype)
    width = max(1, SLICE // (4 * batch * n))
    for start in range(0, n, width):
        columns = torch.zeros(n, min(width, n - start), dtype=G.dtype, device=G.device)
        columns.diagonal(-start).fill_(1)
        inverse = torch.linalg.solve_triangular(factor, columns.expand(batch, -1, -1), upper=False)
        trace += frobenius(inverse).square().to(trace)
    bound = (shift + trace.reciprocal()).sqrt()
    return torch.where((failed == 0) & bound.isfinite(), bound, 0.0)


def _resolution(X: Tensor) -> float:
    """The smallest singular value, relative to the largest, that shows in the Gram matrix in X's dtype."""
    return math.sqrt(32 * torch.finfo(X.dtype).eps)


@lru_cache(maxsize=256)
def polar_express_table(low: float, high: float, tol: float) -> list[tuple[float, float, float]]:
    """Coefficients (a, b, c) of p(x) = a x + b x^3 + c x^5 for the steps that bring singular values in [low, high] so
    near to 1 that one cubic step more reaches RMS |sigma^2 - 1| <= tol.

    Each p is the best approximation of 1 on the interval the steps before it leave (Amsel et al. 2025, Thm. 3.1 and
    section 3.3), recentred where the cushion widened that interval, with the safety factor in all but the last.
    """
    table = []
    # A cubic step takes an error e of sigma^2 to 3/4 e^2.
    while max(1 - low, high - 1) > 0.5 * math.sqrt(tol):
        coefficients, low, high = _quintic(low, high)
        table.append(coefficients)
    if table:
        a, b, c = table[-1]
        table[-1] = a * _SAFETY, b * _SAFETY**3, c * _SAFETY**5
    return table


def _quintic(low: float, high: float) -> tuple[tuple[float, float, float], float, float]:
    """The step for singular values in [low, high], with the safety factor, and the interval it leaves."""
    a, b, c = _minimax_quintic(max(low, _CUSHION * high), high)
    at_low, at_high = (a * x + b * x**3 + c * x**5 for x in (low, high))
    centre = 2 / (at_low + at_high)
    a, b, c = a * centre, b * centre, c * centre
    return (a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5), at_low * centre, 2 - at_low * centre


def _minimax_quintic(low: float, high: float) -> tuple[float, float, float]:
    """The odd quintic closest to 1 on [low, high] in the maximum norm, by the Remez exchange."""
    if 1 - low / high < 1e-6:  # the limit of a shrinking interval, where the equations below turn singular
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    inner = (0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high)
    a = b = c = 0.0
    for _ in range(60):
        # An error of equal size and alternating sign at four points, ends included, marks the best approximation.
        points = (low, *inner, high)
        rows = [[x, x**3, x**5, (-1.0) ** i] for i, x in enumerate(points)]
        right = torch.ones(4, dtype=torch.float64, device="cpu")
        a, b, c, error = torch.linalg.solve(torch.tensor(rows, dtype=torch.float64, device="cpu"), right).tolist()
        # The error's extremes inside are the roots of p'(x) = a + 3 b x^2 + 5 c x^4.
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        inner = (math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c)))
        deviations = [abs(1 - (a * x + b * x**3 + c * x**5)) for x in inner]
        if max(deviations) <= abs(error) * (1 + 1e-9) + 1e-15:
            break
    return a, b, c
