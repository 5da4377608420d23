"""The metric log `metrics.jsonl`, one JSON object a line: the only truth about a run. W&B mirrors it."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.common.errors import UserError

Row = dict[str, Any]
Mirror = Callable[[int, Row], None]
"""Shows a row elsewhere, given its number; leaves out one that it has shown before."""


class MetricLog:
    """Appends rows to a file, each flushed as a whole line, and passes them on to a mirror."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mirror: Mirror | None = None
        self.rows = read_rows(path)
        self._file = path.open("ab")

    def show(self, mirror: Mirror | None) -> None:
        """Show all rows, and those to come, in `mirror`."""
        self._mirror = mirror
        if mirror:
            for number, row in enumerate(self.rows):
                mirror(number, row)

    def append(self, row: Row) -> None:
        """Write one row; a number that is not finite becomes null, because JSON has no other word for it."""
        row = {key: None if _not_finite(value) else value for key, value in row.items()}
        try:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error}") from error
        self.rows.append(row)
        if self._mirror:
            self._mirror(len(self.rows) - 1, row)

    def position(self) -> int:
        """Length of the file in bytes, safely on disk: what a checkpoint remembers."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a metric log; a last line cut off by a crash is not one. No file: no rows."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise UserError(f"damaged metric log {path}: {error}; delete {path.parent} to start over") from error


def cut(path: Path, length: int) -> None:
    """Cut a metric log back to the `length` bytes it had when a checkpoint was taken.

    Raises:
        UserError: it is shorter than that, so rows are lost.
    """
    size = path.stat().st_size if path.exists() else 0
    if size < length:
        raise UserError(
            f"damaged metric log {path}: {size} bytes where its checkpoint knows {length}; "
            f"delete {path.parent} to start over"
        )
    if size > length:
        os.truncate(path, length)
