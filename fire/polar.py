"""The polar factor of a matrix: the isometry nearest to it in Frobenius norm (paper eq. 5, U V^T of the SVD).

Three solvers, batched over leading dimensions:

- `newton_schulz`: the published procedure, a fixed number of cubic steps. After 5 or 10 steps a square matrix is
  still far from isometric: `steps` is a strength, not a mere cost.
- `polar_express`: minimax quintic steps (Amsel et al. 2025, arXiv 2505.16932), as many as the smallest singular value
  asks for, then cubic ones until the constraint holds to `tol`.
- `svd`: U V^T in float64, the oracle.

Both iterations multiply X (m, n), m >= n, by a polynomial of its Gram matrix: X <- X (a I + b G + c G^2), G = X^T X.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache

import torch
from torch import Tensor

SOLVERS = ("newton_schulz", "polar_express", "svd")

# The minimax problem is solved no closer to zero than this share of the interval: steeper polynomials gain little on
# the smallest singular values and amplify rounding on the others.
_CUSHION = 0.024
# Every polynomial but the last is evaluated as if the matrix were 1 % larger, so that rounding cannot carry a singular
# value past the interval, where a quintic grows without bound.
_SAFETY = 1.01
# Above this many rows a column the whole iteration runs on the Gram matrix and touches X only once.
_TALL = 4
# Elements of a slice of a stack of matrices that counts as small.
_BATCH = 1 << 20
# A tall matrix is better conditioned than this, or is iterated on directly: a Gram matrix squares the condition number.
_WELL_CONDITIONED = 1e-2
# A fixed number of Newton-Schulz steps up to this makes so little of a null space's rounding noise, 1.5^16 = 657 times
# 1e-7 at most, that nobody need look for one.
_HARMLESS_STEPS = 16


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
    tall = tall_side(W)
    original = tall.reshape(-1, *tall.shape[-2:])
    X = torch.empty(original.shape, dtype=compute_dtype(W.dtype), device=W.device).copy_(original)
    with full_precision(X.device.type):
        for rows in batches(X):
            normalise_(X[rows])
            polar_(X[rows], gram(X[rows]), original[rows], solver=solver, steps=steps, tol=tol)
    X = X.reshape(tall.shape)
    return (X if tall is W else X.mT).to(W.dtype)


def tall_side(W: Tensor) -> Tensor:
    """`W` (..., m, n) itself, or its transpose where it is wider than tall."""
    return W.mT if W.shape[-2] < W.shape[-1] else W


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


def batches(X: Tensor) -> Iterator[slice]:
    """Which of X (batch, m, n) to project together, one slice after the other.

    The working memory is three times a slice, so at most a quarter of the stack is taken where a slice is not small
    anyway; on a CPU also no more than its cache holds, but enough to keep its cores busy.
    """
    count, largest = len(X), math.ceil(len(X) / 4)
    size = max(1, _BATCH // max(1, X.shape[-2] * X.shape[-1]), min(largest, 4) if X.device.type == "cpu" else largest)
    for start in range(0, count, size):
        yield slice(start, start + size)


def gram(X: Tensor) -> Tensor:
    """X^T X of X (batch, m, n). To be called under `full_precision`."""
    return torch.bmm(X.mT, X)


def deviation(G: Tensor, scale: Tensor) -> Tensor:
    """Deviation from isometry of V = W / scale, ||G / scale^2 - I||_F^2, for Gram matrices G = W^T W (batch, n, n) and
    scale (batch,): (batch,), float64."""
    square = _double(scale).square().clamp(1e-300, 1e15)  # beyond this G / scale^2 vanishes beside I
    diagonal = G.diagonal(dim1=-2, dim2=-1)
    kept = diagonal.clone()
    diagonal.sub_(square.to(G)[:, None])
    norm = torch.linalg.vector_norm(G, dim=(-2, -1))
    diagonal.copy_(kept)  # cheaper than a copy of G
    return (_double(norm) / square).square()


def normalise_(X: Tensor) -> Tensor:
    """Divide each matrix of X (batch, m, n) by its Frobenius norm, in place; a zero matrix stays.

    Returns:
        The norms, (batch,).
    """
    # Divided twice because the squares of entries beyond 1e19 or below 1e-22 leave float32's range.
    if X.numel() == 0:
        return X.new_zeros(len(X))
    flat = X.flatten(1)
    largest = torch.maximum(flat.amax(1), -flat.amin(1))[:, None, None]
    X.div_(torch.where(largest > 0, largest, 1.0))
    norm = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True)
    X.div_(torch.where(norm > 0, norm, 1.0))
    return (largest * norm).flatten()


def polar_(
    X: Tensor, G: Tensor, original: Tensor | Sequence[Tensor], *, solver: str, steps: int, tol: float
) -> Tensor | None:
    """Replace X by its polar factor, in place. To be called under `full_precision`.

    Args:
        X: (batch, m, n), m >= n, contiguous, float32 or float64, each matrix of Frobenius norm 1 or zero.
        G: its Gram matrices, (batch, n, n); they become those of the factors.
        original: the matrices (m, n) before normalisation, for those that need their SVD.
        solver, steps, tol: as in `polar`.

    Returns:
        The numerical rank of each matrix, (batch,) on the CPU; None where no rank was looked for.
    """
    if X.numel() == 0:
        return torch.zeros(len(X), dtype=torch.long)
    suspects = torch.ones(len(X), dtype=torch.bool)
    if solver == "newton_schulz":
        if steps <= _HARMLESS_STEPS:
            _newton_schulz(X, G, steps)
            return None
        suspects = _nearly_singular(X).cpu()
        _newton_schulz(X, G, steps)
    elif solver == "polar_express":
        suspects = _polar_express(X, G, tol)
    ranks = torch.full((len(X),), X.shape[-1])
    # Iterating would stretch the rounding noise of a null space into directions the matrix never had, so what
    # may be rank-deficient is computed on its singular values instead.
    for i in suspects.nonzero().flatten().tolist():
        ranks[i], X[i] = _through_svd(original[i].to(X.dtype), steps if solver == "newton_schulz" else None)
        G[i] = X[i].mT @ X[i]
    return ranks


class _Iteration:
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
            for rows in self.X[0].split(max(1, _BATCH // self.X.shape[-1])):
                inner, factor = (rows, b) if c == 0 else (torch.addmm(rows, rows, self.G[0], beta=b, alpha=c), 1.0)
                rows.copy_(torch.addmm(rows, inner, self.G[0], beta=a, alpha=factor))
            torch.bmm(self.X.mT, self.X, out=self.G)
        else:
            if c != 0 and self._square is None:
                self._square = torch.empty_like(self.G)
            self.multiply(_polynomial_(self.G, self._square, a, b, c))

    def multiply(self, R: Tensor) -> None:
        """X <- X R, R (batch, n, n), and the new Gram matrix."""
        if self._spare is None:
            for rows in self.X[0].split(max(1, _BATCH // self.X.shape[-1])):
                rows.copy_(rows @ R[0])
        else:
            torch.bmm(self.X, R, out=self._spare)
            self.X, self._spare = self._spare, self.X
        torch.bmm(self.X.mT, self.X, out=self.G)

    def finish(self) -> None:
        """Leave the result in the memory X came in."""
        if self.X is not self._home:
            self._home.copy_(self.X)


def _polynomial_(G: Tensor, square: Tensor | None, a: float, b: float, c: float) -> Tensor:
    """a I + b G + c G^2 in the memory of G, (batch, n, n); `square` is memory for G^2."""
    if c != 0:
        square = torch.bmm(G, G) if square is None else torch.bmm(G, G, out=square)
        G.mul_(b).add_(square, alpha=c)
    else:
        G.mul_(b)
    G.diagonal(dim1=-2, dim2=-1).add_(a)
    return G


def _product(G: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """What X is multiplied by in all, (batch, n, n), each polynomial in turn being of its Gram matrix, first G."""
    product = R = _polynomial_(G.clone(), None, *polynomials[0])
    for coefficients in polynomials[1:]:
        G = R @ G @ R  # all of these are polynomials of the first G, so they commute
        R = _polynomial_(G.clone(), None, *coefficients)
        product = product @ R
    return product


def _newton_schulz(X: Tensor, G: Tensor, steps: int) -> None:
    """`steps` times X <- 1.5 X - 0.5 X X^T X (paper Alg. 1)."""
    iteration = _Iteration(X, G)
    if X.shape[-2] >= _TALL * X.shape[-1]:
        iteration.multiply(_product(G, [(1.5, -0.5, 0.0)] * steps))
    else:
        for _ in range(steps):
            iteration.step(1.5, -0.5)
    iteration.finish()


def _polar_express(X: Tensor, G: Tensor, tol: float) -> Tensor:
    """Quintic steps, then cubic ones until RMS |sigma^2 - 1| <= tol.

    Returns:
        Which matrices are so near to rank deficiency that this cannot tell: boolean, (batch,), on the CPU.
    """
    m, n = X.shape[-2:]
    # ||G^2||_F^(1/4) bounds the largest singular value far more tightly than the Frobenius norm.
    bound = _SAFETY * torch.linalg.vector_norm(G @ G, dim=(-2, -1), keepdim=True).sqrt().sqrt()
    bound = torch.where(bound > 0, bound, 1.0)
    X.div_(bound)
    G.div_(bound.square())
    iteration = _Iteration(X, G)
    # As long as the smallest singular value is lost in the rounding of the Gram matrix, it must be taken for tiny, and
    # the steps are those that lift tiny ones fastest. In a square matrix it is about 1/n of the largest, or less.
    high, grown = 1.0, 1.0
    suspects = torch.ones(len(X), dtype=torch.bool)
    # What rounding may have put into a null space by now: into X when it was stored and in every step.
    noise = 4 * _eps(X) * (m**-0.5 + n**-0.5) / bound.flatten().cpu()
    while True:
        if m > n or grown > 16 * n * _resolution(X):
            lows = _smallest(G, high).cpu()
            suspects = lows <= grown * noise
        if not suspects.any() or grown * float(noise.min()) > _resolution(X) * high:
            break
        (a, b, c), _, high = _quintic(0.0, high)
        iteration.step(a, b, c)
        grown *= a
    if suspects.all():
        return suspects
    low = float(lows[~suspects].min())
    # Rounded down, so that a few tables serve all matrices.
    table = polar_express_table(2 ** (math.floor(4 * math.log2(low)) / 4), high, tol)
    if table and m >= _TALL * n and low > _WELL_CONDITIONED:
        iteration.multiply(_product(G, table))
    else:
        for coefficients in table:
            iteration.step(*coefficients)
    for _ in range(20):
        mean_square = deviation(G, torch.ones_like(G[:, 0, 0])) / n
        if not (mean_square.cpu()[~suspects] > tol**2).any():
            break
        iteration.step(1.5, -0.5)
    iteration.finish()
    return suspects


def _smallest(G: Tensor, high: float) -> Tensor:
    """Lower bounds on the singular values of matrices with the Gram matrices G (batch, n, n), none above `high`:
    (batch,); 0 where rounding hides them."""
    shift = (_resolution(G) * high) ** 2
    shifted = G.clone()
    shifted.diagonal(dim1=-2, dim2=-1).sub_(shift)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if failed.all():
        return torch.zeros_like(G[:, 0, 0])
    identity = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device).expand_as(G)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    # ||L^-1||_F^2 is the trace of the inverse, the sum of 1 / sigma^2.
    bound = (shift + torch.linalg.vector_norm(inverse, dim=(-2, -1)).square().reciprocal()).sqrt()
    return torch.where(failed == 0, bound, 0.0)


def _eps(X: Tensor) -> float:
    return torch.finfo(X.dtype).eps


def _resolution(X: Tensor) -> float:
    """The smallest singular value, relative to the largest, that shows in the Gram matrix in X's dtype."""
    return math.sqrt(32 * _eps(X))


def _through_svd(X: Tensor, steps: int | None) -> tuple[int, Tensor]:
    """Numerical rank of X (m, n) and its polar factor or, given `steps`, what Newton-Schulz makes of it, in float64.

    The rank counts the singular values above the rounding that storing X in its dtype has caused: a matrix of
    independent relative errors eps has spectral norm of about eps ||X||_F (1/sqrt(m) + 1/sqrt(n)).
    """
    m, n = X.shape
    U, sigma, Vh = torch.linalg.svd(_double(X), full_matrices=False)
    norm = torch.linalg.vector_norm(sigma)
    kept = sigma > 2 * _eps(X) * norm * (m**-0.5 + n**-0.5)
    value = torch.ones_like(sigma) if steps is None else sigma / norm.clamp_min(torch.finfo(sigma.dtype).tiny)
    for _ in range(steps or 0):
        value = 1.5 * value - 0.5 * value**3
    factor = (U * torch.where(kept, value, 0.0)) @ Vh
    return int(kept.sum()), factor.to(device=X.device, dtype=X.dtype)


def _nearly_singular(X: Tensor) -> Tensor:
    """Which of X (batch, m, n), m >= n, of Frobenius norm 1 might be rank-deficient: boolean, (batch,), on the CPU.

    It errs towards True, and `_through_svd` decides. Zero matrices count: their rank is 0.
    """
    m, n = X.shape[-2:]
    threshold = 2 * _eps(X) * (m**-0.5 + n**-0.5)
    shifted = _double(X).mT @ _double(X)
    # The second term covers the rounding of the Gram matrix itself.
    shifted.diagonal(dim1=-2, dim2=-1).sub_(threshold**2 + 100 * torch.finfo(torch.float64).eps)
    _, failed = torch.linalg.cholesky_ex(shifted)
    return failed.cpu() > 0


def _double(X: Tensor) -> Tensor:
    # Apple's GPUs have no float64.
    return (X.cpu() if X.device.type == "mps" else X).double()


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
