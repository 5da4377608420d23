"""Projecting many matrices at once: those of one shape together, measured on the way."""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fire.gram import batches, compute_dtype, deviation, double, full_precision, gram, normalise_, tall_side
from fire.matrices import WeightMatrix
from fire.polar import check_solver, polar_
from fire.report import Recorder


def project(recorder: Recorder, matrices: Sequence[WeightMatrix], solver: str, steps: int, tol: float) -> None:
    """Write the scaled polar factor of each of `matrices` through `recorder`.

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
            _project_group(recorder, group, solver, steps, tol)


def _project_group(
    recorder: Recorder, group: Sequence[tuple[WeightMatrix, Tensor]], solver: str, steps: int, tol: float
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
    parts = [
        _project_part(X[rows], scales[rows], originals[rows], dtype, solver=solver, steps=steps, tol=tol)
        for rows in batches(X)
    ]
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
    X: Tensor, scale: Tensor, originals: Sequence[Tensor], dtype: torch.dtype, **solver: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Scaled polar factors of X (batch, m, n), in place, as a parameter of `dtype` will hold them.

    Returns:
        DfI before and after, which matrices are zero and, where that was looked for, which are rank-deficient.
    """
    norm = normalise_(X)
    G = gram(X)
    before = deviation(G, double(scale) / norm)
    ranks = polar_(X, G, originals, **solver)
    X.mul_(scale[:, None, None])
    if X.dtype == dtype:
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
