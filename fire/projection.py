"""Projecting many matrices at once: those of one shape together, measured on the way."""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fire.gram import (
    batches,
    compute_dtype,
    deviation,
    double,
    frobenius,
    full_precision,
    gram,
    normalise_,
    tall_side,
)
from fire.matrices import WeightMatrix
from fire.polar import check_solver, polar_
from fire.report import Recorder


@dataclass(frozen=True)
class Target:
    """Where a matrix W is moved, whose polar factor is Q and FIRE's scale factor for it s. FIRE: to s Q.

    Attributes:
        direction: `isometry`, that of Q, or `own`, that of W.
        norm: the Frobenius norm there, `fire`, that of s Q, or `own`, that of W.
        interpolation: share of the way there from W, in [0, 1].

    Raises:
        ValueError: a value that is none of these.
    """

    direction: str = "isometry"
    norm: str = "fire"
    interpolation: float = 1.0

    def __post_init__(self) -> None:
        for name, valid in (("direction", ("isometry", "own")), ("norm", ("fire", "own"))):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} must be one of {', '.join(valid)}, got {getattr(self, name)!r}")
        if not isinstance(self.interpolation, int | float) or not 0 <= self.interpolation <= 1:
            raise ValueError(f"interpolation must lie in [0, 1], got {self.interpolation!r}")

    def reach_(self, X: Tensor, norm: Tensor, scale: Tensor, originals: Sequence[Tensor]) -> None:
        """Move X (batch, m, n) from the polar factors to the target, in place.

        Args:
            norm, scale: of each of `originals`, the Frobenius norm and s, (batch,).
            originals: the matrices W (m, n).
        """
        if self.direction == "own" or self.norm == "own":
            factor_norm = double(frobenius(X))
            goal = norm if self.norm == "own" else double(scale) * factor_norm
            present = norm if self.direction == "own" else factor_norm
            scale = torch.where(present > 0, goal / present, 0.0)
        if self.direction == "own":
            for new, original, factor in zip(X, originals, scale, strict=True):
                new.copy_(double(original) * factor)  # a factor may be beyond float32 where the entries are tiny
        else:
            X.mul_(scale.to(X)[:, None, None])
        if self.interpolation < 1:
            for new, original in zip(X, originals, strict=True):
                new.lerp_(original.to(new.dtype), 1 - self.interpolation)


FIRE = Target()


def project(
    recorder: Recorder,
    matrices: Sequence[WeightMatrix],
    solver: str,
    steps: int,
    tol: float,
    target: Target = FIRE,
) -> None:
    """Move each of `matrices` to its `target`, the scaled polar factor by default, and write it through `recorder`.

    Raises:
        ValueError: arguments no solver accepts, or a non-finite entry; nothing has been changed then.
    """
    for matrix in matrices:
        check_solver(solver, steps, tol, matrix.parameter.dtype)
    _check_finite(matrices)
    groups: dict[tuple, list[tuple[WeightMatrix, Tensor]]] = {}
    for matrix in matrices:
        view = matrix.view
        key = (tall_side(view).shape[-2:], view.dtype, view.device)
        groups.setdefault(key, []).append((matrix, view))
    with ExitStack() as stack:
        for device_type in {matrix.parameter.device.type for matrix in matrices}:
            stack.enter_context(full_precision(device_type))
        for group in groups.values():
            _project_group(recorder, group, target, solver=solver, steps=steps, tol=tol)


def _project_group(
    recorder: Recorder, group: Sequence[tuple[WeightMatrix, Tensor]], target: Target, **solver: Any
) -> None:
    """`project` for matrices of one shape, up to transposition, dtype and device, with their views."""
    talls = [tall_side(view) for _, view in group]
    counts = [tall.shape[:-2].numel() for tall in talls]
    dtype, device = talls[0].dtype, talls[0].device
    X = torch.empty(sum(counts), *talls[0].shape[-2:], dtype=compute_dtype(dtype), device=device)
    for part, tall in zip(X.split(counts), talls, strict=True):
        part.view(tall.shape).copy_(tall)
    originals = [tall[place] for tall in talls for place in itertools.product(*map(range, tall.shape[:-2]))]
    listed = [matrix.scale for (matrix, _), count in zip(group, counts, strict=True) for _ in range(count)]
    scales = torch.tensor(listed, dtype=X.dtype, device="cpu").to(device)
    parts = [_project_part(X[rows], scales[rows], originals[rows], dtype, target, **solver) for rows in batches(X)]
    before, after, zero = (torch.cat(column).split(counts) for column in list(zip(*parts, strict=True))[:3])
    ranks = [part[3] for part in parts if part[3] is not None]
    deficient = torch.cat(ranks).split(counts) if ranks else ()
    for i, ((matrix, view), tall, new) in enumerate(zip(group, talls, X.split(counts), strict=True)):
        new = new.reshape(tall.shape)
        recorder.write_measured(
            matrix,
            new if tall is view else new.mT,
            before[i].sum(),
            after[i].sum(),
            zero=zero[i].sum(),
            rank_deficient=int(deficient[i].sum()) if deficient else None,
        )


def _project_part(
    X: Tensor, scale: Tensor, originals: Sequence[Tensor], dtype: torch.dtype, target: Target, **solver: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """X (batch, m, n) at the target, in place, as a parameter of `dtype` will hold it.

    Returns:
        DfI before and after, which matrices are zero and, where that was looked for, which are rank-deficient.
    """
    norm = normalise_(X)
    G = gram(X)
    before = deviation(G, double(scale) / norm)
    ranks = polar_(X, G, originals, **solver)
    target.reach_(X, norm, scale, originals)
    if X.dtype == dtype and target == FIRE:  # G is still the Gram matrix of X / scale
        after = deviation(G, torch.ones_like(scale))
    else:
        X.copy_(X.to(dtype))
        after = deviation(gram(X), scale)
    return before, after, norm == 0, None if ranks is None else (ranks > 0) & (ranks < X.shape[-1])


def _check_finite(matrices: Sequence[WeightMatrix]) -> None:
    """Raise ValueError, naming it, for a weight with a non-finite entry."""
    parameters = [m.parameter.detach() for m in matrices]
    # One wait for the device. A sum of squares may overflow where nothing is wrong, so it only acquits.
    if parameters and not torch.isfinite(nn.utils.get_total_norm(parameters)):
        for matrix in matrices:
            if not torch.isfinite(matrix.view).all():
                raise ValueError(f"{matrix.name} holds a non-finite entry; nothing has been changed")
