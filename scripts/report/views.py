"""How a recipe is shown whose point is not the way its curves go."""

from dataclasses import dataclass, field

# What is measured right after a reset: key -> words.
AFTER_RESET = {
    "plasticity/sharpness": "sharpness after the reset",
    "reset/dfi_after": "DfI after the reset",
    "plasticity/dfi_normalised": "DfI / min(out, in) after the reset",
    "reset/sfe_normalised": "SFE / that of a full reset",
}


@dataclass(frozen=True)
class View:
    """What the figure and the table of a recipe show.

    Attributes:
        measured: keys of AFTER_RESET, each with a panel and a column.
        axis: what the x-axis is; without one, methods stand one below the other.
        places: where methods stand on that axis, in its order; other methods are lines across.
        figure: of the paper, whose values get panels.
        finals: the part of the paper's panel in results/paper/final.csv that holds the values of its own.
    """

    measured: tuple[str, ...] = ("plasticity/dfi_normalised", "reset/sfe_normalised")
    axis: str = ""
    places: dict[str, str] = field(default_factory=dict)
    figure: str = ""
    finals: str = ""


STEPS = {"fire_steps5": "5", "fire": "10", "fire_steps20": "20", "fire_steps30": "30", "fire_steps40": "40"}
PARTS = {"none": "0", "fire_part25": "0.25", "fire_part50": "0.5", "fire_part75": "0.75", "fire": "1"}
VIEWS = {
    "fig5a_cifar10": View(axis="steps", places=STEPS | {"fire_exact": "exact"}, figure="Figure 5(a)", finals="steps"),
    "fig5b_cifar10": View(("plasticity/sharpness", "reset/dfi_after", "reset/sfe_normalised"), figure="Figure 5(b)"),
    "isometry_exactness": View(finals="steps"),
    "interpolation": View(axis="interpolation", places=PARTS),
    "scale_factor": View(),
}
