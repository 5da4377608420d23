"""The paper's experiments; each domain is a package run with `python -m experiments.<domain>`."""

import os

# How long PyTorch's threads on the CPU look for more work before they sleep, read once, when PyTorch loads OpenMP. The
# default is so long that two training processes on one CPU stop each other: 15 times slower each, measured on 2 cores.
# This costs one process alone 4 % and two of them 30 % of what they reach with threads that sleep at once.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
