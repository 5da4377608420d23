"""`python -m experiments.vision method=fire`: see the README for what can be set."""

import sys

from experiments.common.launch import launch
from experiments.vision.config import VisionConfig
from experiments.vision.train import run

if __name__ == "__main__":
    sys.exit(launch("vision", VisionConfig, run))
