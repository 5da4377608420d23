"""How methods and recipes are shown in every table and figure; shown.yaml has the names and explains the fields."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


@dataclass(frozen=True)
class Shown:
    """A method."""

    name: str
    colour: str
    published: Sequence[str] = ()


@dataclass(frozen=True)
class View:
    """A recipe that shows one number a run instead of curves."""

    measured: Sequence[str]
    axis: str = ""
    places: dict[str, str] = field(default_factory=dict)
    figure: str = ""
    finals: str = ""


_shown: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("shown.yaml")))
METHODS = {method: Shown(**fields) for method, fields in _shown["methods"].items()}
AFTER_RESET: dict[str, str] = _shown["after_reset"]  # metric -> words
ALWAYS: list[str] = _shown["always"]
VIEWS = {recipe: View(**fields) for recipe, fields in _shown["views"].items()}


def base(label: str) -> str:
    """The method in a label such as "fire (tol=0.1)", which has the settings given on the command line in brackets."""
    return label.split(" (")[0]


def name(label: str) -> str:
    """The label for readers."""
    method = base(label)
    return METHODS[method].name + label[len(method) :] if method in METHODS else label


def colour(label: str) -> str:
    """A method's colour; methods that are not in the table share one."""
    return METHODS[base(label)].colour if base(label) in METHODS else "#888888"


def order(label: str) -> tuple[int, list[float], str]:
    """Sorts labels by method, then by the numbers among the settings."""
    place = list(METHODS).index(base(label)) if base(label) in METHODS else len(METHODS)
    return place, [float(number) for number in re.findall(r"=([\d.]+)", label)], label
