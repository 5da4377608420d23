"""A result as Markdown, and all results as one page that needs nothing but itself."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

import fire
from experiments.common.config import CONFIGS, recipes
from experiments.domains import NAMES
from scripts.report.figures import curves, svg
from scripts.report.methods import METHODS
from scripts.report.points import points
from scripts.report.results import Result
from scripts.report.tables import by_method, pairs, paper_finals, pooled, without_empty
from scripts.report.views import VIEWS

ANY_BENCHMARK = ("fig3", "fig4a", "fig4b")  # recipes of which others choose the checkpoint, the game or the task
SCALES = ("laptop", "workstation", "paper")
# What the paper shows and no recipe here does yet.
WITHOUT_A_RECIPE = (
    "Figure 2(a, b) on CIFAR-100 with ViT-Tiny and on TinyImageNet with VGG-16",
    "Figure 2(c), class-incremental learning",
    "the baselines DASH, Parseval regularisation, L2 init, CBP, ReDo, SNR and Muon, in Figures 2 and 5(b)",
    "Figures 6 and 7 and Table 1 of the appendix (for cost, see results/benchmark)",
)


def figure(result: Result) -> Figure:
    """The picture of a result."""
    view = VIEWS.get(result.about.recipe)
    return points(result, view) if view else curves(result)


def markdown(result: Result) -> str:
    """Tables and circumstances of a result."""
    lacks, about = result.lacks(), result.about
    command = "Command, which also runs what is missing" if lacks else "Command"
    numbers, gaps = (table.to_markdown(index=False, disable_numparse=True) for table in (by_method(result), pairs(result)))
    paragraphs = [
        f"# {result.first.domain}: {result.title}",
        *(f"**{warning}**" for warning in result.warnings()),
        lacks,
        numbers,
        f"{result.spec.title.capitalize()}: mean over seeds ± half width of the 95 % t-interval. Differences are "
        "paired by seed: all methods of a seed continue from the same phase 0.",
        gaps,
        "**Methods have different numbers of seeds**: compare by the paired differences." if "to" in result.seeds else "",
        f"Settings: {result.settings}." if result.settings else "",
        f"{command}: `{result.command}`" if about.recipe else "",
        ", ".join(f"{key}: {value}" for key, value in result.circumstances.items()) + ".",
        f"Commits: {', '.join(about.commits)}.",
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def page(results: Sequence[Result], folder: Path) -> str:
    """The page's HTML, with what is written about the results in `folder`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    domains = []
    for name in NAMES:
        own = [result for result in results if result.first.domain == name]
        domains.append((name, [section(result, folder) for result in own], together(own)))
    return environment.get_template("page.html").render(
        methods=[METHODS[method] for method in METHODS if method in fire.METHODS],  # no variants
        summary=summary(results), domains=domains, coverage=coverage(results), without=WITHOUT_A_RECIPE,
    )  # fmt: skip


def section(result: Result, folder: Path) -> dict[str, Any]:
    """What the template shows of a result."""
    findings = folder / result.first.domain / f"{result.title}.findings.md"
    facts = {"scale": result.first.scale, "seeds": result.seeds, **result.circumstances}
    facts["commit"] = ", ".join(commit[:10] for commit in result.about.commits)
    return {
        "title": result.title,
        "about": description(result.first.domain, result.about.recipe),
        "warnings": result.warnings(),
        "lacks": result.lacks(),
        "facts": facts | ({"settings": result.settings} if result.settings else {}),
        "command": result.command,
        "figure": base64.b64encode(svg(figure(result)).encode()).decode(),
        "findings": MarkdownIt().render(findings.read_text()) if findings.exists() else "",
        "table": by_method(result),
        "pairs": pairs(result),
    }


def together(results: Sequence[Result]) -> list[tuple[str, pd.DataFrame]]:
    """Pooled numbers of a domain's games or tasks, for each scale and machine that has several."""
    alike: dict[str, list[Result]] = {}
    for result in results:
        if result.spec.normalised and result.about.recipe not in ("", *VIEWS):
            where = f"scale={result.first.scale}, {result.first.machine}"
            alike.setdefault(where + (f", {result.settings}" if result.settings else ""), []).append(result)
    tables = {where: pooled(tasks) for where, tasks in sorted(alike.items())}
    return [(where, table) for where, table in tables.items() if len(table)]


def summary(results: Sequence[Result]) -> pd.DataFrame:
    """One line for each method of each result."""
    columns = ["method", "seeds", "final", "final minus no reset", "paper's final (scale=paper)", "against the paper"]
    parts = []
    for result in results:
        part = by_method(result).reindex(columns=columns, fill_value="")
        part.insert(0, "domain", result.first.domain)
        part.insert(1, "recipe", result.about.recipe or result.title)
        parts.append(part.assign(scale=result.first.scale, machine=result.first.machine))
    return pd.concat(parts, ignore_index=True)


def headline(results: Sequence[Result]) -> pd.DataFrame:
    """The final values in the recipes that are about methods alone, and FIRE's gain beside the paper's."""
    lines = []
    for result in results:
        if result.about.recipe in VIEWS:
            continue
        numbers, published = by_method(result).set_index("method"), paper_finals(result)
        line = {"": f"{result.first.domain}: {result.about.recipe or result.title}", "scale": result.first.scale}
        line[""] += "" if result.is_complete else " (in part)"
        line["seeds"] = result.seeds
        line |= {shown.name: numbers.final.get(shown.name, "") for shown in METHODS.values()}
        if "final minus no reset" in numbers:  # there are runs without a reset, of the same seeds
            line["FIRE minus no reset"] = numbers["final minus no reset"].get("FIRE", "")
        if "fire" in published.index:
            fire, none = published.loc["fire"], published.loc["none"]
            about = "~" if "yes" in (fire.approximate, none.approximate) else ""
            decimals = result.spec.decimals if result.spec.decimals > 1 else 0
            line["in the paper"] = f"{about}{fire.final - none.final:+.{decimals}f}"
        lines.append(line)
    return without_empty(pd.DataFrame(lines))


def coverage(results: Sequence[Result]) -> pd.DataFrame:
    """Which recipes were run at which scale, with how many seeds, and which were not."""
    lines = []
    for domain in NAMES:
        scales = [path.stem for path in (CONFIGS / domain / "scale").glob("*.yaml")]
        for recipe in (recipe for recipe in recipes(domain) if recipe not in ANY_BENCHMARK):
            line = {"domain": domain, "recipe": recipe, "what": description(domain, recipe)}
            for scale in SCALES:
                own = [
                    amount(result)
                    for result in results
                    if (result.first.domain, result.about.recipe, result.first.scale) == (domain, recipe, scale)
                ]
                line[scale] = (" / ".join(own) or "not run") if scale in scales else ""
            lines.append(line)
    return pd.DataFrame(lines)


def amount(result: Result) -> str:
    """How much of a recipe was run."""
    seeds = f"{result.seeds} seed{'' if result.seeds == '1' else 's'}"
    if result.is_complete:
        return seeds
    there = result.finished.method.nunique()
    return f"{there} of {len({*result.about.missing, *result.data.method})} methods, {seeds}"


def description(domain: str, recipe: str) -> str:
    """The comment a recipe's file begins with."""
    files = (CONFIGS / root / "experiment" / f"{recipe}.yaml" for root in (domain, "shared"))
    for file in filter(Path.exists, files):
        comment = file.read_text().split("\n\n")[0].split("\nhydra:")[0]
        return " ".join(re.findall(r"^# (?!@)(.*)$", comment, re.MULTILINE))
    return ""
