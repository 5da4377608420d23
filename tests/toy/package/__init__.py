"""A domain made by a test: a small network that fits one sine, then another."""
