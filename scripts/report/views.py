"""How a recipe is shown whose point is not the way its curves go."""

from dataclasses import dataclass

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
        setting: of the method, on the x-axis; without one, methods stand one below the other.
        places: where on that axis methods stand that do not tell the setting; other methods are lines across.
        figure: of the paper.
    """

    measured: tuple[str, ...] = ("plasticity/dfi_normalised", "reset/sfe_normalised")
    setting: str = ""
    places: tuple[tuple[str, str], ...] = ()
    figure: str = ""


VIEWS = {
    "fig5a_cifar10": View(
        setting="steps", places=(("fire (solver=polar_express)", "exact"),), figure="Figure 5(a)"
    ),
    "fig5b_cifar10": View(("plasticity/sharpness", "reset/dfi_after", "reset/sfe_normalised"), figure="Figure 5(b)"),
    "isometry_exactness": View(),
    "interpolation": View(setting="interpolation", places=(("none", "0"), ("fire", "1"))),
    "scale_factor": View(),
}  # fmt: skip
