"""`python -m experiments.atari method=fire game=asterix`: see the README for what can be set."""

import sys

from experiments.atari.config import AtariConfig
from experiments.atari.train import run
from experiments.common.launch import launch

if __name__ == "__main__":
    sys.exit(launch("atari", AtariConfig, run))
