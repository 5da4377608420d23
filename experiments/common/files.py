"""Files written whole or not at all, and their checksums."""

import glob
import hashlib
import json
import os
import secrets
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from experiments.common.errors import UserError

ABANDONED_SECONDS = 3600.0  # no file takes this long to write


def temporary_name(target: Path) -> Path:
    """A name that nobody can foresee, beside the target. Open it with mode x, which writes to no file that is there and
    follows no link."""
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")


def write_bytes(target: Path, content: bytes) -> None:
    """Write a file by renaming a finished temporary one, to survive a crash and a power cut.

    The temporary file is in the target's folder and has a random name. Those that killed processes have left there are
    deleted when the same target is written again.

    Raises:
        UserError: the disk is full or not writable.
    """
    temporary = temporary_name(target)
    try:
        for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
            if leftover.lstat().st_mtime < time.time() - ABANDONED_SECONDS:
                leftover.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {target}: {error}") from error


def write_text(target: Path, text: str) -> None:
    """The same for text."""
    write_bytes(target, text.encode())


def damaged(path: Path, why: object) -> UserError:
    """The error for a file of a run or shared phase that cannot be what was written."""
    return UserError(f"damaged {path}: {' '.join(str(why).split())}; delete {path.parent} to start over")


def check_regular(path: Path) -> None:
    """Raise UserError for what is there and is no regular file: reading it might never end."""
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read {path}: it is no regular file")


def read_object(path: Path, needed: Collection[str] = ()) -> dict[str, Any]:
    """The object in a JSON file, which has the `needed` keys.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    check_regular(path)
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except ValueError as error:  # of JSON or of UTF-8
        raise damaged(path, error) from error
    if not isinstance(found, dict):
        raise damaged(path, "it holds no object")
    if missing := [key for key in needed if key not in found]:
        raise damaged(path, f"it has no {missing[0]!r}")
    return found


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """The SHA-256 of a file in 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
