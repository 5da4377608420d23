"""`python -m experiments.toy method=fire`."""

import sys

from experiments.toy.domain import TOY

from experiments.common.launch import launch

if __name__ == "__main__":
    sys.exit(launch(TOY))
