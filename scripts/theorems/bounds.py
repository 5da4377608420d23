"""Theorems 1 to 4 of the paper: what each bounds, and its bound, in float64.

As in the paper, samples are rows and neurons are columns: Z (samples, in), W (in, out), Phi = Z W. A network is a list
of such W with a ReLU between each two, and no bias. eps(W) = sqrt(DfI(W)) = ||W^T W - I||_F (eq. 2).
"""

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

TOLERANCE = 1e-6  # of the Hessian's norm, relative
NULL = 1e-10  # share of the largest eigenvalue below which a direction of the inputs counts as absent


def eps(W: Tensor) -> float:
    """sqrt(DfI) of W (in, out)."""
    return float(torch.linalg.matrix_norm(W.T @ W - torch.eye(W.shape[1], dtype=W.dtype)))


def layers(Z: Tensor, weights: Sequence[Tensor], patterns: Sequence[Tensor] | None = None) -> list[Tensor]:
    """The outputs of each layer after its ReLU, (samples, out); the last layer has none.

    Args:
        Z: inputs, (samples, in).
        weights: (in, out) of each layer.
        patterns: for each layer but the last the 0 or 1, (out,) or (samples, out), that replaces the ReLU.
    """
    found = [Z @ weights[0]]
    for number, W in enumerate(weights[1:]):
        active = torch.relu(found[-1]) if patterns is None else found[-1] * patterns[number]
        found[-1] = active
        found.append(active @ W)
    return found


def similarity(H: Tensor) -> Tensor:
    """C = H H^T / ||H||_F^2, (samples, samples)."""
    return H @ H.T / H.square().sum()


def drift(H: Tensor, H_after: Tensor) -> float:
    """Theorem 1, value: ||C - C~||_F^2. At most 2 for any two networks: C has trace 1 and no negative eigenvalue."""
    return float((similarity(H) - similarity(H_after)).square().sum())


def drift_bound(Z: Tensor, H: Tensor, H_after: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Theorem 1, bound on `drift`: 16 ||Z||_F^2 / m^2 (prod_j B_j)^2 (sum_j 1 / B_j^2) SFE.

    B_j is the larger spectral norm of the two weights of layer j, m the smaller norm of H and H_after, and a ReLU is
    1-Lipschitz.

    Args:
        Z: inputs, (samples, in).
        H, H_after: the outputs that are compared, (samples, out).
        before, after: the weights that lead from Z to them.
    """
    B = [max(_norm(old), _norm(new)) for old, new in zip(before, after, strict=True)]
    sfe = sum(float((old - new).square().sum()) for old, new in zip(before, after, strict=True))
    m = min(float(H.norm()), float(H_after.norm()))
    return 16 * float(Z.square().sum()) / m**2 * math.prod(B) ** 2 * sum(b**-2 for b in B) * sfe


def curvature_bound(weights: Sequence[Tensor], beta: float, gamma: float) -> float:
    """Theorem 2, bound: beta sum_k prod_{j != k} nu_j + 2 gamma sum_{k < l} prod_{j not in {k, l}} nu_j with
    nu = 1 + eps, for a loss of the outputs whose Hessian and gradient have norms of at most beta and gamma."""
    nu = [1 + eps(W) for W in weights]

    def without(count: int) -> float:
        """Sum over all ways to leave out so many layers of the product of the others."""
        return sum(math.prod(kept) for kept in combinations(nu, len(nu) - count))

    return beta * without(1) + 2 * gamma * without(2)


def hessian_norm(loss: Callable[[Sequence[Tensor]], Tensor], weights: Sequence[Tensor]) -> float:
    """Theorem 2, value: the largest absolute eigenvalue of the Hessian of the loss in all `weights` together."""
    parameters = [W.detach().clone().requires_grad_() for W in weights]
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss(parameters), parameters, create_graph=True)])

    def product(vector: np.ndarray) -> np.ndarray:
        slope = gradient @ torch.from_numpy(np.ascontiguousarray(vector).reshape(-1))
        parts = torch.autograd.grad(slope, parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts]).numpy()

    size = len(gradient)
    start = np.random.default_rng(0).standard_normal(size)
    if not product(start).any():  # ARPACK refuses a matrix of zeros
        return 0.0
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    (value,) = eigsh(operator, k=1, which="LM", v0=start, tol=TOLERANCE, return_eigenvectors=False)
    return abs(float(value))


def srank_bound(Z: Tensor, W: Tensor, delta: float) -> int | None:
    """Theorem 3, bound on the srank of Z W:

        ceil((1 - delta) D / (delta sqrt((1 + eps) / (1 - eps)) sqrt(eta_1 / eta_D) + 1 - delta))

    D are the neurons of W, eta_1 and eta_D the largest and the smallest eigenvalue of Z^T Z. 0 where eta_D is zero.
    None where eps >= 1, for which the theorem says nothing.
    """
    ratio = ratio_bound(W)
    if ratio is None:
        return None
    eta = torch.linalg.eigvalsh(Z.T @ Z)
    spread = math.sqrt(eta[-1] / eta[0]) if eta[0] > NULL * eta[-1] else math.inf
    return math.ceil((1 - delta) * W.shape[1] / (delta * ratio * spread + 1 - delta))


def ratio_bound(W: Tensor) -> float | None:
    """sqrt((1 + eps) / (1 - eps)), of Theorems 3 and 4: with its inverse, Theorem 4's bounds on `scores`. None where
    eps >= 1, for which neither theorem says anything."""
    error = eps(W)
    return math.sqrt((1 + error) / (1 - error)) if error < 1 else None


def scores(H: Tensor) -> Tensor:
    """Each neuron's mean absolute activation over the mean of its layer, (out,), of H (samples, out)."""
    means = H.abs().mean(0)
    return means / means.mean()


def gaussian_scores(W: Tensor) -> Tensor:
    """Theorem 4, value: `scores` of relu(z W) for z ~ N(0, I), (out,), exactly: z w_j ~ N(0, ||w_j||^2), so each mean
    is ||w_j|| / sqrt(2 pi)."""
    norms = W.norm(dim=0)
    return norms / norms.mean()


def whitened(Z: Tensor) -> Tensor:
    """Z (samples, in) times the inverse square root of its second moment Z^T Z / samples. That becomes the identity, or
    a projection where the inputs do not span all directions."""
    values, vectors = torch.linalg.eigh(Z.T @ Z / len(Z))
    inverse = torch.where(values > NULL * values[-1], values.clamp(min=1e-300).rsqrt(), 0.0)
    return Z @ (vectors * inverse) @ vectors.T


def _norm(W: Tensor) -> float:
    return float(torch.linalg.matrix_norm(W, 2))
