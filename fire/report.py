"""What a reset did: a record per weight matrix, and the totals a training log keeps."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from . import metrics
from .gram import on_cpu
from .matrices import WeightMatrix, storage_key
from .rules import looks_fused


@dataclass(frozen=True)
class MatrixReport:
    """One weight of a model, its stack of matrices taken together.

    Attributes:
        name, scale: as of `WeightMatrix`.
        shape: (stack..., out, in).
        sfe: ||W - W~||_F^2 summed over the stack, on the actual weights.
        dfi_before, dfi_after: ||V^T V - I||_F^2 of V = W / scale, summed over the stack.
        zero: how many matrices a projection left alone because they are zero.
        rank_deficient: how many it could only make partial isometries; None where it did not look, as Newton-Schulz
            does not at the paper's numbers of steps, which keep a null space as it is.
        written: whether the reset wrote it.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    sfe: float
    dfi_before: float
    dfi_after: float
    zero: int = 0
    rank_deficient: int | None = None
    written: bool = True


@dataclass(frozen=True)
class ResetReport:
    """What one reset changed.

    Attributes:
        method: its name.
        touched: number of tensors written.
        matrices: a record for every weight looked at.
        full_reset_sfe: the SFE of sending the same matrices to their initial values; None for `fire_`, which does not
            know them.
        skipped: tensors of two or more dimensions that were left out, the largest first, with the reason
            (`fire.matrices`).
        seconds: wall time of the reset, its own measurements included.
        weights, parameters: how many numbers the model's floating-point parameters hold, of two or more dimensions and
            of any.
        changed: the parameters and buffers that were written (`reset_state`).
        maybe_fused: matrices that look like several in one weight, which `fused` would split.
    """

    method: str
    touched: int
    matrices: tuple[MatrixReport, ...]
    full_reset_sfe: float | None
    skipped: Mapping[str, str] = field(repr=False)
    seconds: float
    weights: int = 0
    parameters: int = 0
    changed: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)
    maybe_fused: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.method}: {self.touched} tensors written in {self.seconds:.3g} s, SFE {self.sfe:.4g}, "
            f"DfI {self.dfi_before:.4g} -> {self.dfi_after:.4g}"
        ]
        for what, names in (("zero", self.zero), ("rank-deficient", self.rank_deficient or ())):
            lines += [f"{what}: {', '.join(names)}"] if names else []
        if self.weights:
            lines.append(
                f"{self.coverage:.1%} of the weights with two or more dimensions are written as matrices, "
                f"{self.coverage_of_all:.1%} of all parameters"
            )
        if self.maybe_fused:
            lines.append(f"may stack several matrices, which `fused` would split: {_some(self.maybe_fused)}")
        left = [f"left out: {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join([*lines, *left[:SHOWN], *([f"and {len(left) - SHOWN} more"] if len(left) > SHOWN else [])])

    @property
    def coverage(self) -> float:
        """Share of the model's floating-point parameters of two or more dimensions that were written as matrices."""
        return self._in_matrices / self.weights if self.weights else 0.0

    @property
    def coverage_of_all(self) -> float:
        """The same, of all its floating-point parameters."""
        return self._in_matrices / self.parameters if self.parameters else 0.0

    @property
    def _in_matrices(self) -> int:
        return sum(math.prod(matrix.shape) for matrix in self.matrices if matrix.written)

    @property
    def sfe(self) -> float:
        """Squared Frobenius Error over all matrices."""
        return sum(m.sfe for m in self.matrices)

    @property
    def sfe_normalised(self) -> float | None:
        """SFE as a share of a full reset's (FIRE, Figure 5b); None where that is unknown or zero."""
        return self.sfe / self.full_reset_sfe if self.full_reset_sfe else None

    @property
    def dfi_before(self) -> float:
        """Deviation from Isometry over all matrices, before the reset."""
        return sum(m.dfi_before for m in self.matrices)

    @property
    def dfi_after(self) -> float:
        """Deviation from Isometry over all matrices, after the reset."""
        return sum(m.dfi_after for m in self.matrices)

    @property
    def zero(self) -> tuple[str, ...]:
        """Weights that hold zero matrices, which were left alone."""
        return tuple(m.name for m in self.matrices if m.zero)

    @property
    def rank_deficient(self) -> tuple[str, ...] | None:
        """Weights that hold rank-deficient matrices, which became partial isometries; None where nothing looked."""
        looked = [m for m in self.matrices if m.rank_deficient is not None]
        return tuple(m.name for m in looked if m.rank_deficient) if looked else None


SHOWN = 8  # of a long list


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


class Recorder:
    """Writes new weights in place and keeps, for each matrix, what the write did.

    No number is waited for before the report is made.

    Args:
        method: its name.
        matrices: all that the report is about.
        skipped: what it is not about, with the reasons.
        initial: what a full reset would write into each of `matrices`, for the normalised SFE.
        model: whose numbers are counted; None: none.
    """

    def __init__(
        self, method: str, matrices: Sequence[WeightMatrix], skipped: Mapping[str, str],
        initial: Sequence[Tensor] | None = None, model: nn.Module | None = None,
    ) -> None:  # fmt: skip
        self._method, self._model, self._matrices = method, model, matrices
        self._skipped = dict(sorted(skipped.items(), key=lambda item: -_size(model, item[0])))
        self._unwritten = {matrix.name: matrix for matrix in matrices}
        self._measured: list[tuple[WeightMatrix, tuple[Tensor, Tensor, Tensor], int, int | None]] = []
        self._touched: dict[tuple, Tensor] = {}
        self._cuda = [m.parameter.device for m in matrices[:1] if m.parameter.device.type == "cuda"]
        self._start = self._now()
        self._full = None if initial is None else metrics.distances([m.view for m in matrices], initial)

    def _now(self) -> float:
        """Seconds, once the device has done what it was given."""
        for device in self._cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def write(self, matrix: WeightMatrix, new: Tensor) -> None:
        """Copy `new` (*stack, out, in) into the matrix and measure it before and after."""
        before = metrics.dfi(matrix.view, matrix.scale).sum()
        (error,) = self.copy([matrix], [matrix.view], [new.to(matrix.view)])
        self.add(matrix, error, before, metrics.dfi(matrix.view, matrix.scale).sum())

    def write_tensor(self, tensor: Tensor, new: Tensor) -> None:
        """Copy `new` into a whole parameter or buffer, and measure the matrices that lie in it."""
        key = storage_key(tensor)
        for matrix in [m for m in self._unwritten.values() if storage_key(m.parameter) == key]:
            self.write(matrix, matrix.layout(new.to(tensor)))
        tensor.detach().copy_(new)
        self._touched[key] = tensor

    def copy(self, matrices: Sequence[WeightMatrix], views: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
        """Copy `new` into `views` of several matrices, of the same shapes, and return the root of each one's SFE. The
        caller measures the rest, and gives all to `add`."""
        for matrix in matrices:
            del self._unwritten[matrix.name]
            self._touched[storage_key(matrix.parameter)] = matrix.parameter
        errors = metrics.distances(views, new)
        torch._foreach_copy_(list(views), list(new))
        return errors

    def add(
        self, matrix: WeightMatrix, error: Tensor, before: Tensor, after: Tensor, zero: int = 0,
        rank_deficient: int | None = None,
    ) -> None:  # fmt: skip
        """Keep what was measured of a matrix: the root of its SFE, its DfI before and after, of one element each, and
        how many of its stack are zero and rank-deficient."""
        self._measured.append((matrix, (error, before, after), zero, rank_deficient))

    def report(self) -> ResetReport:
        """The finished report; matrices never written count with an SFE of zero."""
        left = {*self._unwritten}
        for matrix in self._unwritten.values():
            dfi = metrics.dfi(matrix.view, matrix.scale).sum()
            self.add(matrix, torch.zeros_like(dfi), dfi, dfi)
        scalars = [number for _, numbers, _, _ in self._measured for number in numbers] + (self._full or [])
        known = [float(number) for number in on_cpu([scalar.reshape(1) for scalar in scalars])]
        reports = []
        for i, (m, _, zero, rank_deficient) in enumerate(self._measured):
            error, before, after = known[3 * i : 3 * i + 3]
            shape = tuple(m.view.shape)
            known_of = (m.scale, error**2, before, after, zero, rank_deficient)
            reports.append(MatrixReport(m.name, shape, *known_of, m.name not in left))
        full = None if self._full is None else sum(error * error for error in known[3 * len(reports) :])
        seconds = self._now() - self._start
        weights, parameters = _counts(self._model)
        return ResetReport(
            self._method, len(self._touched), tuple(reports), full, self._skipped, seconds, weights, parameters,
            tuple(self._touched.values()),
            tuple(m.name for m in self._matrices if "[" not in m.name and looks_fused(m.name, m.view.shape)),
        )  # fmt: skip


def _counts(model: nn.Module | None) -> tuple[int, int]:
    """How many numbers the floating-point parameters of a model hold: of two or more dimensions, and of any."""
    tensors = {storage_key(p): p for p in model.parameters() if not is_lazy(p)}.values() if model is not None else ()
    sizes = [(p.ndim, p.numel()) for p in tensors if p.dtype.is_floating_point]
    return sum(size for ndim, size in sizes if ndim >= 2), sum(size for _, size in sizes)


def _size(model: nn.Module | None, name: str) -> int:
    """Numbers in the parameter of that name."""
    try:
        parameter = model.get_parameter(name) if model is not None else None
    except AttributeError:
        return 0
    return 0 if parameter is None or is_lazy(parameter) else parameter.numel()
