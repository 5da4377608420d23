"""The polar factor of a matrix: the isometry nearest to it in Frobenius norm (paper eq. 5, U V^T of the SVD).

Three solvers, batched over leading dimensions:

- `newton_schulz`: the published procedure, a fixed number of cubic steps. After 5 or 10 steps a square matrix is
  still far from isometric: `steps` is a strength, not a mere cost.
- `polar_express`: minimax quintic steps (Amsel et al. 2025, arXiv 2505.16932), then cubic ones until the
  constraint holds to `tol`.
- `svd`: U V^T in float64, the oracle.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache

import torch
from torch import Tensor

SOLVERS = ("newton_schulz", "polar_express", "svd")

# Smallest relative singular value the Polar Express table is made for, and its length. With fewer steps than a table
# needs the result is worse than with a shorter table, so the two belong together.
_TABLE_LOWER, _TABLE_STEPS = 1e-7, 14
# The minimax problem is solved no closer to zero than this share of the interval: steeper polynomials gain little on
# the smallest singular values and amplify rounding on the others.
_CUSHION = 0.024
# Every polynomial but the last is evaluated as if the matrix were 1 % larger, so that rounding cannot carry a singular
# value past the interval, where a quintic grows without bound.
_SAFETY = 1.01
_CHUNK = 1 << 23  # elements converted to float64 at a time


@torch.no_grad()
def polar(W: Tensor, *, solver: str = "newton_schulz", steps: int = 10, tol: float = 1e-6) -> Tensor:
    """The (approximate) orthogonal polar factor of each matrix in `W`.

    Args:
        W: (..., m, n), any floating dtype; half precisions are computed in float32.
        solver: `newton_schulz` (the paper), `polar_express` or `svd`.
        steps: cubic Newton-Schulz steps; the other solvers ignore it.
        tol: `polar_express` runs until the root mean square of |sigma^2 - 1| is at most this; others ignore it.

    Returns:
        A tensor like `W`. A zero matrix gives zero; a rank-deficient one a partial isometry, its null space kept.

    Raises:
        ValueError: unknown solver, steps or tol out of range, fewer than two dimensions, a non-finite entry.
        TypeError: `W` is not real floating point.
    """
    check_solver(solver, steps, tol, W.dtype)
    if W.ndim < 2:
        raise ValueError(f"a matrix is needed, (..., m, n); got shape {tuple(W.shape)}")
    if not torch.isfinite(W).all():
        raise ValueError(f"the matrix of shape {tuple(W.shape)} holds a non-finite entry")
    batch = W.reshape(-1, *W.shape[-2:]).to(compute_dtype(W.dtype), copy=True)
    factor, _ = polar_(batch, solver=solver, steps=steps, tol=tol)
    return factor.reshape(W.shape).to(W.dtype)


def check_solver(solver: str, steps: int, tol: float, dtype: torch.dtype = torch.float32) -> None:
    """Raise ValueError or TypeError for arguments no solver accepts."""
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; valid: {', '.join(SOLVERS)}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    if not dtype.is_floating_point:
        raise TypeError(f"a real floating-point tensor is needed, got {dtype}")
    reachable = 4 * torch.finfo(compute_dtype(dtype)).eps
    if not reachable <= tol < 1:
        raise ValueError(f"tol must lie in [{reachable:.1e}, 1) for {compute_dtype(dtype)}, got {tol!r}")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where a parameter of `dtype` is projected: at least float32 (bfloat16 leaves an orthogonality error of 1e-3)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def polar_(W: Tensor, *, solver: str, steps: int, tol: float) -> tuple[Tensor, Tensor]:
    """`polar` for finite float32 or float64 `W` (batch, m, n), whose memory it may reuse.

    Returns:
        The factors, (batch, m, n), and the numerical rank of each matrix, (batch,) on the CPU: 0 for a zero matrix.
    """
    if W.numel() == 0:
        return W, torch.zeros(W.shape[0], dtype=torch.long)
    wide = W.shape[-2] < W.shape[-1]
    X = W.mT if wide else W  # tall: (batch, m, n) with m >= n
    # Divided twice because the squares of entries beyond 1e19 or below 1e-22 leave float32's range.
    largest = X.abs().amax(dim=(-2, -1), keepdim=True)
    X = X.div_(torch.where(largest > 0, largest, 1.0))
    norm = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True)
    X = X.div_(torch.where(norm > 0, norm, 1.0))
    ranks = torch.where(norm.flatten() > 0, X.shape[-1], 0).cpu()
    with full_precision(X.device.type):
        # Iterating would stretch the rounding noise of a null space into directions the matrix never had, so what
        # may be rank-deficient is computed on its singular values instead.
        special: dict[int, Tensor] = {}
        for i in _nearly_singular(X).nonzero().flatten().tolist():
            ranks[i], special[i] = _through_svd(X[i], steps if solver == "newton_schulz" else None)
        regular = torch.tensor([i not in special for i in range(len(X))], device=X.device)
        if solver == "newton_schulz":
            X = _newton_schulz(X, steps)
        elif solver == "polar_express":
            X = _polar_express(X, tol, regular)
        else:
            X = torch.stack([_through_svd(x, None)[1] for x in X])
        for i, factor in special.items():
            X[i] = factor
    return (X.mT if wide else X), ranks


def _newton_schulz(X: Tensor, steps: int) -> Tensor:
    """`steps` times X <- 1.5 X - 0.5 X X^T X, for X (batch, m, n), m >= n, of Frobenius norm 1 (paper Alg. 1)."""
    for _ in range(steps):
        X = torch.baddbmm(X, X, X.mT @ X, beta=1.5, alpha=-0.5)
    return X


def _polar_express(X: Tensor, tol: float, counted: Tensor) -> Tensor:
    """The table's quintic steps, then cubic ones until RMS |sigma^2 - 1| <= tol in every matrix `counted` selects.

    X is (batch, m, n), m >= n, of Frobenius norm 1; counted is (batch,), boolean.
    """
    X = X / _SAFETY
    for a, b, c in polar_express_table():
        G = X.mT @ X
        X = torch.baddbmm(X, X, torch.baddbmm(G, G, G, beta=b, alpha=c), beta=a)
    # The table lifts 1e-7 to 1; what lies lower grows by 1.5 a step, so that 50 steps reach down to 1e-15.
    for _ in range(50):
        G = X.mT @ X
        excess = G - torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
        rms = torch.linalg.vector_norm(excess, dim=(-2, -1)) / math.sqrt(X.shape[-1])
        if not (rms[counted] > tol).any():
            break
        X = torch.baddbmm(X, X, G, beta=1.5, alpha=-0.5)
    return X


def _through_svd(X: Tensor, steps: int | None) -> tuple[int, Tensor]:
    """Numerical rank of X (m, n) and its polar factor or, given `steps`, what Newton-Schulz makes of it, in float64.

    The rank counts the singular values above the rounding that storing X in its dtype has caused: a matrix of
    independent relative errors eps has spectral norm of about eps ||X||_F (1/sqrt(m) + 1/sqrt(n)).
    """
    m, n = X.shape
    U, sigma, Vh = torch.linalg.svd(_double(X), full_matrices=False)
    norm = torch.linalg.vector_norm(sigma)
    kept = sigma > 2 * torch.finfo(X.dtype).eps * norm * (m**-0.5 + n**-0.5)
    value = torch.ones_like(sigma) if steps is None else sigma / norm.clamp_min(torch.finfo(sigma.dtype).tiny)
    for _ in range(steps or 0):
        value = 1.5 * value - 0.5 * value**3
    factor = (U * torch.where(kept, value, 0.0)) @ Vh
    return int(kept.sum()), factor.to(device=X.device, dtype=X.dtype)


def _nearly_singular(X: Tensor) -> Tensor:
    """Which of X (batch, m, n), m >= n, of Frobenius norm 1 might be rank-deficient: boolean, (batch,).

    A Cholesky factorisation costs a fraction of one Newton-Schulz step where singular values would cost more than all
    of them. It errs towards True, and `_through_svd` decides. Zero matrices count: their rank is 0.
    """
    m, n = X.shape[-2:]
    threshold = 2 * torch.finfo(X.dtype).eps * (m**-0.5 + n**-0.5)
    # The second term covers the rounding of the Gram matrix itself.
    shift = threshold**2 + 100 * torch.finfo(torch.float64).eps
    shifted = gram(X)
    shifted.diagonal(dim1=-2, dim2=-1).sub_(shift)
    _, failed = torch.linalg.cholesky_ex(shifted)
    return failed > 0


def gram(X: Tensor) -> Tensor:
    """Gram matrix of the smaller side of X (..., m, n) in float64, (..., min(m, n), min(m, n)), in bounded memory."""
    tall = (X.mT if X.shape[-2] < X.shape[-1] else X).reshape(-1, max(X.shape[-2:]), min(X.shape[-2:]))
    batch, m, n = tall.shape
    device = "cpu" if X.device.type == "mps" else X.device
    out = torch.zeros(batch, n, n, dtype=torch.float64, device=device)
    rows = max(1, min(m, _CHUNK // n))
    count = max(1, _CHUNK // (rows * n))
    for i in range(0, batch, count):
        for j in range(0, m, rows):
            part = _double(tall[i : i + count, j : j + rows])
            out[i : i + count].baddbmm_(part.mT, part)
    return out.reshape(*X.shape[:-2], n, n)


def _double(X: Tensor) -> Tensor:
    # Apple's GPUs have no float64.
    return (X.cpu() if X.device.type == "mps" else X).double()


@lru_cache
def polar_express_table(lower: float = _TABLE_LOWER, steps: int = _TABLE_STEPS) -> list[tuple[float, float, float]]:
    """Coefficients (a, b, c) of p(x) = a x + b x^3 + c x^5 for each step, for singular values in [lower, 1].

    Each p is the best approximation of 1 on the interval the steps before it leave (Amsel et al. 2025, Thm. 3.1 and
    section 3.3), recentred where the cushion widened that interval, with the safety factor in all but the last.
    """
    table = []
    low, high = lower, 1.0
    for step in range(steps):
        a, b, c = _minimax_quintic(max(low, _CUSHION * high), high)
        at_low, at_high = (a * x + b * x**3 + c * x**5 for x in (low, high))
        centre = 2 / (at_low + at_high)
        a, b, c = a * centre, b * centre, c * centre
        low, high = at_low * centre, 2 - at_low * centre
        shrink = 1.0 if step == steps - 1 else 1 / _SAFETY
        table.append((a * shrink, b * shrink**3, c * shrink**5))
    return table


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
        right = torch.ones(4, dtype=torch.float64)
        a, b, c, error = torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), right).tolist()
        # The error's extremes inside are the roots of p'(x) = a + 3 b x^2 + 5 c x^4.
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        inner = (math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c)))
        deviations = [abs(1 - (a * x + b * x**3 + c * x**5)) for x in inner]
        if max(deviations) <= abs(error) * (1 + 1e-9) + 1e-15:
            break
    return a, b, c


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
