"""Projecting many matrices at once: those of one shape together, measured on the way."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fire.gram import (
    GPU_MEMORY,
    batches,
    compute_dtype,
    distance_to_identity,
    double,
    frobenius,
    full_precision,
    gram,
    normalise_,
    on_gpu,
    square_of,
    tall_side,
)
from fire.matrices import WeightMatrix
from fire.polar import check_solver, solve
from fire.report import Recorder
from fire.waiting import Asking, answered, on_cpu


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
            norm, scale: of each matrix, the Frobenius norm of W and s, (batch,).
            originals: the matrices W, (*stack, m, n) each, those of the batch in all.
        """
        counts = [original.shape[:-2].numel() for original in originals]
        parts = [part.view(w.shape) for part, w in zip(X.split(counts), originals, strict=True)]
        if self.direction == "own" or self.norm == "own":
            factor_norm = double(frobenius(X))
            goal = norm if self.norm == "own" else double(scale) * factor_norm
            present = norm if self.direction == "own" else factor_norm
            scale = torch.where(present > 0, goal / present, 0.0)
        if self.direction == "own":
            for new, original, factor in zip(parts, originals, scale.split(counts), strict=True):
                # A factor may be beyond float32 where the entries are tiny.
                new.copy_(double(original) * factor.view(*original.shape[:-2], 1, 1))
        else:
            X.mul_((scale if on_gpu(X) else scale.to(X))[:, None, None])
        if self.interpolation < 1:
            for new, original in zip(parts, originals, strict=True):
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
        view = as_stored(matrix.view)
        groups.setdefault((view.shape[-2:], view.dtype, view.device), []).append((matrix, view))
    outcomes: list[_Outcome] = []
    with ExitStack() as stack:
        for device_type in {matrix.parameter.device.type for matrix in matrices}:
            stack.enter_context(full_precision(device_type))
        for together in _together([_Group(members) for members in groups.values()]):
            working = [
                _project_group(recorder, group, scales, target, solver=solver, steps=steps, tol=tol)
                for group, scales in zip(together, _scales(together), strict=True)
            ]
            outcomes += answered(working)
    for outcome, columns in zip(outcomes, _known(outcomes), strict=True):
        _note(recorder, outcome, *columns)


def as_stored(view: Tensor) -> Tensor:
    """Matrices (..., m, n) or their transposes: the taller; on a GPU the one that is contiguous, if any, since moving
    those of one group is a single operation then."""
    if on_gpu(view) and (view.is_contiguous() or view.mT.is_contiguous()):
        return view if view.is_contiguous() else view.mT
    return tall_side(view)


class _Group:
    """Matrices of one shape, up to transposition, dtype and device.

    Attributes:
        matrices, views: the weights, and their matrices (*stack, m, n) as they are worked on.
        counts: how many matrices each has.
    """

    def __init__(self, members: Sequence[tuple[WeightMatrix, Tensor]]) -> None:
        self.matrices, self.views = [matrix for matrix, _ in members], [view for _, view in members]
        self.counts = [view.shape[:-2].numel() for view in self.views]
        self.dtype, self.device = self.views[0].dtype, self.views[0].device
        self.shape = (sum(self.counts), *self.views[0].shape[-2:])
        self.compute = compute_dtype(self.dtype)

    @property
    def bytes(self) -> int:
        """Memory in which they are projected."""
        return 3 * math.prod(self.shape) * self.compute.itemsize

    def gather(self) -> Tensor:
        """The matrices, (batch, m, n)."""
        X = torch.empty(self.shape, dtype=self.compute, device=self.device)
        torch._foreach_copy_(self.parts(X), self.views)
        return X

    def scales(self) -> Tensor:
        """FIRE's factor for each single matrix, (batch,) on the CPU."""
        listed = [m.scale for m, count in zip(self.matrices, self.counts, strict=True) for _ in range(count)]
        return torch.tensor(listed, dtype=self.compute, device="cpu")

    def parts(self, X: Tensor) -> list[Tensor]:
        """Those of X (batch, m, n) that belong to each weight, of the shape of its view."""
        return [part.view(view.shape) for part, view in zip(X.split(self.counts), self.views, strict=True)]

    def original(self, number: int) -> Tensor:
        """A single matrix (m, n) as it is in its parameter."""
        for view, count in zip(self.views, self.counts, strict=True):
            if number < count:
                return view[torch.unravel_index(torch.tensor(number), view.shape[:-2])] if view.ndim > 2 else view
            number -= count
        raise IndexError(number)


@dataclass
class _Outcome:
    """What was measured of a group, on its device for now.

    Attributes:
        norm: Frobenius norms before, (batch,).
        before, after: ||G - s I||_F of the Gram matrices, whose square over s^2 is DfI, (batch,); before, G is that of
            W / norm and s = (scale / norm)^2.
        plain: whether after it G is that of W / scale and s = 1, otherwise that of W and s = scale^2.
        errors: root of the SFE of each weight, (1,).
        ranks: of the matrices, where they were looked for.
    """

    group: _Group
    norm: Tensor
    before: Tensor
    after: Tensor
    plain: bool
    errors: list[Tensor]
    ranks: list[int] | None


def _together(groups: Sequence[_Group]) -> Iterator[list[_Group]]:
    """Those to be projected at the same time, so that one wait serves all: on a GPU within `GPU_MEMORY`."""
    chosen: list[_Group] = []
    for group in groups:
        fits = sum(each.bytes for each in [*chosen, group]) <= GPU_MEMORY
        if chosen and not (fits and on_gpu(group.views[0]) and group.device == chosen[0].device):
            yield chosen
            chosen = []
        chosen.append(group)
    yield chosen


def _scales(groups: Sequence[_Group]) -> list[Tensor]:
    """FIRE's factors for the single matrices of each group, (batch,), on its device; on a GPU in float64, and without a
    transfer, which would wait."""
    if not groups or not on_gpu(groups[0].views[0]):
        return [group.scales().to(group.device) for group in groups]
    counts = [count for group in groups for count in group.counts]
    scales = torch.ones(sum(counts), dtype=torch.float64, device=groups[0].device)
    torch._foreach_mul_(scales.split(counts), [matrix.scale for group in groups for matrix in group.matrices])
    return list(scales.split([group.shape[0] for group in groups]))


def _project_group(
    recorder: Recorder, group: _Group, scales: Tensor, target: Target, **solver: Any
) -> Asking[_Outcome]:
    """`project` for one group."""
    X = group.gather()
    measured, ranks, looked = [], [], True
    plain = X.dtype == group.dtype and target == FIRE
    for rows in batches(X):
        norm = normalise_(X[rows])
        G = gram(X[rows])
        before = distance_to_identity(G, square_of(double(scales[rows]) / norm))
        original = partial(_offset, group.original, rows.start)
        found = yield from solve(X[rows], G, original, **solver)
        ranks += found or []
        looked = found is not None
        measured.append((norm, before, distance_to_identity(G) if plain else norm))
    del G  # the memory is needed
    columns = list(zip(*measured, strict=True))
    norm, before, after = (torch.cat(column) if len(column) > 1 else column[0] for column in columns)
    target.reach_(X, norm, scales, group.views)
    if not plain:
        if X.dtype != group.dtype:
            X.copy_(X.to(group.dtype))  # as a parameter will hold it
        squares = square_of(scales)
        after = torch.cat([distance_to_identity(gram(X[rows]), squares[rows]) for rows in batches(X)])
    errors = recorder.copy(group.matrices, group.views, group.parts(X))
    return _Outcome(group, norm, before, after, plain, errors, ranks if looked else None)


def _offset(original: Callable[[int], Tensor], first: int, number: int) -> Tensor:
    return original(first + number)


def _known(outcomes: Sequence[_Outcome]) -> list[list[Tensor]]:
    """What was measured of each group, on the CPU, after one wait: norm, before, after, (batch,), and the errors."""
    measured = [[o.norm, o.before, o.after, *(error.view(1) for error in o.errors)] for o in outcomes]
    known = iter(on_cpu([column for columns in measured for column in columns]))
    return [[next(known) for _ in columns] for columns in measured]


def _note(recorder: Recorder, outcome: _Outcome, norm: Tensor, before: Tensor, after: Tensor, *errors: Tensor) -> None:
    """Tell the recorder what was measured."""
    group = outcome.group
    scales, smaller = group.scales(), min(group.shape[-2:])
    before = (before.double() / square_of(double(scales) / norm)).square()
    after = (after.double() / (1 if outcome.plain else square_of(scales))).square()
    start = 0
    for matrix, count, error in zip(group.matrices, group.counts, errors, strict=True):
        stack = slice(start, start + count)
        deficient = None if outcome.ranks is None else sum(0 < rank < smaller for rank in outcome.ranks[stack])
        recorder.note(
            matrix,
            float(error),
            float(before[stack].sum()),
            float(after[stack].sum()),
            int((norm[stack] == 0).sum()),
            deficient,
        )
        start += count


def _check_finite(matrices: Sequence[WeightMatrix]) -> None:
    """Raise ValueError, naming it, for a weight with a non-finite entry."""
    parameters = list({id(m.parameter): m.parameter.detach() for m in matrices}.values())
    # One wait for the device. A sum of squares may overflow where nothing is wrong, so it only acquits.
    if parameters and not math.isfinite(nn.utils.get_total_norm(parameters)):
        for matrix in matrices:
            if not torch.isfinite(matrix.view).all():
                raise ValueError(f"{matrix.name} holds a non-finite entry; nothing has been changed")
