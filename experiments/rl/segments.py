"""Data that only grow, such as a replay buffer, on disk as immutable segments that checkpoints refer to.

A segment is a compressed `.npz` file, `segment-<first row>-<row after its last>-<first 16 digits of its sha256>.npz`.
It is written once and read by every run that continues from a checkpoint, from other directories too; never mapped.
"""

import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from experiments.common import checkpoint
from experiments.common.errors import UserError

COMPRESSION_LEVEL = 3  # of zlib; on frames of Atari faster than 1, because there is less to write
_NAME = re.compile(r"segment-(\d{9})-(\d{9})-([0-9a-f]{16})\.npz")


def write(folder: Path, first: int, arrays: Mapping[str, np.ndarray]) -> Path:
    """Keep rows `first` and on, the same number in each of `arrays`."""
    count = len(next(iter(arrays.values())))

    def dump(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION_LEVEL) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    npy.write_array(member, np.ascontiguousarray(array), allow_pickle=False)

    temporary, digits = checkpoint.write_checked(folder, dump)
    return checkpoint.move(temporary, folder / f"segment-{first:09d}-{first + count:09d}-{digits}.npz")


def rows(path: Path) -> range:
    """The rows a segment holds, by its name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"not the name of a segment: {path.name}")
    return range(int(match[1]), int(match[2]))


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
        return {name: archive[name] for name in archive.files}


def link(path: Path, folder: Path) -> Path:
    """The segment under the same name in `folder` too: the same file, or a copy where links cannot be."""
    target = folder / path.name
    if not target.exists():
        checkpoint.link(path, target)
    return target


def remove_but(folder: Path, needed: Collection[Path]) -> None:
    """Delete the segments of `folder` that no checkpoint refers to any more."""
    keep = {path.name for path in needed}
    for path in folder.glob("segment-*.npz"):
        if path.name not in keep:
            path.unlink()
