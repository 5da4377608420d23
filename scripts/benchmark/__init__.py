"""Measured speed: `python -m scripts.benchmark all`, or some of core, vision, language, atari and humanoid."""

import experiments  # noqa: F401 - before PyTorch is loaded, because it says how PyTorch's threads wait
