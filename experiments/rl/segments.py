"""Data that only grow, such as a replay buffer, on disk as immutable segments that checkpoints refer to.

A segment is a compressed `.npz` file, `segment-<first row>-<row after its last>-<first 16 digits of its sha256>.npz`.
It is written once and read by every run that continues from a checkpoint, from other directories too; never mapped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import checkpoint
from experiments.common.errors import UserError


def write(folder: Path, first: int, arrays: Mapping[str, np.ndarray]) -> Path:
    """Keep rows `first` and on, the same number in each of `arrays`."""
    named: dict[str, Any] = dict(arrays)
    stop = first + len(next(iter(arrays.values())))
    temporary, digits = checkpoint.write_checked(folder, lambda file: np.savez_compressed(file, **named))
    return checkpoint.move(temporary, folder / f"segment-{first:09d}-{stop:09d}-{digits}.npz")


def rows(path: Path) -> range:
    """The rows a segment holds, by its name."""
    _, first, stop, _ = path.stem.split("-")
    return range(int(first), int(stop))


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a segment.

    Raises:
        UserError: it is missing or damaged.
    """
    if not path.exists():
        raise UserError(f"{path} is missing, which a checkpoint refers to; delete {path.parent} to start over")
    if not checkpoint.intact(path):
        raise UserError(f"damaged segment {path}; delete {path.parent} to start over")
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)
