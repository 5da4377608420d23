"""Measured speed: `python -m scripts.benchmark core` and `python -m scripts.benchmark vision`."""
