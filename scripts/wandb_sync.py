"""Upload runs that were logged offline: `python -m scripts.wandb_sync outputs/`.

Each W&B run is rebuilt from the run directory's metrics.jsonl, the only truth; rows the service has are not sent again.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from omegaconf import OmegaConf

from experiments.common.metric_log import read_rows
from experiments.common.wandb_mirror import VIDEO, open_mirror
from experiments.common.workspace import run_directories

X_AXES = ("epoch", "iteration", "env_step")


def sync(run_dir: Path, mode: str) -> bool:
    """Mirror one run directory; returns whether that worked."""
    rows = read_rows(run_dir / "metrics.jsonl")
    if not rows:
        print(f"nothing logged yet: {run_dir}")
        return True
    settings = OmegaConf.load(run_dir / "config.yaml").wandb
    settings.mode = mode
    mirror = open_mirror(run_dir, next(axis for axis in X_AXES if axis in rows[0]), settings, fallback=False)
    for number, row in enumerate(rows):
        mirror.log(number, row)
        if not mirror.working:
            return False
    if (run_dir / VIDEO).exists():
        mirror.video(run_dir / VIDEO)
    done = run_dir / "done"
    return mirror.finish(json.loads(done.read_text()) if done.exists() else None)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.wandb_sync", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run directories, or folders of them")
    parser.add_argument("--mode", choices=["online", "offline"], default="online", help="offline: write, do not send")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    found = run_directories(arguments.folders)
    if not found:
        print(f"error: no run below {', '.join(map(str, arguments.folders))}", file=sys.stderr)
        return 1
    for count, path in enumerate(found):
        if not sync(path.absolute(), arguments.mode):
            print(f"error: stopped at {path}, after {count} of {len(found)} runs", file=sys.stderr)
            return 1
    print(f"{len(found)} of {len(found)} runs mirrored")
    return 0


if __name__ == "__main__":
    sys.exit(main())
