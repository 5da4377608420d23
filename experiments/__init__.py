"""The paper's experiments; each domain is a package run with `python -m experiments.<domain>`."""

import os

# Read once, when PyTorch loads OpenMP. By default waiting threads spin, so that two training processes on one CPU stop
# each other: on 2 busy cores a small network trained 10 times slower than with this. On idle cores it costs nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
