"""The metric log `metrics.jsonl`, one JSON object a line: the only truth about a run. W&B mirrors it."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.common.errors import UserError
from experiments.common.files import check_regular, damaged

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
        self._hash = hashlib.sha256(path.read_bytes())

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
            line = json.dumps(row).encode() + b"\n"
            self._file.write(line)
            self._file.flush()
            self._hash.update(line)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error}") from error
        self.rows.append(row)
        if self._mirror:
            self._mirror(len(self.rows) - 1, row)

    def position(self) -> dict[str, Any]:
        """How far the file goes, now that it is safely on disk: what a checkpoint remembers, and `cut` and `rows_until`
        take."""
        os.fsync(self._file.fileno())
        return {"bytes": self._file.tell(), "rows": len(self.rows), "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a metric log; a last line cut off by a crash is not one. No file: no rows.

    Raises:
        UserError: it is damaged; so of the functions below.
    """
    check_regular(path)
    return _rows(path, path.read_bytes()) if path.exists() else []


def rows_until(path: Path, position: dict[str, Any]) -> list[Row]:
    """The rows that there were at a `position`."""
    return _rows(path, _content_until(path, position))


def cut(path: Path, position: dict[str, Any] | None) -> None:
    """Cut a metric log back to the `position` it had when a checkpoint was taken, or to nothing."""
    length = len(_content_until(path, position)) if position else 0
    if path.exists() and path.stat().st_size > length:
        os.truncate(path, length)


def _content_until(path: Path, position: dict[str, Any]) -> bytes:
    check_regular(path)
    content = path.read_bytes() if path.exists() else b""
    if len(content) < position["bytes"]:
        raise damaged(path, f"{len(content)} bytes where its checkpoint knows {position['bytes']}")
    content = content[: position["bytes"]]
    if position["sha256"] not in (None, hashlib.sha256(content).hexdigest()):
        raise damaged(path, "it has changed since its checkpoint was taken")
    return content


def _rows(path: Path, content: bytes) -> list[Row]:
    try:
        rows = [json.loads(line) for line in content.split(b"\n")[:-1]]
    except ValueError as error:  # of JSON or of UTF-8
        raise damaged(path, error) from error
    if not all(isinstance(row, dict) for row in rows):
        raise damaged(path, "a line is no row")
    return rows
