"""All results as one page that needs nothing but itself."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt

from experiments.common.config import CONFIGS, recipes
from scripts.report.domains import DOMAINS, METHODS
from scripts.report.figures import svg
from scripts.report.recipes import GENERIC
from scripts.report.results import Result
from scripts.report.tables import paper_finals, pooled
from scripts.report.views import VIEWS

# What the paper shows and no recipe here does yet.
WITHOUT_A_RECIPE = (
    "Figure 2(a, b) on CIFAR-100 with ViT-Tiny and on TinyImageNet with VGG-16",
    "Figure 2(c), class-incremental learning",
    "the baselines DASH, Parseval regularisation, L2 init, CBP, ReDo, SNR and Muon, in Figures 2 and 5(b)",
    "Figures 6 and 7 and Table 1 of the appendix (for cost, see results/benchmark)",
)


def page(results: Sequence[Result], folder: Path) -> str:
    """The page's HTML, with what is written about the results in `folder`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        methods=[(label, colour) for label, colour, _ in METHODS.values()],
        summary=summary(results),
        domains=[
            (name, [section(result, folder) for result in own], together(own))
            for name in DOMAINS
            for own in [[result for result in results if result.domain.name == name]]
        ],
        coverage=coverage(results),
        without=WITHOUT_A_RECIPE,
    )


def section(result: Result, folder: Path) -> dict[str, Any]:
    """What the template shows of a result."""
    findings = folder / result.domain.name / f"{result.title}.findings.md"
    return {
        "title": result.title,
        "about": description(result.domain.name, result.about.recipe),
        "warnings": result.warnings(),
        "missing": result.missing(),
        "facts": [
            ("scale", result.scale), ("seeds", result.seeds), *result.circumstances.items(),
            ("commit", ", ".join(c[:10] for c in result.about.commits)),
            *([("settings", result.about.difference)] if result.about.difference else []),
        ],
        "command": result.command,
        "figure": base64.b64encode(svg(result.figure()).encode()).decode(),
        "findings": MarkdownIt().render(findings.read_text()) if findings.exists() else "",
        "table": result.table(),
        "pairs": result.pairs(),
    }  # fmt: skip


def together(results: Sequence[Result]) -> list[tuple[str, pd.DataFrame]]:
    """Pooled numbers of a domain's games or tasks, for each scale and machine that has several."""
    if not results or not results[0].domain.normalised:
        return []
    named = [result for result in results if result.about.recipe not in ("", *VIEWS) and not result.about.difference]
    found = []
    for scale, machine in sorted({(result.scale, result.machine) for result in named}):
        tasks = [result.finished for result in named if (result.scale, result.machine) == (scale, machine)]
        numbers = pooled(tasks, results[0].domain)
        if len(numbers):
            found.append((f"scale={scale}, {machine}", numbers))
    return found


def summary(results: Sequence[Result]) -> pd.DataFrame:
    """One line for each method of each result."""
    parts = []
    for result in results:
        numbers = result.table()
        part = numbers.reindex(
            columns=[
                "method",
                "seeds",
                "final",
                "final minus no reset",
                "paper's final (scale=paper)",
                "against the paper",
            ],
            fill_value="",
        )
        part.insert(0, "domain", result.domain.name)
        part.insert(1, "recipe", result.about.recipe or result.title)
        part["scale"], part["machine"] = result.scale, result.machine
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def headline(results: Sequence[Result]) -> pd.DataFrame:
    """The final values in the recipes that are about methods alone, and FIRE's gain beside the paper's."""
    lines = []
    for result in results:
        if result.about.recipe in VIEWS:
            continue
        numbers = result.table().set_index("method")
        published = paper_finals(result.domain, result.data.benchmark.iloc[0])
        line = {"": f"{result.domain.name}: {result.about.recipe or result.title}", "scale": result.scale}
        line[""] += "" if result.is_complete else " (in part)"
        line["seeds"] = result.seeds
        line |= {label: numbers.final.get(label, "") for label, _, _ in METHODS.values()}
        fire = METHODS["fire"][0]
        if "final minus no reset" in numbers:  # there are runs without a reset, of the same seeds
            line["FIRE minus no reset"] = numbers["final minus no reset"].get(fire, "")
        if "fire" in published:
            about = published["fire"].approximate or published["none"].approximate
            theirs = published["fire"] - published["none"]
            decimals = result.domain.decimals if result.domain.decimals > 1 else 0
            line["in the paper"] = f"{'~' if about else ''}{theirs:+.{decimals}f}"
        lines.append(line)
    columns = pd.DataFrame(lines).fillna("")
    return columns.loc[:, (columns != "").any()]


def coverage(results: Sequence[Result]) -> pd.DataFrame:
    """Which recipes were run at which scale, with how many seeds; what was not is said."""
    lines = []
    for domain in DOMAINS:
        for recipe in recipes(domain):
            if recipe in GENERIC:
                continue
            line = {"domain": domain, "recipe": recipe, "what": description(domain, recipe)}
            scales = [path.stem for path in sorted((CONFIGS / domain / "scale").glob("*.yaml")) if path.stem != "smoke"]
            for scale in ("laptop", "workstation", "paper"):
                own = [r for r in results if (r.domain.name, r.about.recipe, r.scale) == (domain, recipe, scale)]
                run = " / ".join(amount(result) for result in own) or "not run"
                line[scale] = run if scale in scales else ""
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
    for root in (domain, "shared"):
        file = CONFIGS / root / "experiment" / f"{recipe}.yaml"
        if recipe and file.exists():
            lines = re.findall(r"^# (?!@)(.*)$", file.read_text().split("\n\n")[0].split("\nhydra:")[0], re.MULTILINE)
            return " ".join(lines)
    return ""
