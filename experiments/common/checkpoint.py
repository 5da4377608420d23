"""Checkpoints: whole or absent, verified when read, safe to load.

A file is named `checkpoint-<number>-<first 16 digits of its sha256>.pt`: content and checksum appear in one rename, and
`torch.load(path, weights_only=True)` opens it anywhere. The newest two are kept while a run goes on, so that a damaged
one costs an interval and not the run.
"""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from experiments.common.errors import UserError

logger = logging.getLogger("fire")
_NAME = re.compile(r"checkpoint-(\d{6,})-([0-9a-f]{16})\.pt")


def save(folder: Path, content: dict[str, Any], keep: int = 2) -> Path:
    """Write `content` as the newest checkpoint of `folder` and drop all but the newest `keep`."""
    found = _listed(folder)
    number = found[-1][0] + 1 if found else 1
    temporary = folder / f".checkpoint-{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"checkpoint-{number:06d}-{_sha256(temporary)[:16]}.pt"
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # PyTorch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write a checkpoint to {folder}: {str(error).splitlines()[0]}") from error
    sync_folder(folder)
    for _, old in found[: len(found) + 1 - keep]:
        old.unlink(missing_ok=True)
    return path


def load(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint of `folder`, on the CPU; None if there is none at all.

    Raises:
        UserError: there are checkpoints, but every one is damaged.
    """
    found = _listed(folder)
    for _, path in reversed(found):
        if _sha256(path)[:16] == _NAME.fullmatch(path.name)[2]:  # type: ignore[index]
            return path, torch.load(path, map_location="cpu", weights_only=True)
        logger.warning("warning: damaged checkpoint %s: its content does not match the checksum in its name", path)
    if found:
        raise UserError(
            f"damaged checkpoint {found[-1][1]}: its content does not match the checksum in its name; "
            f"delete {folder} to start over"
        )
    return None


def remove(folder: Path) -> None:
    """Delete all checkpoints of `folder`."""
    for _, path in _listed(folder):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _listed(folder: Path) -> list[tuple[int, Path]]:
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*.pt"))
    return sorted((int(match[1]), path) for match, path in named if match)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
