"""See and free disk space: `python -m scripts.clean outputs/ [--free]`.

Finished runs keep no checkpoints, only language models and agents their final weights, which stay. What does take
space are the shared phases, which further methods would branch from, and the checkpoints of interrupted runs, which
repeating their command would resume. `--free` deletes both kinds.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.common import checkpoint
from experiments.common.workspace import is_shared_phase


def candidates(outputs: Path) -> list[tuple[Path, str]]:
    """Folders that hold checkpoints, with what they are."""
    found = []
    for description in sorted(outputs.rglob("run.json")):
        folder = description.parent
        if not size(folder):
            continue
        command = json.loads(description.read_text())["command"]
        done = (folder / "done").exists()
        if is_shared_phase(folder):
            kept = ", ".join(checkpoint.kept(folder))
            kind = f"shared phase with {kept}" if kept else "unfinished shared phase"
        else:
            kind = "left-over checkpoints of a finished run" if done else "interrupted run"
        found.append((folder, f"{kind}, of: {command}"))
    return found


def size(folder: Path) -> int:
    """Bytes of the checkpoints in a folder that may go; a file that has two names counts once."""
    paths = [path for pattern in ("checkpoint-*.pt", "kept-*.pt", "segment-*.npz") for path in folder.glob(pattern)]
    stats = [path.stat() for path in paths if not path.name.startswith(f"kept-{checkpoint.FINAL}-")]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def free(folder: Path) -> bool:
    """Delete a shared phase or an interrupted run, of a finished run the checkpoints alone; nothing in use."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"in use, kept: {folder}")
        return False
    try:
        if (folder / "done").exists() and not is_shared_phase(folder):
            checkpoint.remove(folder)
        else:
            shutil.rmtree(folder)
    finally:
        lock.release()
    return True


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.clean", description=__doc__)
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--free", action="store_true", help="delete what is listed")
    arguments = parser.parse_args()
    if not arguments.outputs.is_dir():
        print(f"error: there is no folder {arguments.outputs}", file=sys.stderr)
        return 1
    total = 0
    for folder, what in candidates(arguments.outputs):
        bytes_here = size(folder)
        print(f"{bytes_here / 1e6:10.1f} MB  {folder}  ({what})")
        if not arguments.free or free(folder):
            total += bytes_here
    print(f"{total / 1e6:10.1f} MB  {'freed' if arguments.free else 'in all; --free deletes them'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
