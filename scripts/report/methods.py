"""Names, colours and order of the methods in every table and figure."""

import re
from dataclasses import dataclass

RED = "#D55E00"  # of FIRE and its variants


@dataclass(frozen=True)
class Shown:
    """How a method is shown.

    Attributes:
        name: for readers.
        colour: in every figure, of Okabe and Ito's palette, which is safe for colour-blind readers.
        published: its names in results/paper/figures.csv.
    """

    name: str
    colour: str
    published: tuple[str, ...] = ()


METHODS = {  # in the order of tables and legends
    "none": Shown("No reset", "#000000", ("Base",)),
    "shrink_perturb": Shown("Shrink & perturb", "#E69F00", ("S&P",)),
    "full_reset": Shown("Full reset", "#56B4E9", ("Full", "Reset")),
    "plasticity_injection": Shown("Plasticity injection", "#CC79A7", ("PI",)),
    "l2_init": Shown("L2 init", "#009E73", ("L2init",)),
    "redo": Shown("ReDo", "#882255", ("ReDo",)),
    "rescale": Shown("Rescale to FIRE's norm", "#0072B2"),
    "fire_steps5": Shown("FIRE, 5 steps", RED),
    "fire": Shown("FIRE", RED, ("FIRE",)),
    "fire_steps10": Shown("FIRE, 10 steps", RED),
    "fire_steps20": Shown("FIRE, 20 steps", RED),
    "fire_steps30": Shown("FIRE, 30 steps", RED),
    "fire_steps40": Shown("FIRE, 40 steps", RED),
    "fire_exact": Shown("FIRE, exact", RED),
    "fire_own_norm": Shown("FIRE, own norms", RED),
    "fire_part25": Shown("FIRE, 25 % of the way", RED),
    "fire_part50": Shown("FIRE, 50 % of the way", RED),
    "fire_part75": Shown("FIRE, 75 % of the way", RED),
}


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
