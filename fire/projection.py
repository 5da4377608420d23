"""Projecting many matrices at once: those of one shape together, measured on the way."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from .checks import check_number
from .gram import (
    GPU_MEMORY,
    Batch,
    compute_dtype,
    distance_to_identity,
    distance_to_identity_,
    double,
    frobenius,
    full_precision,
    gram,
    normalise_,
    on_cpu,
    on_gpu,
    slices,
    square_of,
    tall_side,
)
from .matrices import WeightMatrix
from .polar import check_solver, solve, waits
from .report import Recorder


@dataclass(frozen=True)
class Target:
    """Where a matrix W is moved, whose polar factor is Q and FIRE's scale factor for it s. FIRE: to s Q.

    Attributes:
        direction: `isometry`, that of Q, or `own`, that of W.
        norm: the Frobenius norm there, `fire`, that of s Q, or `own`, that of W.
        interpolation: share of the way there from W, in [0, 1].
        per: with W's own direction, whether each `matrix` gets a factor of its own or a whole `convolution` (a group,
            if grouped) one: the norm is then that of its kernel positions together.

    Raises:
        ValueError: another value, or `per` with the other direction. TypeError: an interpolation that is no number.
    """

    direction: str = "isometry"
    norm: str = "fire"
    interpolation: float = 1.0
    per: str = "matrix"

    def __post_init__(self) -> None:
        choices = {"direction": ("isometry", "own"), "norm": ("fire", "own"), "per": ("matrix", "convolution")}
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} must be one of {', '.join(valid)}, got {getattr(self, name)!r}")
        if self.per == "convolution" and self.direction != "own":
            raise ValueError("per='convolution' needs direction='own'")
        check_number("interpolation", self.interpolation, 0, 1)

    def reach_(
        self,
        X: Tensor,
        norm: Tensor,
        scale: Tensor,
        originals: Sequence[Tensor],
        kernels: Sequence[tuple[int, ...]],
    ) -> None:
        """Move X (batch, m, n) from the polar factors to the target, in place.

        Args:
            norm, scale: of each matrix, the Frobenius norm of W and s, (batch,).
            originals: the matrices W, (*stack, m, n) each, those of the batch in all.
            kernels: of each of `originals`, which axes of its stack are kernel positions.
        """
        counts = [original.shape[:-2].numel() for original in originals]
        parts = [part.view(w.shape) for part, w in zip(X.split(counts), originals, strict=True)]
        if self.direction == "own" or self.norm == "own":
            factor_norm = double(frobenius(X))
            goal = norm if self.norm == "own" else double(scale) * factor_norm
            present = norm if self.direction == "own" else factor_norm
            if self.per == "convolution":
                goal, present = (_of_convolutions(norms, originals, kernels) for norms in (goal, present))
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


def _of_convolutions(norms: Tensor, originals: Sequence[Tensor], kernels: Sequence[tuple[int, ...]]) -> Tensor:
    """For each matrix the norm of the convolution it belongs to, (batch,), from those of the matrices, (batch,)."""
    stacks = [original.shape[:-2] for original in originals]
    largest = norms.amax().clamp_min(torch.finfo(norms.dtype).tiny)  # squares may be out of range
    parts = (norms / largest).split([stack.numel() for stack in stacks])
    whole = [
        torch.linalg.vector_norm(part.view(stack), dim=kernel, keepdim=True).expand(stack).reshape(-1)
        if kernel
        else part
        for part, stack, kernel in zip(parts, stacks, kernels, strict=True)
    ]
    return torch.cat(whole) * largest


def project(
    recorder: Recorder, matrices: Sequence[WeightMatrix], solver: str, steps: int, tol: float, target: Target
) -> None:
    """Move each of `matrices` to its `target` and write it through `recorder`.

    Raises:
        ValueError: arguments no solver accepts, or a non-finite entry; nothing has been changed then.
    """
    for matrix in matrices:
        check_solver(solver, steps, tol, matrix.parameter.dtype)
    _check_finite(matrices)
    members: dict[tuple, list[tuple[WeightMatrix, Tensor]]] = {}
    for matrix in matrices:
        view = tall_side(matrix.view)
        lies_wide = on_gpu(view) and view.mT.is_contiguous() and not view.is_contiguous()
        members.setdefault((view.shape[-2:], lies_wide, view.dtype, view.device), []).append((matrix, view))
    groups = [_Group([m for m, _ in each], [view for _, view in each], key[1], target) for key, each in members.items()]
    with ExitStack() as stack:
        for device_type in {matrix.parameter.device.type for matrix in matrices}:
            stack.enter_context(full_precision(device_type))
        for together in _together(groups):
            _set_scales(together)
            # Those of a solver that waits do so at the same time; any other needs the memory of one group only.
            for part in [together] if waits(solver, steps) else [[group] for group in together]:
                _project_groups(recorder, part, solver, steps, tol)
    _record(recorder, groups, on_cpu([tensor for group in groups for part in group.measured for tensor in part]))


class _Group:
    """Matrices of one shape, up to transposition, dtype and device, and what was measured of them, on the device.

    Attributes:
        matrices, views: the weights, and their matrices (*stack, m, n), m >= n, as they are worked on.
        counts: how many matrices each has.
        lies_wide: whether those of a GPU are contiguous as (n, m); copying them is a single operation if X is, too.
        plain: whether the polar factors are the result, but for FIRE's factor.
        scales: FIRE's factor for each single matrix, (batch,).
        norm: parts of the Frobenius norms before, (batch,) in all.
        before, after: parts of ||G - s I||_F of the Gram matrices, whose square over s^2 is DfI. Before, G is that of
            W / norm and s = (scale / norm)^2; after, if `plain`, that of W / scale and 1, else that of W and scale^2.
        errors: root of the SFE of each weight, (1,).
        ranks: of the matrices, empty where none was looked for.
    """

    scales: Tensor

    def __init__(
        self, matrices: Sequence[WeightMatrix], views: Sequence[Tensor], lies_wide: bool, target: Target
    ) -> None:
        self.matrices, self.views, self.lies_wide, self.target = matrices, views, lies_wide, target
        self.counts = [view.shape[:-2].numel() for view in views]
        self.dtype, self.device = views[0].dtype, views[0].device
        self.shape = (sum(self.counts), *views[0].shape[-2:])
        self.compute = compute_dtype(self.dtype)
        self.plain = self.compute == self.dtype and target == Target()
        self.norm: list[Tensor] = []
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.measured = (self.norm, self.before, self.after, self.errors)
        self.ranks: list[int] = []

    @property
    def bytes(self) -> int:
        """Memory in which they are projected; at most `GPU_MEMORY` where `slices` leaves them whole."""
        return 4 * math.prod(self.shape) * self.compute.itemsize

    def gather(self) -> Tensor:
        """The matrices, (batch, m, n)."""
        batch, m, n = self.shape
        shape = (batch, n, m) if self.lies_wide else (batch, m, n)
        X = torch.empty(shape, dtype=self.compute, device=self.device)
        X = X.mT if self.lies_wide else X
        torch._foreach_copy_(self.parts(X), list(self.views))
        return X

    def parts(self, X: Tensor) -> list[Tensor]:
        """Those of X (batch, m, n) that belong to each weight, of the shape of its view."""
        return [part.view(view.shape) for part, view in zip(X.split(self.counts), self.views, strict=True)]

    def originals(self, first: int) -> list[Tensor]:
        """Single matrices (m, n) as they are in their parameters, from number `first` on."""
        every = [view[place] for view in self.views for place in product(*map(range, view.shape[:-2]))]
        return every[first:]

    def start(self, X: Tensor, rows: slice) -> Batch:
        """Normalise some of the matrices, in place, for the solver."""
        X = X[rows]
        self.norm.append(normalise_(X))
        G = gram(X)
        self.before.append(distance_to_identity(G, square_of(double(self.scales[rows]) / self.norm[-1])))
        return Batch(X, G, partial(self.originals, rows.start or 0))

    def finish(self, X: Tensor, recorder: Recorder) -> None:
        """Write what the target makes of the polar factors X into the parameters."""
        norm = torch.cat(self.norm) if len(self.norm) > 1 else self.norm[0]
        self.target.reach_(X, norm, self.scales, self.views, [matrix.kernel for matrix in self.matrices])
        if not self.plain:
            if X.dtype != self.dtype:
                X.copy_(X.to(self.dtype))  # as a parameter will hold it
            squares = square_of(self.scales)
            self.after += [distance_to_identity_(gram(X[rows]), squares[rows]) for rows in slices(X)]
        self.errors += [error.view(1) for error in recorder.copy(self.matrices, self.views, self.parts(X))]


def _together(groups: Sequence[_Group]) -> Iterator[list[_Group]]:
    """Those that may be projected at the same time: on a GPU within `GPU_MEMORY`."""
    chosen: list[_Group] = []
    for group in groups:
        fits = sum(each.bytes for each in [*chosen, group]) <= GPU_MEMORY
        if chosen and not (fits and on_gpu(group.views[0]) and group.device == chosen[0].device):
            yield chosen
            chosen = []
        chosen.append(group)
    if chosen:
        yield chosen


def _set_scales(groups: Sequence[_Group]) -> None:
    """Put FIRE's factors on the device; on a GPU in float64, and without a transfer, which would wait."""
    counts = [count for group in groups for count in group.counts]
    dtype = torch.float64 if on_gpu(groups[0].views[0]) else groups[0].compute
    scales = torch.ones(sum(counts), dtype=dtype, device=groups[0].device)
    torch._foreach_mul_(scales.split(counts), [matrix.scale for group in groups for matrix in group.matrices])
    for group, its in zip(groups, scales.split([group.shape[0] for group in groups]), strict=True):
        group.scales = its


def _project_groups(recorder: Recorder, groups: Sequence[_Group], solver: str, steps: int, tol: float) -> None:
    """`project` for several groups, side by side."""
    stacks = [group.gather() for group in groups]
    # Several are within `GPU_MEMORY`, where none of them is cut.
    for rows in [slice(None)] if len(groups) > 1 else slices(stacks[0]):
        batches = [group.start(X, rows) for group, X in zip(groups, stacks, strict=True)]
        for group, batch, ranks in zip(groups, batches, solve(batches, solver, steps, tol), strict=True):
            group.ranks += ranks or []
            if group.plain:
                group.after.append(distance_to_identity_(batch.G))
        del batches, batch  # and their Gram matrices
    for group, X in zip(groups, stacks, strict=True):
        group.finish(X, recorder)


def _record(recorder: Recorder, groups: Sequence[_Group], measured: Sequence[Tensor]) -> None:
    """Give the recorder what was measured of each weight, which is on the CPU now."""
    known = iter(measured)
    for group in groups:
        norm, before, after, errors = (torch.cat([next(known) for _ in part]) for part in group.measured)
        start = 0
        for matrix, count, error in zip(group.matrices, group.counts, errors, strict=True):
            stack = slice(start, start + count)
            scale = double(torch.tensor(matrix.scale, dtype=group.compute, device="cpu"))
            recorder.add(
                matrix,
                error,
                (before[stack].double() / square_of(scale / norm[stack])).square().sum(),
                (after[stack].double() / (1 if group.plain else square_of(scale))).square().sum(),
                int((norm[stack] == 0).sum()),
                sum(0 < rank < group.shape[-1] for rank in group.ranks[stack]) if group.ranks else None,
            )
            start += count


def _check_finite(matrices: Sequence[WeightMatrix]) -> None:
    """Raise ValueError, naming it, for a weight with a non-finite entry."""
    parameters = list({id(m.parameter): m.parameter.detach() for m in matrices}.values())
    # One wait for the device. A sum of squares may also overflow where all entries are finite.
    if parameters and not math.isfinite(nn.utils.get_total_norm(parameters)):
        for matrix in matrices:
            if not torch.isfinite(matrix.view).all():
                raise ValueError(f"{matrix.name} holds a non-finite entry; nothing has been changed")
