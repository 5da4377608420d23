"""`python -m experiments.toy method=fire`."""

import sys

import experiments.console  # noqa: F401 - first
from experiments.toy.domain import TOY

from experiments.common.launch import launch

if __name__ == "__main__":
    sys.exit(launch(TOY))
