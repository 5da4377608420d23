"""`python -m experiments.toy method=fire`."""

import sys

from experiments.common.launch import launch
from experiments.toy.domain import TOY

if __name__ == "__main__":
    sys.exit(launch(TOY))
