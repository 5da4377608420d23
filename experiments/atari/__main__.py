"""`python -m experiments.atari method=fire game=asterix`: docs/settings.md has all settings."""

import sys

import experiments.console  # noqa: F401 - first
from experiments.atari.domain import ATARI
from experiments.common.launch import launch

if __name__ == "__main__":
    sys.exit(launch(ATARI))
