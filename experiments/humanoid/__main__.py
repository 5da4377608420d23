"""`python -m experiments.humanoid method=fire task=h1-walk`: see the README for what can be set."""

import sys

from experiments.common.launch import launch
from experiments.humanoid.config import HumanoidConfig
from experiments.humanoid.train import run

if __name__ == "__main__":
    sys.exit(launch("humanoid", HumanoidConfig, run))
