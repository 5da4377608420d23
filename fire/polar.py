"""The polar factor of a matrix: the isometry nearest to it in Frobenius norm (paper eq. 5, U V^T of the SVD).

Three solvers, batched over leading dimensions:

- `newton_schulz`: the published procedure, a fixed number of cubic steps. After 5 or 10 steps a square matrix is
  still far from isometric: `steps` is a strength, not a mere cost.
- `polar_express`: minimax quintic steps (Amsel et al. 2025, arXiv 2505.16932), as many as the smallest singular value
  asks for, then cubic ones until the constraint holds to `tol`.
- `svd`: U V^T in float64, the oracle.

Both iterations multiply X (m, n), m >= n, by a polynomial of its Gram matrix: X <- X (a I + b G + c G^2), G = X^T X.
On a GPU their operations are few and on whole stacks, on a CPU on slices that fit its cache; results agree to rounding.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .checks import check_finite, check_number, check_tensor, check_whole
from .gram import (
    Batch,
    Iteration,
    by_gram,
    compute_dtype,
    double,
    full_precision,
    gram,
    normalise_,
    on_cpu,
    on_gpu,
    product,
    slices,
    tall_side,
)
from .polar_express import polar_express

SOLVERS = ("newton_schulz", "polar_express", "svd")
MAX_STEPS = 1000
"""Most Newton-Schulz steps. Each multiplies a small singular value by 1.5, and none of a matrix is so small that
1.5^1000 would not bring it to 1: further steps change nothing."""

# A fixed number of Newton-Schulz steps up to this makes so little of a null space's rounding noise, 1.5^16 = 657 times
# 1e-7 at most, that it is not looked for.
_HARMLESS_STEPS = 16
_STEPS_ON_GRAM = 5


@torch.no_grad()
def polar(W: Tensor, *, solver: str = "newton_schulz", steps: int = 10, tol: float = 1e-6) -> Tensor:
    """The (approximate) orthogonal polar factor of each matrix in `W`.

    Args:
        W: (..., m, n), any floating dtype; half precisions are computed in float32.
        solver: `newton_schulz` (the paper), `polar_express` or `svd`.
        steps: cubic Newton-Schulz steps, 1 to 1000; the other solvers ignore it.
        tol: `polar_express` runs until the root mean square of |sigma^2 - 1| is at most this; others ignore it.

    Returns:
        A tensor like `W`. A zero matrix gives zero; of a rank-deficient one the null space stays a null space.

    Raises:
        ValueError: unknown solver, steps or tol out of range, fewer than two dimensions, a non-finite entry.
        TypeError: `W` is not a tensor of real floating point, steps or tol no number.
    """
    check_tensor("W", W, 2)
    check_solver(solver, steps, tol, W.dtype)
    if W.is_meta:
        raise ValueError("W is on the meta device: it has no values")
    if W.numel() == 0:
        return W.clone()
    check_finite("W", W)
    tall = tall_side(W)
    original = tall.reshape(-1, *tall.shape[-2:])
    X = torch.empty(original.shape, dtype=compute_dtype(W.dtype), device=W.device).copy_(original)
    with full_precision(X.device.type):
        for rows in slices(X):
            normalise_(X[rows])
            solve([Batch(X[rows], gram(X[rows]), partial(original.__getitem__, rows))], solver, steps, tol)
    X = X.reshape(tall.shape)
    return (X if tall is W else X.mT).to(W.dtype)


def check_solver(solver: str, steps: int, tol: float, dtype: torch.dtype = torch.float32) -> None:
    """Raise ValueError or TypeError for arguments no solver accepts."""
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; valid: {', '.join(SOLVERS)}")
    check_whole("steps", steps, 1, MAX_STEPS)
    check_number("tol", tol, 0)
    reachable = 4 * torch.finfo(compute_dtype(dtype)).eps
    if not reachable <= tol < 1:
        raise ValueError(f"tol must lie in [{reachable:.1e}, 1) for {compute_dtype(dtype)}, got {tol!r}")


def waits(solver: str, steps: int) -> bool:
    """Whether a solver must know results of the device on the way."""
    return solver != "newton_schulz" or steps > _HARMLESS_STEPS


def solve(batches: Sequence[Batch], solver: str, steps: int, tol: float) -> list[list[int] | None]:
    """Replace the matrices of all batches by their polar factors, waiting for the device together. To be called under
    `full_precision`; the other arguments are those of `polar`.

    Returns:
        For each batch, the numerical rank of each matrix; None where no rank was looked for.
    """
    if solver == "polar_express":
        suspects = polar_express(batches, tol)
    elif solver == "newton_schulz":
        singular = on_cpu([_nearly_singular(batch.X) for batch in batches]) if waits(solver, steps) else None
        for batch in batches:
            _newton_schulz(batch.X, batch.G, steps)
        if singular is None:
            return [None] * len(batches)
        suspects = [[i for i, yes in enumerate(each.tolist()) if yes] for each in singular]
    else:
        suspects = [list(range(len(batch.X))) for batch in batches]
    ranks: list[list[int] | None] = []
    # Iterating would stretch the rounding noise of a null space into directions the matrix never had, so what
    # may be rank-deficient is computed on its singular values instead.
    for batch, suspected in zip(batches, suspects, strict=True):
        found = [batch.X.shape[-1]] * len(batch.X)
        originals = batch.originals() if suspected else []
        for i in suspected:
            W = originals[i].to(batch.X.dtype)
            found[i], batch.X[i] = _through_svd(W, steps if solver == "newton_schulz" else None)
            batch.G[i] = gram(batch.X[i : i + 1])[0]
        ranks.append(found)
    return ranks


def _newton_schulz(X: Tensor, G: Tensor, steps: int) -> None:
    """`steps` times X <- 1.5 X - 0.5 X X^T X (paper Alg. 1)."""
    iteration = Iteration(X, G)
    # Steps on the Gram matrix alone multiply its rounding errors, so X is returned to before they count.
    together = _STEPS_ON_GRAM if by_gram(X) else 1
    while steps > 0:
        now = min(steps, together)
        if now == 1:
            iteration.step(1.5, -0.5)
        else:
            iteration.multiply(product(G, [(1.5, -0.5, 0.0)] * now))
        steps -= now
    iteration.finish()


def _through_svd(X: Tensor, steps: int | None) -> tuple[int, Tensor]:
    """Numerical rank of X (m, n) and its polar factor or, given `steps`, what Newton-Schulz makes of it, in float64.

    The rank counts the singular values above the rounding that storing X in its dtype has caused: a matrix of
    independent relative errors eps has spectral norm of about eps ||X||_F (1/sqrt(m) + 1/sqrt(n)).
    """
    m, n = X.shape
    U, sigma, Vh = torch.linalg.svd(double(X), full_matrices=False)
    if sigma[0] == 0:
        return 0, torch.zeros_like(X)
    sigma = sigma / sigma[0]  # whatever the scale, its square is in range
    sigma = sigma / torch.linalg.vector_norm(sigma)
    kept = sigma > 2 * torch.finfo(X.dtype).eps * (m**-0.5 + n**-0.5)
    value = torch.ones_like(sigma) if steps is None else sigma
    for _ in range(steps or 0):
        value = 1.5 * value - 0.5 * value**3
    factor = (U * torch.where(kept, value, 0.0)) @ Vh
    return int(kept.sum()), factor.to(device=X.device, dtype=X.dtype)


def _nearly_singular(X: Tensor) -> Tensor:
    """Which of X (batch, m, n), of Frobenius norm 1, might be rank-deficient: (batch,), above 0 for those.

    It errs towards yes, and `_through_svd` decides. Zero matrices count: their rank is 0.
    """
    m, n = X.shape[-2:]
    threshold = 2 * torch.finfo(X.dtype).eps * (m**-0.5 + n**-0.5)
    found = []
    for part in X.split(-(-len(X) // 8)) if on_gpu(X) else [X]:  # float64 needs six times the memory
        shifted = gram(double(part))
        # The second term covers the rounding of the Gram matrix itself.
        shifted.diagonal(dim1=-2, dim2=-1).sub_(threshold**2 + 100 * torch.finfo(torch.float64).eps)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        # On a GPU a factorisation that fails in a batch may leave NaN and report nothing.
        found.append(failed + ~factor.diagonal(dim1=-2, dim2=-1).isfinite().all(-1))
    return torch.cat(found)
