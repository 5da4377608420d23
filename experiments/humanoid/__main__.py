"""`python -m experiments.humanoid method=fire task=h1-walk`: docs/settings.md has all settings."""

import sys

import experiments.console  # noqa: F401 - first
from experiments.common.launch import launch
from experiments.humanoid.domain import HUMANOID

if __name__ == "__main__":
    sys.exit(launch(HUMANOID))
