"""Theorems 1 to 4 of the paper on a trained network, each bound beside the value that it bounds.

`python -m scripts.theorems outputs/vision/.../fire-s0-...` takes a run of vision, whose shared phase 0 it reads, or a
shared phase 0 (`outputs/phases/...`); without one, the newest of vision in outputs/phases. It trains nothing. It writes
a Markdown page, and the same numbers as CSV beside it.

The theorems are about linear layers with a ReLU between them. So what is measured is the head of the network, its last
two linear layers, on the features of real images.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from fire import metrics
from scripts import command
from scripts.report.page import table
from scripts.report.tables import compact
from scripts.theorems import bounds
from scripts.theorems.trained import Head, Trained, load, phase_of

DELTA = 0.01  # of the srank, as in Kumar et al. 2021
# Of cross-entropy in the logits: diag(p) - p p^T has no eigenvalue above 1/2, and ||p - e_y|| is below sqrt(2).
BETA, GAMMA = 0.5, math.sqrt(2)
BEFORE = "before FIRE"
PAGE = Path(__file__).with_name("page.md")


@dataclass(frozen=True)
class Check:
    """A line of the table.

    Attributes:
        theorem: its number.
        quantity: what it bounds.
        network: before or after which reset.
        inputs: of the layers, in words.
        value, bound: both as numbers; a bound is NaN where the theorem gives none.
        lower: whether the bound is a lower one.
        always: a bound that holds for every network; NaN where none is known.
        assumed: whether what the theorem assumes is given.
    """

    theorem: int
    quantity: str
    network: str
    inputs: str
    value: float
    bound: float
    lower: bool = False
    always: float = math.nan
    assumed: bool = True

    @property
    def verdict(self) -> str:
        """Whether the value is within the bound, and whether the bound says anything."""
        if math.isnan(self.bound):
            return "no bound: ε is 1 or more"
        sign = -1 if self.lower else 1
        holds = sign * self.value <= sign * self.bound
        if not self.assumed:
            return f"{'holds' if holds else 'fails'}, outside the assumptions"
        if not holds:
            return "violated"
        if sign * self.always <= sign * self.bound:
            return f"holds, but says nothing: it is never {'below' if self.lower else 'above'} {self.always:g}"
        return "holds"


def checks(trained: Trained) -> list[Check]:
    """All lines, by theorem."""
    return [
        *theorem_1(trained),
        *(
            check
            for theorem in (theorem_2, theorem_3, theorem_4)
            for name in trained.heads
            for check in theorem(trained, name)
        ),
    ]


def theorem_1(trained: Trained) -> Iterator[Check]:
    """Drift of the representation by FIRE, after one layer and after both."""
    Z, old = trained.Z, trained.heads[BEFORE].weights
    for name, head in trained.heads.items():
        outputs = zip(bounds.layers(Z, old), bounds.layers(Z, head.weights), strict=True)
        for count, (H, H_after) in enumerate(outputs, 1):
            if name != BEFORE:
                bound = bounds.drift_bound(Z, H, H_after, old[:count], head.weights[:count])
                what = f"‖C - C̃‖², {('hidden units', 'logits')[count - 1]}"
                yield Check(1, what, name, "features", bounds.drift(H, H_after), bound, always=2)


def theorem_2(trained: Trained, name: str) -> Iterator[Check]:
    """Norm of the Hessian of the loss on whitened features: with one pattern for all images, the units that are active
    on at least half of them, and with the ReLU."""
    Z, weights = bounds.whitened(trained.Z), trained.heads[name].weights
    bound = bounds.curvature_bound(weights, BETA, GAMMA)
    pattern = (Z @ weights[0] > 0).double().mean(0).ge(0.5).double()
    for patterns, words in (([pattern], "one pattern for all images"), (None, "each image its own pattern")):

        def loss(parameters: Sequence[Tensor], patterns: Sequence[Tensor] | None = patterns) -> Tensor:
            return F.cross_entropy(bounds.layers(Z, parameters, patterns)[-1], trained.labels)

        value = bounds.hessian_norm(loss, weights)
        yield Check(2, f"‖Hessian‖₂, {words}", name, "whitened features", value, bound, assumed=patterns is not None)


def theorem_3(trained: Trained, name: str) -> Iterator[Check]:
    """srank of the hidden layer before its ReLU."""
    W = isometric(trained.heads[name])
    for Z, inputs in ((trained.Z, "features"), (bounds.whitened(trained.Z), "whitened features")):
        bound, value = bounds.srank_bound(Z, W, DELTA), metrics.srank(Z @ W, DELTA)
        yield Check(3, f"srank of {W.shape[1]}", name, inputs, value, math.nan if bound is None else bound, True, 1)


def theorem_4(trained: Trained, name: str) -> Iterator[Check]:
    """Scores of the hidden units: of Gaussian inputs, which the theorem assumes, and of the features."""
    W = isometric(trained.heads[name])
    ratio = bounds.ratio_bound(W) or math.nan
    for found, inputs in (
        (bounds.gaussian_scores(W), "N(0, I)"),
        (bounds.scores(torch.relu(trained.Z @ W)), "features"),
    ):
        gaussian = inputs == "N(0, I)"
        yield Check(4, "smallest score", name, inputs, float(found.min()), 1 / ratio, True, 0, gaussian)
        yield Check(4, "largest score", name, inputs, float(found.max()), ratio, False, W.shape[1], gaussian)


def isometric(head: Head) -> Tensor:
    """The first weight over FIRE's factor, on which Theorems 3 and 4 do not depend."""
    return head.weights[0] / head.factors[0]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m scripts.theorems", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "run", nargs="?", type=command.folder, help="directory of a run of vision, or of a shared phase 0"
    )
    parser.add_argument(
        "--out", type=command.folder, default=Path("outputs/report/theorems.md"), help="default: %(default)s"
    )
    given = parser.parse_args()
    if given.out.suffix != ".md":
        parser.error(f"--out {given.out}: its name must end in .md")
    trained = load(phase_of(given.run))
    command.check_writable(given.out.parent)
    found = checks(trained)
    text = page(trained, found)
    given.out.write_text(text, "utf-8")
    numbers(found).to_csv(given.out.with_suffix(".csv"), index=False)
    print(text)
    print(f"{given.out}, .csv")


def numbers(found: list[Check]) -> pd.DataFrame:
    """The lines with all digits."""
    return pd.DataFrame([{**vars(check), "verdict": check.verdict} for check in found])


def page(trained: Trained, found: list[Check]) -> str:
    """The page: what was measured on what, the table, and what cannot be measured."""
    shown = [
        {
            "theorem": str(check.theorem),
            "network": check.network,
            "inputs": check.inputs,
            "quantity": check.quantity,
            "value": short(check.value),
            "bound": "" if math.isnan(check.bound) else f"{'≥' if check.lower else '≤'} {short(check.bound)}",
            "verdict": check.verdict,
        }
        for check in found
    ]
    verdicts = Counter(check.verdict.split(":")[0] for check in found)
    counts = "; ".join(f"{verdict}: {count}" for verdict, count in verdicts.most_common())
    heads = trained.heads
    curvatures = [[check for check in found if check.theorem == 2 and check.assumed == one] for one in (True, False)]
    one, own = (f"{short(lines[0].value)} to {short(lines[-1].value)}" for lines in curvatures)
    return PAGE.read_text("utf-8").format(
        summary=f"{len(found)} lines. {counts[0].upper()}{counts[1:]}.",
        lines=table(pd.DataFrame(shown)),
        where=trained.where,
        sizes=" and ".join(f"{W.shape[0]} to {W.shape[1]}" for W in heads[BEFORE].weights),
        images=f"{len(trained.Z):,}",
        hidden="; ".join(f"{short(bounds.eps(isometric(head)))} {name}" for name, head in heads.items()),
        bounds=f"{short(curvatures[0][0].bound)} to {short(curvatures[0][-1].bound)}",
        one=one,
        own=own,
        share=100 * (1 - DELTA),
        matrices=heads[BEFORE].matrices,
        covered="; ".join(f"{head.isometric} {name}" for name, head in heads.items()),
        wide=heads[BEFORE].matrices - heads[BEFORE].narrow,
        phase=trained.phase,
    )


def short(number: float) -> str:
    """Three significant digits; a whole number as it is."""
    return str(int(number)) if float(number).is_integer() and abs(number) < 1e6 else compact(number, 3)


if __name__ == "__main__":
    sys.exit(command.run(main))
