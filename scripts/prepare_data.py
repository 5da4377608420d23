"""Fetch and verify a data set: `python -m scripts.prepare_data cifar10`."""

import argparse
import logging
import os
import sys
from pathlib import Path

from experiments.common.config import DEFAULT_DATA
from experiments.common.errors import UserError
from experiments.vision.data import DATASETS


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_data", description=__doc__)
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument(
        "--data-dir", type=Path, default=os.environ.get("FIRE_DATA") or DEFAULT_DATA, help="default: %(default)s"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    folder = Path(arguments.data_dir).expanduser()
    try:
        files = DATASETS[arguments.dataset](folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.dataset}: {len(files)} files in {folder}, checksums right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
