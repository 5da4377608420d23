"""Checkpoints: whole or absent, verified when read, safe to load.

A file is named `checkpoint-<number>-<first 16 digits of its sha256>.pt`: content and checksum appear in one rename, and
`torch.load(path, weights_only=True)` opens it anywhere. The newest two are kept during a run, so that a damaged
one costs an interval and not the run. One that is to stay has a name beside its number,
`kept-<name>-<digits>.pt`, a second link to the same file.
"""

import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from experiments.common.errors import UserError
from experiments.common.files import checksum, sync_folder, temporary_name

logger = logging.getLogger("fire")
FINAL = "final"  # name of the weights a finished run leaves behind, in the domains that keep them
_NAME = re.compile(r"checkpoint-(\d{6,})-([0-9a-f]{16})\.pt")
_KEPT = re.compile(r"kept-(\w+)-([0-9a-f]{16})\.pt")


def save(folder: Path, content: dict[str, Any], keep: Iterable[str] = ()) -> Path:
    """Write `content` as the newest checkpoint of `folder`, drop all but the newest two, and keep it under the names
    `keep`, each in place of an earlier one."""
    found = _listed(folder)
    number = found[-1][0] + 1 if found else 1
    temporary, digits = write_checked(folder, lambda file: torch.save(content, file))
    # Kept first: of two files that a crash may leave, the numbered one must not be alone, since the state in it may say
    # that it has been kept.
    for name in keep:
        _keep(temporary, name, digits)
    path = move(temporary, folder / f"checkpoint-{number:06d}-{digits}.pt")
    for _, old in found[: len(found) - 1]:
        old.unlink(missing_ok=True)
    return path


def save_as(folder: Path, content: dict[str, Any], name: str) -> Path:
    """Write `content` to keep it as `name`, in place of an earlier one; what a run resumes from does not change."""
    temporary, digits = write_checked(folder, lambda file: torch.save(content, file))
    path = move(temporary, folder / f"kept-{name}-{digits}.pt")
    drop(folder, name, path)
    return path


def keep_also(folder: Path, name: str, other: str) -> None:
    """Keep what is kept as `name`, if anything, as `other`, too, in place of an earlier one."""
    if (path := kept(folder).get(name)) is not None:
        _keep(path, other, _digits(path))


def _keep(path: Path, name: str, digits: str) -> None:
    target = path.with_name(f"kept-{name}-{digits}.pt")
    link(path, target)
    drop(path.parent, name, target)


def drop(folder: Path, name: str, but: Path | None = None) -> None:
    """Delete what is kept as `name`, if anything, except the file `but`."""
    for path in folder.glob(f"kept-{name}-*.pt"):
        if path != but:
            path.unlink(missing_ok=True)


def write_checked(folder: Path, dump: Callable[[BinaryIO], None]) -> tuple[Path, str]:
    """A temporary file with what `dump` writes, safely on disk, and the digits of its checksum."""
    temporary = temporary_name(folder / "checkpoint")
    try:
        with temporary.open("xb") as file:
            dump(file)
            file.flush()
            os.fsync(file.fileno())
        return temporary, checksum(temporary)[:16]
    except (OSError, RuntimeError) as error:  # PyTorch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write a checkpoint to {folder}: {str(error).splitlines()[0]}") from error


def move(path: Path, target: Path) -> Path:
    """Give a file another name, to survive a power cut."""
    path.replace(target)
    sync_folder(target.parent)
    return target


def link(path: Path, target: Path) -> None:
    """Give a file a second name; on a file system without links, a copy."""
    try:
        os.link(path, target)
    except FileExistsError:
        pass
    except OSError:
        copy = temporary_name(target)
        shutil.copyfile(path, copy)
        move(copy, target)


def load(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint of `folder`, on the CPU; None if there is none at all.

    Raises:
        UserError: there are checkpoints, but every one is damaged.
    """
    found = _listed(folder)
    for _, path in reversed(found):
        if (content := read(path)) is not None:
            return path, content
    if found:
        raise UserError(
            f"damaged checkpoint {found[-1][1]}: its content does not match the checksum in its name; "
            f"delete {folder} to start over"
        )
    return None


def read(path: Path) -> dict[str, Any] | None:
    """The content of one checkpoint file, on the CPU; None, and a warning, if it is damaged."""
    if not intact(path):
        logger.warning("warning: damaged checkpoint %s: its content does not match the checksum in its name", path)
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, KeyError, EOFError) as error:  # whose text advises to trust the file
        raise UserError(f"{path} is refused: it is no file of plain values and tensors") from error


def read_kept(folder: Path, *names: str) -> tuple[Path, dict[str, Any]]:
    """File and content of the checkpoint kept as the first of `names` that there is, on the CPU.

    Raises:
        UserError: there is none, or it is damaged.
    """
    found = kept(folder)
    path = next((found[name] for name in names if name in found), None)
    if path is None:
        there = ", ".join(found) or "none"
        raise UserError(f"{folder} has no checkpoint {' or '.join(names)}; those there are: {there}")
    if (content := read(path)) is None:
        raise UserError(f"damaged checkpoint {path}; delete {folder} to start over")
    return path, content


def final_weights(run_dir: Path) -> dict[str, Any]:
    """The weights that a finished run has left.

    Raises:
        UserError: there are none, or they are damaged.
    """
    try:
        return read_kept(run_dir, FINAL)[1]["state"]["model"]
    except UserError as error:
        line = f"the final weights in {run_dir} are missing or damaged; overwrite=true trains them again"
        raise UserError(line) from error


def intact(path: Path) -> bool:
    """Whether a file's content is what the digits in its name say."""
    return checksum(path)[:16] == _digits(path)


def _digits(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def kept(folder: Path) -> dict[str, Path]:
    """The kept checkpoints of `folder` by name; of two with one name, left by a crash, the newer."""
    found = sorted(folder.glob("kept-*.pt"), key=lambda path: path.stat().st_mtime_ns)
    return {match[1]: path for path in found if (match := _KEPT.fullmatch(path.name))}


def remove(folder: Path, but: int = 0) -> None:
    """Delete all checkpoints of `folder` but the newest `but`, and if that is 0 those kept by name, except `FINAL`, and
    the segments that belong to them."""
    paths = [path for _, path in _listed(folder)]
    paths = paths[: len(paths) - but]
    if but == 0:
        paths += [path for path in folder.glob("kept-*.pt") if not path.name.startswith(f"kept-{FINAL}-")]
        paths += folder.glob("segment-*.npz")
    for path in paths:
        path.unlink(missing_ok=True)


def _listed(folder: Path) -> list[tuple[int, Path]]:
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*.pt"))
    return sorted((int(match[1]), path) for match, path in named if match)
