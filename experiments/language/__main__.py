"""`python -m experiments.language method=fire`: see the README for what can be set."""

import sys

from experiments.common.launch import launch
from experiments.language.config import LanguageConfig
from experiments.language.train import run

if __name__ == "__main__":
    sys.exit(launch("language", LanguageConfig, run))
