"""What is in `results/`: made anew from its CSVs it is the same, and the page needs nothing but itself."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments.common.config import recipes
from experiments.domains import NAMES
from scripts.report.page import html
from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "results"
ANY_BENCHMARK = ("fig3", "fig4a", "fig4b")  # recipes of which others choose the checkpoint, the game or the task
TABLES = [path.with_suffix("") for name in NAMES for path in sorted((RESULTS / name).glob("*.json"))]


def without_figures(page: str) -> str:
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", page)


@pytest.fixture(scope="module")
def made_anew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the results, with everything made again."""
    folder = tmp_path_factory.mktemp("results")
    shutil.copytree(RESULTS, folder, dirs_exist_ok=True)
    tables = [folder / path.relative_to(RESULTS) for path in TABLES]
    for made in (
        folder / "index.html",
        folder / "summary.md",
        *(Path(f"{t}.{e}") for t in tables for e in ("md", "png")),
    ):
        made.unlink()
    subprocess.run([sys.executable, "-m", "scripts.report", "--out", str(folder)], cwd=REPOSITORY, check=True)
    return folder


@pytest.mark.parametrize("title", [str(path.relative_to(RESULTS)) for path in TABLES])
def test_tables_are_those_of_the_csvs(title: str, made_anew: Path) -> None:
    assert (made_anew / f"{title}.md").read_text() == (RESULTS / f"{title}.md").read_text()
    assert (made_anew / f"{title}.png").stat().st_size > 20_000


def test_page_is_that_of_the_csvs(made_anew: Path) -> None:
    committed, anew = (without_figures((folder / "index.html").read_text()) for folder in (RESULTS, made_anew))
    assert anew == committed
    assert (made_anew / "summary.md").read_text() == (RESULTS / "summary.md").read_text()


def interval(text: str) -> set[tuple[str, str]]:
    """Every "a ± b" of a text, or "a and b ± c", without signs and leading zeros."""
    found = re.findall(r"([\d.,]*\d) ± ([\d.]*\d)", " ".join(text.split()))
    return {tuple(number.replace(",", "").lstrip("0") or "0" for number in pair) for pair in found}  # type: ignore[misc]


@pytest.mark.parametrize("domain", NAMES)
def test_intervals_in_findings_are_those_of_the_tables(domain: str) -> None:
    known = set().union(*(interval(path.with_suffix(".md").read_text()) for path in TABLES if path.parts[-2] == domain))
    for findings in sorted((RESULTS / domain).glob("*.findings.md")):
        unknown = interval(findings.read_text()) - known
        assert not unknown, f"{findings.name}: in no table of {domain}: {unknown}"


@pytest.mark.parametrize("page", ["README.md", "results/isometry_or_norm.md"])
def test_intervals_of_pages_are_those_of_the_tables(page: str) -> None:
    known = set().union(*(interval(path.with_suffix(".md").read_text()) for path in TABLES))
    assert not interval((REPOSITORY / page).read_text()) - known


def test_html_in_findings_is_text() -> None:
    assert html("<script>x</script> <img src=x onerror=y>\n") == (
        "<p>&lt;script&gt;x&lt;/script&gt; &lt;img src=x onerror=y&gt;</p>\n"
    )


def test_page_holds_every_number_and_names_what_was_not_run() -> None:
    page = (RESULTS / "index.html").read_text()
    assert len(re.findall(r'<img [^>]*src="data:image/svg\+xml;base64,[A-Za-z0-9+/=]{10000,}"', page)) == len(TABLES)
    outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page)
    assert outside == []  # opens from disk, without a network
    tables = pd.read_html(io.StringIO(without_figures(page)))
    by_method = [table for table in tables if "method" in table.columns and "seeds" in table.columns]
    assert len(by_method) == len(TABLES)
    ran = set()
    for path, table in zip(TABLES, by_method, strict=True):
        data, about = pd.read_csv(Path(f"{path}.csv")), json.loads(Path(f"{path}.json").read_text())
        unfinished = {(method, seed) for method, seeds in about["unfinished"].items() for seed in seeds}
        data = data[[pair not in unfinished for pair in zip(data.method, data.seed, strict=True)]]
        assert len(table) == data.method.nunique()
        assert sorted(table.seeds) == sorted(data.groupby("method").seed.nunique())
        assert f"machine: {data.machine.iloc[0]}, " in page
        ran.add((path.parent.name, about["recipe"]))
    absent = [line.split(", ") for line in re.findall(r"Recipes without results: (.*)\.</p>", page)]
    known = [[(name, recipe) for recipe in recipes(name) if recipe not in ANY_BENCHMARK] for name in NAMES]
    expected = [[recipe for name, recipe in one if (name, recipe) not in ran] for one in known]
    assert absent == [one for one in expected if one]
    overview = tables[0].set_index(tables[0].columns[0])
    (part,) = overview.index[overview.index.str.endswith("(in part)")]
    assert part == "vision: fig2a_cifar10 (in part)"
    assert overview.loc[part, "scale"] == "paper"
