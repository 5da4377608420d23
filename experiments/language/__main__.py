"""`python -m experiments.language method=fire`: docs/settings.md has all settings."""

import sys

import experiments.console  # noqa: F401 - first
from experiments.common.launch import launch
from experiments.language.domain import LANGUAGE

if __name__ == "__main__":
    sys.exit(launch(LANGUAGE))
