"""How every script ends: an error is one line on stderr and a non-zero status, never a traceback."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from experiments.common.errors import UserError

T = TypeVar("T")
_left_out: list[Path] = []  # by the script that runs


def run(main: Callable[[], int | None]) -> int:
    """Call a script's `main`; the exit status of the process: what `main` returns, 0 for None, or 1 if `readable` has
    left something out.

    A reader of the output that closes it early, as `| head` does, is no error and ends the script quietly.
    """
    _left_out.clear()
    try:
        status = main() or 0
        sys.stdout.flush()
        if _left_out:
            print(f"error: {len(_left_out)} damaged, left out", file=sys.stderr)
        return status or int(bool(_left_out))
    except BrokenPipeError:  # Python flushes stdout once more at exit, which must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def folder(text: str) -> Path:
    """A folder that the command line names; nothing would mean the current one."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it names no folder")
    return Path(text).expanduser()


def readable(folders: Iterable[Path], read: Callable[[Path], T]) -> Iterator[T]:
    """What `read` makes of each folder; one for which it raises UserError is named on stderr and left out."""
    for folder in folders:
        try:
            yield read(folder)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            _left_out.append(folder)


def check_writable(folder: Path) -> None:
    """Make a folder for results; to be called before the work.

    Raises:
        UserError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}") from error
