"""See and free disk space: `python -m scripts.clean outputs/ [--free]`.

Finished runs keep no checkpoints, only language models and agents their final weights, which stay. What takes space are
the shared phases, which further methods would branch from, and the checkpoints of interrupted runs, which repeating
their command would resume. `--free` deletes both kinds.
"""

import argparse
import shutil
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.common import checkpoint, run_files
from experiments.common.errors import UserError
from experiments.common.run_files import is_shared_phase
from scripts import command


def kind(folder: Path) -> str:
    """What a folder with checkpoints is."""
    if is_shared_phase(folder):
        kept = ", ".join(checkpoint.kept(folder))
        return f"shared phase with {kept}" if kept else "unfinished shared phase"
    return "left-over checkpoints of a finished run" if (folder / "done").exists() else "interrupted run"


def size(folder: Path) -> int:
    """Bytes of the checkpoints in a folder that may go; a file that has two names counts once."""
    paths = [path for pattern in ("checkpoint-*.pt", "kept-*.pt", "segment-*.npz") for path in folder.glob(pattern)]
    stats = [path.stat() for path in paths if not path.name.startswith(f"kept-{checkpoint.FINAL}-")]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def free(folder: Path) -> bool:
    """Delete a shared phase or an interrupted run, of a finished run the checkpoints alone; nothing in use."""
    try:
        with FileLock(folder / ".lock").acquire(timeout=0):
            if (folder / "done").exists() and not is_shared_phase(folder):
                checkpoint.remove(folder)
            else:
                shutil.rmtree(folder)
            return True
    except Timeout:
        print(f"in use, kept: {folder}")
        return False


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m scripts.clean", description=__doc__)
    parser.add_argument("outputs", type=command.folder)
    parser.add_argument("--free", action="store_true", help="delete what is listed")
    arguments = parser.parse_args()
    total = 0
    if not arguments.outputs.is_dir():
        raise UserError(f"there is no folder {arguments.outputs}")
    folders = [path.parent for path in sorted(arguments.outputs.rglob("run.json"))]
    for folder, words in command.readable(folders, lambda folder: (folder, run_files.description(folder)["command"])):
        if found := size(folder):
            print(f"{found / 1e6:10.1f} MB  {folder}  ({kind(folder)}, of: {words})")
            total += found if not arguments.free or free(folder) else 0
    print(f"{total / 1e6:10.1f} MB  {'freed' if arguments.free else 'in all; --free deletes them'}")


if __name__ == "__main__":
    sys.exit(command.run(main))
