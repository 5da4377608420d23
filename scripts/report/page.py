"""A result as Markdown, and all results as one page that needs nothing but itself."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

import fire
from experiments.common.config import CONFIGS, recipes
from experiments.domains import NAMES
from scripts.report.figures import curves, svg
from scripts.report.methods import METHODS, name
from scripts.report.points import points
from scripts.report.results import Result
from scripts.report.tables import by_method, pairs, paper_finals, pooled, without_empty
from scripts.report.views import VIEWS

ANY_BENCHMARK = ("fig3", "fig4a", "fig4b")  # recipes of which others choose the checkpoint, the game or the task
SCALES = ("laptop", "workstation", "paper")


def figure(result: Result) -> Figure:
    """The picture of a result."""
    view = VIEWS.get(result.about.recipe)
    return points(result, view) if view else curves(result)


def table(frame: pd.DataFrame) -> str:
    """A table as Markdown."""
    return frame.to_markdown(index=False, disable_numparse=True)


def markdown(result: Result) -> str:
    """Tables and circumstances of a result."""
    lacks, gaps, warning = missing(result), pairs(result), result.spec.warning
    alone = result.seeds == "1" and result.finished.method.nunique() > 1
    paragraphs = [
        f"**{warning.capitalize()}; for the paper's protocol add scale=paper.**"
        if warning and result.first.scale != "paper"
        else "",
        "**One seed: there is no interval, so no difference here is a claim.**" * alone,
        lacks,
        table(by_method(result)),
        f"{result.spec.title.capitalize()}: mean over seeds ± half width of the 95 % t-interval. Differences are "
        "paired by seed: methods that do not act in phase 0 continue from the same one.",
        table(gaps) if len(gaps) else "",
        "**Methods have different numbers of seeds**: compare by the paired differences." * ("to" in result.seeds),
        f"Settings: {result.settings}." if result.settings else "",
        f"Command{', which also runs what is missing' if lacks else ''}: `{result.command}`" if result.command else "",
        ", ".join(f"{key}: {value}" for key, value in result.circumstances.items()) + ".",
        f"Commits: {', '.join(result.about.commits)}.",
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def missing(result: Result) -> str:
    """What of the recipe has not finished, in a few sentences; empty if all has."""

    def numbered(seeds: Sequence[int]) -> str:
        return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"

    by_seeds: dict[str, list[str]] = {}
    for method, seeds in result.about.missing.items():
        by_seeds.setdefault(numbered(seeds), []).append(name(method))
    groups = "; ".join(f"{seeds} of {' and '.join(methods)}" for seeds, methods in by_seeds.items())
    begun = [(method, seed) for method, seeds in result.about.unfinished.items() for seed in seeds]
    curves = [f"{name(method)}, {numbered([seed])} ({result.progress(method, seed)})" for method, seed in begun]
    sentences = [
        "This recipe is not complete." if groups and not result.is_complete else "",
        f"Missing: {groups}." if groups else "",
        f"Not finished, so drawn and in no table: {'; '.join(curves)}." if curves else "",
    ]
    return " ".join(filter(None, sentences))


def page(results: Sequence[Result], folder: Path) -> str:
    """The page's HTML, with what is written about the results in `folder`."""
    html = MarkdownIt().enable("table").render
    domains = []
    for domain in NAMES:
        sections = []
        own = [result for result in results if result.first.domain == domain]
        for result in own:
            findings = folder / domain / f"{result.title}.findings.md"
            text = findings.read_text() if findings.exists() else ""
            picture = base64.b64encode(svg(figure(result)).encode()).decode()
            about = description(domain, result.about.recipe)
            sections.append((result.title, about, picture, html(text), html(markdown(result))))
        domains.append((domain, sections, [(where, html(table(numbers))) for where, numbers in together(own)]))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        methods=[METHODS[method] for method in METHODS if method in fire.METHODS],  # no variants
        domains=domains, headline=html(table(headline(results))), coverage=html(table(coverage(results))),
    )  # fmt: skip


def together(results: Sequence[Result]) -> list[tuple[str, pd.DataFrame]]:
    """Pooled numbers of a domain's games or tasks, for each scale, machine and choice of settings that has several."""
    alike: dict[str, list[Result]] = {}
    for result in results:
        if result.spec.normalised and result.about.recipe not in ("", *VIEWS):
            where = f"scale={result.first.scale}, {result.first.machine}"
            alike.setdefault(where + (f", {result.settings}" if result.settings else ""), []).append(result)
    tables = {where: pooled(tasks) for where, tasks in sorted(alike.items())}
    return [(where, numbers) for where, numbers in tables.items() if len(numbers)]


def headline(results: Sequence[Result]) -> pd.DataFrame:
    """The final values in the recipes that are about methods alone, and FIRE's gain beside the paper's."""
    lines = []
    for result in (result for result in results if result.about.recipe not in VIEWS):
        numbers, published = by_method(result).set_index("method"), paper_finals(result)
        line = {"": f"{result.first.domain}: {result.about.recipe or result.title}", "scale": result.first.scale}
        line[""] += "" if result.is_complete else " (in part)"
        line["seeds"] = result.seeds
        line |= {shown.name: numbers.final.get(shown.name, "") for shown in METHODS.values()}
        if "final minus no reset" in numbers:  # there are runs without a reset, of the same seeds
            line["FIRE minus no reset"] = numbers["final minus no reset"].get("FIRE", "")
        if "fire" in published.index:
            ours, none = published.loc["fire"], published.loc["none"]
            about = "~" if "yes" in (ours.approximate, none.approximate) else ""
            decimals = result.spec.decimals if result.spec.decimals > 1 else 0
            line["in the paper"] = f"{about}{ours.final - none.final:+.{decimals}f}"
        lines.append(line)
    return without_empty(pd.DataFrame(lines))


def coverage(results: Sequence[Result]) -> pd.DataFrame:
    """Which recipes were run at which scale, with how many seeds, and which were not."""
    known: dict[tuple[str, str, str], list[str]] = {}
    for result in results:
        known.setdefault((result.first.domain, result.about.recipe, result.first.scale), []).append(amount(result))
    lines = []
    for domain in NAMES:
        for recipe in (recipe for recipe in recipes(domain) if recipe not in ANY_BENCHMARK):
            line = {"domain": domain, "recipe": recipe, "what": description(domain, recipe)}
            for scale in SCALES:
                exists = (CONFIGS / domain / "scale" / f"{scale}.yaml").exists()
                line[scale] = " / ".join(known.get((domain, recipe, scale), ["not run"] if exists else []))
            lines.append(line)
    return pd.DataFrame(lines)


def amount(result: Result) -> str:
    """How much of a recipe was run."""
    seeds = f"{result.seeds} seed{'' if result.seeds == '1' else 's'}"
    of = len({*result.about.missing, *result.data.method})
    return seeds if result.is_complete else f"{result.finished.method.nunique()} of {of} methods, {seeds}"


def description(domain: str, recipe: str) -> str:
    """The comment a recipe's file begins with."""
    for root in (domain, "shared"):
        file = CONFIGS / root / "experiment" / f"{recipe}.yaml"
        if file.exists():
            comment = file.read_text().split("\n\n")[0].split("\nhydra:")[0]
            return " ".join(re.findall(r"^# (?!@)(.*)$", comment, re.MULTILINE))
    return ""
