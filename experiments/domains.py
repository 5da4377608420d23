"""All domains by name; one is imported when it is asked for, so that it runs without the packages of the others."""

from importlib import import_module

from experiments.common.domain import Domain

NAMES = ("vision", "language", "atari", "humanoid")


def domain(name: str) -> Domain:
    """The description of a domain, `experiments.<name>.domain`."""
    return getattr(import_module(f"experiments.{name}.domain"), name.upper())
