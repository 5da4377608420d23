"""Measured speed: `python -m scripts.benchmark core` and `python -m scripts.benchmark vision`."""

import experiments  # noqa: F401 - before PyTorch is loaded, because it says how PyTorch's threads wait
