"""What the report shows of each domain."""

from dataclasses import dataclass, field

# One colour and one place for each method, everywhere (Okabe and Ito's palette, safe for colour-blind readers), and its
# name in the paper's figures.
METHODS = {
    "none": ("No reset", "#000000", "Base"),
    "shrink_perturb": ("Shrink & perturb", "#E69F00", "S&P"),
    "full_reset": ("Full reset", "#56B4E9", "Full"),
    "fire": ("FIRE", "#D55E00", "FIRE"),
}


@dataclass(frozen=True)
class Domain:
    """How a domain's results are told.

    Attributes:
        name: of the domain.
        metric, title: the key of its rows that matters most, and the same in words.
        step: the key that counts training.
        panels: the paper's panel (results/paper/figures.csv) for the benchmarks that have one.
        figure: the paper's figure.
        whole: benchmarks whose curves are drawn from the run's start; the others from the last boundary.
        apart: further metrics, each with a panel and a column of its own: key -> (panel's title, column).
        before: metrics of phase 0 to be shown in a panel: key -> label.
    """

    name: str
    metric: str
    title: str
    step: str
    panels: dict[str, str]
    figure: str
    whole: tuple[str, ...] = ()
    apart: dict[str, tuple[str, str]] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)


DOMAINS = {
    "vision": Domain(
        "vision", "test/accuracy", "test accuracy", "epoch",
        {"warm_start": "warm_cifar10_resnet18", "continual": "cont_cifar10_resnet18"}, "Figure 2", whole=("continual",),
    ),
    "language": Domain(
        "language", "val/loss", "validation loss", "iteration",
        {f"{data}-{branch}": f"llm_{branch}"
         for data in ("wikitext103_openwebtext", "wikitext2_imdb") for branch in ("best", "30k", "60k")}, "Figure 3",
        apart={
            "val/loss_second": ("second corpus alone: new knowledge", "second corpus"),
            "val/loss_first": ("first corpus alone: retained knowledge", "first corpus"),
        },
        before={"train/loss": "training", "val/loss": "validation"},
    ),
}  # fmt: skip


def order(method: str) -> tuple[int, str]:
    """Place of a method in every table and legend."""
    return (list(METHODS).index(base(method)) if base(method) in METHODS else len(METHODS), method)


def base(method: str) -> str:
    """A method's name without settings."""
    return method.split(" (")[0]


def name(method: str) -> str:
    """A method's name for people."""
    return method.replace(base(method), METHODS[base(method)][0]) if base(method) in METHODS else method


def colour(method: str) -> str:
    """A method's colour; those added later share one."""
    return METHODS[base(method)][1] if base(method) in METHODS else "#009E73"
