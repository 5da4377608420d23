"""Recipes of which something is missing: what is shown of them, and that nothing unfinished enters a number."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scripts.report.__main__ import report, report_all
from scripts.report.figures import curves
from scripts.report.page import figure
from scripts.report.results import load
from scripts.report.tables import by_method, pairs
from tests.conftest import REPOSITORY, numbers, run_dirs

Vision = Callable[..., tuple[int, str]]
GROUP = "warm_start-cifar10-resnet18-smoke"
RECIPE = "experiment=fig2a_cifar10_core"


def stop_after(directory: Path, epoch: int) -> None:
    """Make a finished run one that was stopped after an epoch."""
    (directory / "done").rename(directory / "was-done")
    metrics = directory / "metrics.jsonl"
    metrics.rename(directory / "all-metrics")
    lines = [
        line for line in (directory / "all-metrics").read_text().splitlines() if json.loads(line)["epoch"] <= epoch
    ]
    metrics.write_text("".join(f"{line}\n" for line in lines))


def finish(directory: Path) -> None:
    """Undo that."""
    (directory / "was-done").rename(directory / "done")
    (directory / "all-metrics").rename(directory / "metrics.jsonl")


def test_unfinished_and_missing_runs_are_told(vision: Vision, tmp_path: Path, capsys) -> None:
    vision(RECIPE, "method=none,fire,full_reset", "seed=0")
    directories = {path.name.split("-")[0]: path for path in run_dirs(tmp_path / "outputs")}
    stop_after(directories["full_reset"], 2)  # in phase 0, so that it says nothing of its method
    report("vision", [tmp_path / "outputs"], tmp_path / "before")
    assert f"left out, not finished: {directories['full_reset']}" in capsys.readouterr().out
    assert load(tmp_path / "before" / "fig2a_cifar10_core-smoke.csv").unfinished == {}
    finish(directories["full_reset"])

    stop_after(directories["full_reset"], 4)
    out = tmp_path / "results" / "vision"
    report("vision", [tmp_path / "outputs"], out)
    printed = capsys.readouterr().out
    assert [path.stem for path in out.glob("*.csv")] == ["fig2a_cifar10_core-smoke"]
    told = (
        "This recipe is not complete. Missing: seeds 1, 2 of No reset and FIRE; seeds 0, 1, 2 of Shrink & perturb and "
        "Full reset. Not finished, so drawn and in no table: Full reset, seed 0 (epoch 1 of 2)."
    )
    assert told in printed
    assert "**One seed: there is no interval, so no difference here is a claim.**" in printed
    about = json.loads((out / "fig2a_cifar10_core-smoke.json").read_text())
    assert about["missing"] == {"none": [1, 2], "shrink_perturb": [0, 1, 2], "full_reset": [0, 1, 2], "fire": [1, 2]}
    assert about["unfinished"] == {"full_reset": [0]}

    result = load(out / "fig2a_cifar10_core-smoke.csv")
    assert set(result.data.method) == {"none", "fire", "full_reset"}
    numbers_by_method = by_method(result).set_index("method")
    assert list(numbers_by_method.index) == ["No reset", "FIRE"]
    gap = numbers(directories["fire"])[-1]["test/accuracy"] - numbers(directories["none"])[-1]["test/accuracy"]
    assert float(numbers_by_method["final minus no reset"]["FIRE"]) == pytest.approx(gap, abs=5e-4)
    assert pairs(result).empty
    assert result.seeds == "1"

    canvas = figure(result)
    lines = dict(zip(*reversed(canvas.axes[0].get_legend_handles_labels()), strict=True))
    begun, whole = lines["Full reset (epoch 1 of 2)"], lines["FIRE"]
    assert list(begun.get_xdata()) == [0, 1]  # from the reset on
    assert list(whole.get_xdata())[-1] == 2
    assert (begun.is_dashed(), begun.get_marker(), begun.get_markerfacecolor()) == (True, "o", "white")
    assert (whole.is_dashed(), whole.get_marker()) == (False, "")
    assert "Full reset" not in [label for label in lines if "epoch" not in label]

    report_all(tmp_path / "results")
    page = (tmp_path / "results" / "index.html").read_text()
    assert told.replace("&", "&amp;") in page
    assert "vision: fig2a_cifar10_core (in part)" in (tmp_path / "results" / "summary.md").read_text()

    # All methods in one seed: complete, with seeds that are still missing; nothing else is said.
    finish(directories["full_reset"])
    vision(RECIPE, "method=shrink_perturb", "seed=0")
    report("vision", [tmp_path / "outputs"], tmp_path / "whole")
    printed = capsys.readouterr().out
    assert [path.stem for path in (tmp_path / "whole").glob("*.csv")] == ["fig2a_cifar10_core-smoke"]
    assert "not complete" not in printed
    assert "\nMissing: seeds 1, 2 of No reset and Shrink & perturb and Full reset and FIRE.\n" in printed


def test_command_continues_the_runs_that_are_there(vision: Vision, tmp_path: Path) -> None:
    """In the precision and with the settings they have, so that they count as done."""
    given = ["precision=bf16", "budget.train_images=100", "budget.test_images=20"]
    vision(RECIPE, "method=none,fire", "seed=7", *given)
    report("vision", [tmp_path / "outputs"], tmp_path / "report")
    command = load(tmp_path / "report" / "fig2a_cifar10_core-smoke.csv").command
    settings = "budget.test_images=20 budget.train_images=100"
    start = f"python -m experiments.vision {RECIPE} scale=smoke {settings} seed=0,1,2,7"
    assert command == f"{start} precision=bf16 compile=false threads=1"
    words = [word for word in shlex.split(command)[3:] if not word.startswith("seed=")]
    _, printed = vision(*words, "method=none,fire", "seed=7")
    assert printed.count("done before: ") == 2
    assert len(run_dirs(tmp_path / "outputs")) == 2


def test_a_recipe_is_shown_if_it_is_complete_or_compares(vision: Vision, tmp_path: Path) -> None:
    """Otherwise its runs are with all others of their benchmark and scale."""

    def shown(out: str) -> dict[str, int]:
        report("vision", [tmp_path / "outputs"], tmp_path / out)
        paths = (tmp_path / out).glob("*.csv")
        return {path.stem: len(pd.read_csv(path)[["method", "seed"]].drop_duplicates()) for path in paths}

    vision(RECIPE, "method=fire,full_reset", "seed=0")
    assert shown("no reset is missing") == {GROUP: 2}
    vision(RECIPE, "method=none", "seed=1")
    assert shown("none has no seed with another") == {GROUP: 3}
    vision("experiment=scale_factor", "method=none", "seed=0")  # of another recipe, though it is the same run
    assert shown("another recipe's") == {GROUP: 4}
    for directory in run_dirs(tmp_path / "outputs"):  # a recipe of two methods, of which none is no reset
        sweep = {"seed": "range(0,2)", "method": "fire,full_reset"}
        (directory / "recipes" / "mine.json").write_text(json.dumps(sweep))
    assert shown("complete") == {"mine-smoke": 4}
    assert load(tmp_path / "complete" / "mine-smoke.csv").missing == {"fire": [1], "full_reset": [1]}


def test_machines_are_not_pooled(vision: Vision, tmp_path: Path) -> None:
    vision(RECIPE, "method=none,fire", "seed=0,1")
    for directory in run_dirs(tmp_path / "outputs"):
        if "-s1-" in directory.name:
            info = json.loads((directory / "run.json").read_text())
            (directory / "run.json").write_text(json.dumps(info | {"machine": "there", "branched_from": []}))
    report("vision", [tmp_path / "outputs"], tmp_path / "report")
    there = load(tmp_path / "report" / "fig2a_cifar10_core-smoke-machine=there.csv")
    assert (there.first.machine, there.seeds, there.changed) == ("there", "1", "machine=there")
    assert there.missing["fire"] == [0, 2]
    assert len(list((tmp_path / "report").glob("*.csv"))) == 2


def test_the_papers_curves_lie_over_ours() -> None:
    """Those of its methods, dotted: two of them are its final values alone, as lines across."""
    result = load(REPOSITORY / "results/vision/fig2a_cifar10-paper.csv")
    canvas = figure(result)
    (axes,) = canvas.axes
    published = pd.read_csv(REPOSITORY / "results/paper/figures.csv").query("panel == 'warm_cifar10_resnet18'")
    dotted = {
        line.get_color(): line.get_ydata()
        for line in axes.lines
        if line.get_linestyle() == ":" and len(line.get_ydata())
    }
    for colour, method in (("#000000", "Base"), ("#56B4E9", "Full"), ("#D55E00", "FIRE"), ("#E69F00", "S&P")):
        assert list(dotted[colour]) == list(published[published.method == method].sort_values("x").y)
    assert axes.get_title().startswith("ours, scale=paper, 1 seed\n")
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["No reset", "FIRE", "Full reset (epoch 67 of 100)", "Shrink & perturb (the paper only)"]
    low, high = axes.get_ylim()
    assert 0.7 < low < published.y[published.method == "Base"].min()  # not from chance on
    assert high > published.y[published.method == "Full"].max()


@pytest.mark.parametrize(
    "name", ["language/fig3_60k", "atari/fig4a_asterix", "humanoid/fig4b_walk", "vision/fig2b_cifar10_core"]
)
def test_the_papers_curves_are_in_sight_in_every_domain(name: str) -> None:
    """With numbers of ours that are far from them."""
    result = load(REPOSITORY / f"results/{name}-laptop.csv")
    canvas = curves(replace(result, data=result.data.assign(scale="paper")))
    axes = canvas.axes[0]
    dotted = [line for line in axes.lines if line.get_linestyle() == ":" and len(line.get_ydata()) > 2]
    assert len(dotted) >= 3
    heights = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in dotted])
    low, high = axes.get_ylim()
    assert low < heights.min()
    assert heights.max() < high
