"""What the report shows of each domain."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from experiments.atari.config import AtariConfig
from experiments.atari.games import human_normalised
from experiments.common.config import BaseConfig
from experiments.humanoid.config import HumanoidConfig
from experiments.humanoid.tasks import normalised
from experiments.language.config import LanguageConfig
from experiments.vision.config import VisionConfig

# One colour and one place for each method, everywhere (Okabe and Ito's palette, safe for colour-blind readers), and its
# names in the paper's figures.
METHODS = {
    "none": ("No reset", "#000000", ("Base",)),
    "shrink_perturb": ("Shrink & perturb", "#E69F00", ("S&P",)),
    "full_reset": ("Full reset", "#56B4E9", ("Full", "Reset")),
    "plasticity_injection": ("Plasticity injection", "#CC79A7", ("PI",)),
    "rescale": ("Rescale to FIRE's norm", "#0072B2", ()),
    "fire": ("FIRE", "#D55E00", ("FIRE",)),
}
OTHER_COLOUR = "#009E73"


@dataclass(frozen=True)
class Domain:
    """How a domain's results are told.

    Attributes:
        name: of the domain.
        schema: of its configurations.
        benchmark: from the values of one, what its runs are filed under.
        choices: the words that choose that.
        metric, title: the key of its rows that matters most, and the same in words.
        step, steps: the key that counts training, and the same in words.
        panels: the paper's panel (results/paper/figures.csv) for the benchmarks that have one.
        figure: the paper's figure.
        paper_step: how many steps 1 on the x-axis of the paper's figure is.
        whole: benchmarks whose curves are drawn from the run's start, all for None; the others from the last boundary.
        apart: further metrics, each with a panel and a column of its own: key -> (panel's title, column).
        before: metrics of phase 0 to be shown in a panel: key -> label.
        axis: what figures name the y-axis; the title if empty.
        decimals: of the metric in tables.
        normalised: by the benchmark's name, the metric on a scale of its own, in its own column; None: not known.
        warning: what to know before reading results of any scale but the paper's.
    """

    name: str
    schema: type[BaseConfig]
    benchmark: Callable[[Any], str]
    choices: Callable[[str], list[str]]
    metric: str
    title: str
    step: str
    steps: str
    panels: dict[str, str]
    figure: str
    paper_step: float = 1
    whole: tuple[str, ...] | None = ()
    apart: dict[str, tuple[str, str]] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)
    axis: str = ""
    decimals: int = 3
    normalised: tuple[str, Callable[[str, float], float | None]] | None = None
    warning: str = ""

    def since_boundary(self, benchmark: str) -> bool:
        """Whether a benchmark's curves begin at the last boundary."""
        return self.whole is not None and benchmark not in self.whole


DOMAINS = {
    "vision": Domain(
        "vision", VisionConfig, lambda cfg: cfg["benchmark"]["name"],
        lambda name: [f"benchmark={name}"],
        "test/accuracy", "test accuracy", "epoch", "epochs",
        {"warm_start": "warm_cifar10_resnet18", "continual": "cont_cifar10_resnet18"}, "Figure 2", whole=("continual",),
    ),
    "language": Domain(
        "language", LanguageConfig, lambda cfg: f"{cfg['data']['name']}-{cfg['checkpoint']}",
        lambda name: [f"{key}={word}" for key, word in zip(("data", "checkpoint"), name.rsplit("-", 1), strict=True)],
        "val/loss", "validation loss", "iteration", "iterations",
        {f"{data}-{branch}": f"llm_{branch}"
         for data in ("wikitext103_openwebtext", "wikitext2_imdb") for branch in ("best", "30k", "60k")}, "Figure 3",
        apart={
            "val/loss_second": ("second corpus alone: new knowledge", "second corpus"),
            "val/loss_first": ("first corpus alone: retained knowledge", "first corpus"),
        },
        before={"train/loss": "training", "val/loss": "validation"},
    ),
    "atari": Domain(
        "atari", AtariConfig, lambda cfg: cfg["game"],
        lambda name: [f"game={name}"],
        "train/return", "return of training episodes", "env_step", "agent steps",
        {"asterix": "dqn_asterix", "beam_rider": "dqn_beamrider", "demon_attack": "dqn_demonattack"}, "Figure 4(a)",
        paper_step=1e6, whole=None, apart={"eval/return": ("evaluation, epsilon 0.001", "evaluation")}, axis="return",
        decimals=0, normalised=("human-normalised", human_normalised), warning="too short to rank methods",
    ),
    "humanoid": Domain(
        "humanoid", HumanoidConfig, lambda cfg: cfg["task"],
        lambda name: [f"task={name}"],
        "eval/return", "return of evaluation episodes", "env_step", "environment steps",
        {"h1-walk": "sac_walk", "h1-balance_simple": "sac_balance", "h1-run": "sac_run"}, "Figure 4(b)",
        paper_step=1e6, whole=None, apart={"train/return": ("training episodes", "training")}, axis="return",
        decimals=1, normalised=("success-normalised", normalised), warning="too short to rank methods",
    ),
}  # fmt: skip


def order(method: str) -> tuple[int, bool, list[float], str]:
    """Place of a method in every table and legend; its variants by their numbers, those of another solver last."""
    place = list(METHODS).index(base(method)) if base(method) in METHODS else len(METHODS)
    return place, "solver=" in method, [float(number) for number in re.findall(r"=([\d.]+)", method)], method


def base(method: str) -> str:
    """A method's name without settings."""
    return method.split(" (")[0]


def name(method: str) -> str:
    """A method's name for people."""
    return method.replace(base(method), METHODS[base(method)][0]) if base(method) in METHODS else method


def colour(method: str) -> str:
    """A method's colour; those added later share one."""
    return METHODS[base(method)][1] if base(method) in METHODS else OTHER_COLOUR


def setting(method: str, key: str) -> str | None:
    """The value of a setting in a method's label, "fire (steps=5)"; None if it is not told there."""
    found = re.search(rf"[( ]{key}=([^,)]+)", method)
    return found[1] if found else None
