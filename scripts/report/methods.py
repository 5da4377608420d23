"""Names, colours and order of the methods in every table and figure."""

import re
from dataclasses import dataclass

# Okabe and Ito's palette, safe for colour-blind readers. Variants of a method share its colour.
BLACK, ORANGE, LIGHT_BLUE, PINK, BLUE, RED, GREEN, YELLOW, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#CC79A7", "#0072B2", "#D55E00", "#009E73", "#F0E442", "#888888",
)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """How a method is shown.

    Attributes:
        name: for readers.
        colour: in every figure.
        published: its names in results/paper/figures.csv.
    """

    name: str
    colour: str
    published: tuple[str, ...] = ()


METHODS = {  # in the order of tables and legends
    "none": Shown("No reset", BLACK, ("Base",)),
    "shrink_perturb": Shown("Shrink & perturb", ORANGE, ("S&P",)),
    "full_reset": Shown("Full reset", LIGHT_BLUE, ("Full", "Reset")),
    "plasticity_injection": Shown("Plasticity injection", PINK, ("PI",)),
    "l2_init": Shown("L2 init", YELLOW, ("L2init",)),
    "redo": Shown("ReDo", GREY, ("ReDo",)),
    "rescale": Shown("Rescale to FIRE's norm", BLUE),
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
    return METHODS[base(label)].colour if base(label) in METHODS else GREEN


def order(label: str) -> tuple[int, list[float], str]:
    """Sorts labels by method, then by the numbers among the settings."""
    place = list(METHODS).index(base(label)) if base(label) in METHODS else len(METHODS)
    return place, [float(number) for number in re.findall(r"=([\d.]+)", label)], label
