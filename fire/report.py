"""What a reset did: a record per weight matrix, and the totals a training log keeps."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fire import metrics
from fire.matrices import WeightMatrix, storage_key


@dataclass(frozen=True)
class MatrixReport:
    """One weight of a model, its stack of matrices taken together.

    Attributes:
        name: dotted parameter name, with the rows in brackets for a part of a fused weight.
        shape: (stack..., out, in).
        scale: FIRE's scale factor for it.
        sfe: ||W - W~||_F^2 summed over the stack, on the actual weights.
        dfi_before, dfi_after: ||V^T V - I||_F^2 of V = W / scale, summed over the stack.
        zero, rank_deficient: how many matrices a projection left alone because they are zero, and how many it could
            only make partial isometries.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    sfe: float
    dfi_before: float
    dfi_after: float
    zero: int = 0
    rank_deficient: int = 0

    @property
    def matrices(self) -> int:
        """How many matrices the stack holds."""
        return int(torch.Size(self.shape[:-2]).numel())


@dataclass(frozen=True)
class ResetReport:
    """What one reset changed.

    Attributes:
        method: its name.
        touched: number of tensors written.
        matrices: a record for every weight looked at.
        skipped: tensors of two or more dimensions that have no rule, with the reason (`fire.matrices`).
        seconds: wall time of the reset, its own measurements included.
        peak_bytes: extra memory at its peak, on CUDA, for which PyTorch's own count of the peak is reset; None
            elsewhere, where nothing counts it.
    """

    method: str
    touched: int
    matrices: tuple[MatrixReport, ...]
    skipped: Mapping[str, str] = field(repr=False)
    seconds: float
    peak_bytes: int | None

    @property
    def sfe(self) -> float:
        """Squared Frobenius Error over all matrices."""
        return sum(m.sfe for m in self.matrices)

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
    def rank_deficient(self) -> tuple[str, ...]:
        """Weights that hold rank-deficient matrices, which became partial isometries."""
        return tuple(m.name for m in self.matrices if m.rank_deficient)


class Recorder:
    """Writes new weights in place and keeps, for each matrix, what the write did."""

    def __init__(self, method: str, matrices: Iterable[WeightMatrix], skipped: Mapping[str, str]) -> None:
        self._method, self._skipped = method, skipped
        self._unwritten = {matrix.name: matrix for matrix in matrices}
        self._records: list[MatrixReport] = []
        self._touched: set[tuple] = set()
        device = next((m.parameter.device for m in self._unwritten.values()), torch.device("cpu"))
        self._cuda = device if device.type == "cuda" else None
        if self._cuda:
            torch.cuda.synchronize(self._cuda)
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._allocated = torch.cuda.memory_allocated(self._cuda)
        self._start = time.perf_counter()

    def write(self, matrix: WeightMatrix, new: Tensor, *, zero: int = 0, rank_deficient: int = 0) -> None:
        """Copy `new` (*stack, out, in) into the matrix; `zero` and `rank_deficient` go into its record."""
        del self._unwritten[matrix.name]
        before = metrics.dfi(matrix.view, matrix.scale)
        new = new.to(matrix.view)
        error = metrics.sfe(matrix.view, new)
        matrix.view.copy_(new)
        after = metrics.dfi(matrix.view, matrix.scale) if error else before
        self._touched.add(storage_key(matrix.parameter))
        self._records.append(
            MatrixReport(
                matrix.name, tuple(new.shape), matrix.scale, error,
                float(before.sum()), float(after.sum()), zero, rank_deficient,
            )
        )  # fmt: skip

    def write_tensor(self, tensor: Tensor, new: Tensor) -> None:
        """Copy `new` into a whole parameter or buffer, recording the matrices that lie in it."""
        key = storage_key(tensor)
        for matrix in [m for m in self._unwritten.values() if storage_key(m.parameter) == key]:
            self.write(matrix, matrix.of(new.to(tensor)))
        tensor.detach().copy_(new)
        self._touched.add(key)

    def report(self) -> ResetReport:
        """The finished report; matrices never written count with an SFE of zero."""
        touched = len(self._touched)
        for matrix in list(self._unwritten.values()):
            self.write(matrix, matrix.view)
        if self._cuda:
            torch.cuda.synchronize(self._cuda)
        return ResetReport(
            self._method, touched, tuple(self._records), self._skipped, time.perf_counter() - self._start,
            torch.cuda.max_memory_allocated(self._cuda) - self._allocated if self._cuda else None,
        )  # fmt: skip
