"""A result as Markdown, and all results as one page that needs nothing but itself."""

import base64
import io
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

import fire
from experiments.common.config import CONFIGS, recipes
from experiments.domains import NAMES
from scripts.report.figures import curves
from scripts.report.methods import METHODS, VIEWS, name
from scripts.report.points import points
from scripts.report.pooled import as_text, drawing, pools
from scripts.report.results import Result
from scripts.report.tables import by_method, pairs, paper_finals, without_empty

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=select_autoescape(["html"]),
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip

html = MarkdownIt(options_update={"html": False}).enable("table").render
"""Markdown as HTML; HTML in it is shown, not interpreted."""
# Those that the paper has in several domains.
IN_HEADLINE = ("none", "shrink_perturb", "full_reset", "plasticity_injection", "fire")


def figure(result: Result) -> Figure:
    """The picture of a result."""
    return points(result) if result.recipe in VIEWS else curves(result)


def table(frame: pd.DataFrame) -> str:
    """A table as Markdown; empty for an empty one."""
    return frame.to_markdown(index=False, disable_numparse=True) if len(frame) else ""


def markdown(result: Result) -> str:
    """Tables and circumstances of a result."""
    return TEMPLATES.get_template("result.md").render(
        result=result, missing=missing(result), numbers=table(by_method(result)), pairs=table(pairs(result))
    )


def missing(result: Result) -> str:
    """What of the recipe has not finished, in a few sentences; empty if all has."""
    methods: dict[str, list[str]] = {}  # by the seeds that they lack
    for method, seeds in result.missing.items():
        words = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        methods.setdefault(words, []).append(name(method))
    groups = "; ".join(f"{seeds} of {' and '.join(lacking)}" for seeds, lacking in methods.items())
    begun = [f"{name(method)}, seed {seed} ({result.progress(method, seed)})" for method, seed in result.under_way]
    sentences = [
        "This recipe is not complete." if groups and not result.is_complete else "",
        f"Missing: {groups}." if groups else "",
        f"Not finished, so drawn and in no table: {'; '.join(begun)}." if begun else "",
    ]
    return " ".join(filter(None, sentences))


def page(results: Sequence[Result], folder: Path) -> str:
    """The page's HTML, with what is written about the results in `folder`."""
    domains = []
    for domain in NAMES:
        own, sections = [result for result in results if result.first.domain == domain], []
        for result in own:
            findings = folder / domain / f"{result.title}.findings.md"
            text = html(findings.read_text("utf-8")) if findings.exists() else ""
            about = description(domain, result.recipe)
            sections.append((result.title, about, svg(figure(result)), text, html(markdown(result))))
        ran = [result.recipe for result in own]
        # Recipes such as fig4a only hold what fig4a_asterix and others share; a `_core` is a part of its recipe.
        others = [recipe for recipe in ran if not recipe.endswith("_core")]
        absent = [r for r in recipes(domain) if r not in ran and not any(other.startswith(f"{r}_") for other in others)]
        together = []
        for where, numbers in pools(own):
            picture = drawing(numbers)
            together.append((where, svg(picture) if picture else "", html(table(as_text(numbers)))))
        domains.append((domain, sections, together, absent))
    methods = [METHODS[method] for method in METHODS if method in fire.METHODS]  # no variants
    overview = html(table(headline(results)))
    return TEMPLATES.get_template("page.html").render(methods=methods, domains=domains, headline=overview)


def svg(canvas: Figure) -> str:
    """A figure as base64, for an HTML page."""
    file = io.BytesIO()
    canvas.savefig(file, format="svg", metadata={"Date": None})
    return base64.b64encode(file.getvalue()).decode()


def headline(results: Sequence[Result]) -> pd.DataFrame:
    """The final values in the recipes that are about methods alone, and FIRE's gain beside the paper's."""
    lines = []
    for result in (result for result in results if result.recipe not in VIEWS):
        numbers, published = by_method(result).set_index("method"), paper_finals(result)
        in_part = "" if result.is_complete else " (in part)"
        line = {
            "": f"{result.first.domain}: {result.recipe or result.title}{in_part}",
            "scale": result.first.scale,
            "seeds": result.seeds,
            **{METHODS[method].name: numbers.final.get(METHODS[method].name, "") for method in IN_HEADLINE},
        }
        if "final minus no reset" in numbers:  # there are runs without a reset, of the same seeds
            line["FIRE minus no reset"] = numbers["final minus no reset"].get("FIRE", "")
        line["in the paper"] = published.gain.get("fire", "")
        lines.append(line)
    return without_empty(pd.DataFrame(lines))


def description(domain: str, recipe: str) -> str:
    """The comment a recipe's file begins with."""
    for root in (domain, "shared"):
        file = CONFIGS / root / "experiment" / f"{recipe}.yaml"
        if file.exists():
            comment = takewhile(
                lambda line: line.startswith("# "), file.read_text("utf-8").splitlines()[1:]
            )  # after @package
            return " ".join(line.removeprefix("# ") for line in comment)
    return ""
