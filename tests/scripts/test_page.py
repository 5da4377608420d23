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
from scripts.report.domains import DOMAINS
from scripts.report.recipes import GENERIC
from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "results"
TABLES = sorted(path.with_suffix("") for name in DOMAINS for path in (RESULTS / name).glob("*.json"))


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


def test_page_holds_every_number_and_names_what_was_not_run() -> None:
    page = (RESULTS / "index.html").read_text()
    assert len(re.findall(r'<img [^>]*src="data:image/svg\+xml;base64,[A-Za-z0-9+/=]{10000,}"', page)) == len(TABLES)
    outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page)
    assert outside == []  # opens from disk, without a network
    tables = pd.read_html(io.StringIO(without_figures(page)))
    summary = next(table for table in tables if "machine" in table.columns)
    ran = set()
    for path in TABLES:
        data, about = pd.read_csv(Path(f"{path}.csv")), json.loads(Path(f"{path}.json").read_text())
        begun = {(one["method"], one["seed"]) for one in about.get("unfinished", [])}
        data = data[[pair not in begun for pair in zip(data.method, data.seed, strict=True)]]
        scale = data.scale.iloc[0]
        own = (summary.recipe == about["recipe"]) & (summary.domain == path.parent.name) & (summary.scale == scale)
        lines = summary[own]
        assert len(lines) == data.method.nunique()
        assert (lines.machine == data.machine.iloc[0]).all()
        assert sorted(lines.seeds) == sorted(data.groupby("method").seed.nunique())
        ran.add((path.parent.name, about["recipe"], scale))
    coverage = next(table for table in tables if "what" in table.columns)
    known = {(domain, recipe) for domain in DOMAINS for recipe in recipes(domain) if recipe not in GENERIC}
    assert set(zip(coverage.domain, coverage.recipe, strict=True)) == known
    scales = ("laptop", "workstation", "paper")
    told = {
        (row["domain"], row["recipe"], s)
        for row in coverage.to_dict("records")
        for s in scales
        if "seed" in str(row[s])
    }
    assert told == ran
    (part,) = coverage[coverage.recipe == "fig2a_cifar10"].paper
    assert part == "2 of 4 methods, 1 seed"
