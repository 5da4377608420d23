"""One verb a file: `python -m scripts.<verb>`."""

import experiments.console  # noqa: F401 - before what the scripts import
