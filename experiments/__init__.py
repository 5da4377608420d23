"""The paper's experiments; each domain is a package run with `python -m experiments.<domain>`."""
