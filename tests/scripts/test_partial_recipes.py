"""Recipes of which something is missing: what is shown of them, and that nothing unfinished enters a number."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from experiments.common.config import compose_domain, digest, identity_values, resolve_runtime
from experiments.vision.config import VisionConfig
from experiments.vision.train import PHASE_VERSION
from scripts.report.__main__ import report, report_all
from scripts.report.domains import DOMAINS
from scripts.report.figures import curves
from scripts.report.recipes import Recipe, composed, recipes_at, shown
from scripts.report.results import load
from scripts.report.runs import Run
from tests.conftest import REPOSITORY, numbers, run_dirs

Vision = Callable[..., tuple[int, str]]
ON = ("benchmark=warm_start",)


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
    vision("-m", "method=none,fire,full_reset")
    directories = {path.name.split("-")[0]: path for path in run_dirs(tmp_path / "outputs")}
    stop_after(directories["full_reset"], 2)  # in phase 0, so that it says nothing of its method
    report(DOMAINS["vision"], [tmp_path / "outputs"], tmp_path / "before")
    assert f"left out, not finished: {directories['full_reset']}" in capsys.readouterr().out
    assert load(tmp_path / "before" / "fig2a_cifar10-smoke.csv").about.unfinished == []
    finish(directories["full_reset"])

    stop_after(directories["full_reset"], 4)
    out = tmp_path / "results" / "vision"
    report(DOMAINS["vision"], [tmp_path / "outputs"], out)
    printed = capsys.readouterr().out
    # Of the recipes that have these methods one is shown.
    assert [path.stem for path in out.glob("*.csv")] == ["fig2a_cifar10-smoke"]
    told = (
        "This recipe is not complete. Missing: No reset, FIRE (seeds 1, 2); Shrink & perturb, Full reset "
        "(seeds 0, 1, 2). Not finished, so drawn and in no table: Full reset, seed 0 (epoch 1 of 2)."
    )
    assert told in printed
    assert "**One seed: there is no interval, so no difference here is a claim.**" in printed
    about = json.loads((out / "fig2a_cifar10-smoke.json").read_text())
    assert about["missing"] == {"none": [1, 2], "shrink_perturb": [0, 1, 2], "full_reset": [0, 1, 2], "fire": [1, 2]}
    assert about["unfinished"] == [{"method": "full_reset", "seed": 0, "step": 1, "of": 2}]

    result = load(out / "fig2a_cifar10-smoke.csv")
    assert set(result.data.method) == {"none", "fire", "full_reset"}
    numbers_by_method = result.table().set_index("method")
    assert list(numbers_by_method.index) == ["No reset", "FIRE"]
    gap = numbers(directories["fire"])[-1]["test/accuracy"] - numbers(directories["none"])[-1]["test/accuracy"]
    assert float(numbers_by_method["final minus no reset"]["FIRE"]) == pytest.approx(gap, abs=5e-4)
    assert result.pairs().empty
    assert result.seeds == "1"

    canvas = result.figure()
    lines = dict(zip(*reversed(canvas.axes[0].get_legend_handles_labels()), strict=True))
    begun, whole = lines["Full reset (epoch 1 of 2)"], lines["FIRE"]
    assert list(begun.get_xdata()) == [0, 1]  # from the reset on
    assert list(whole.get_xdata())[-1] == 2
    assert (begun.is_dashed(), begun.get_marker(), begun.get_markerfacecolor()) == (True, "o", "white")
    assert (whole.is_dashed(), whole.get_marker()) == (False, "")
    assert "Full reset" not in [label for label in lines if "epoch" not in label]
    plt.close(canvas)

    report_all(tmp_path / "results")
    page = (tmp_path / "results" / "index.html").read_text()
    assert told.replace("&", "&amp;") in page
    assert "vision: fig2a_cifar10 (in part)" in (tmp_path / "results" / "summary.md").read_text()

    # All methods in one seed: complete, with seeds that are still missing; nothing else is said.
    finish(directories["full_reset"])
    vision("method=shrink_perturb")
    report(DOMAINS["vision"], [tmp_path / "outputs"], tmp_path / "whole")
    printed = capsys.readouterr().out
    assert [path.stem for path in (tmp_path / "whole").glob("*.csv")] == ["fig2a_cifar10-smoke"]
    assert "not complete" not in printed
    assert "\nMissing: No reset, Shrink & perturb, Full reset, FIRE (seeds 1, 2).\n" in printed


def test_command_goes_on_with_the_runs_that_are_there(vision: Vision, tmp_path: Path) -> None:
    """In the precision they have: what it runs has their identity."""
    vision("-m", "method=none,fire", "precision=bf16", "seed=7")
    report(DOMAINS["vision"], [tmp_path / "outputs"], tmp_path / "report")
    result = load(tmp_path / "report" / "fig2a_cifar10-smoke.csv")
    assert result.about.difference == ""
    command = "python -m experiments.vision experiment=fig2a_cifar10 scale=smoke seed=0,1,2,7 precision=bf16 threads=1"
    assert result.command == command
    for directory in run_dirs(tmp_path / "outputs"):
        method, seed, _ = directory.name.split("-")
        words = shlex.split(command)[3:]
        own = [f"method={method}", f"seed={seed[1:]}", "device=cpu"]
        cfg = compose_domain("vision", VisionConfig, [word for word in words if not word.startswith("seed=")] + own)
        identity = digest(identity_values(cfg, resolve_runtime(cfg), PHASE_VERSION))
        assert identity == json.loads((directory / "run.json").read_text())["identity"]


def run_of(recipe: Recipe, job: int, seed: int = 0, machine: str = "here", finished: bool = True, **own: Any) -> Run:
    """A run of a recipe's job."""
    values = {**composed(recipe.domain, recipe.overrides[job]), "seed": seed, **own}
    path = Path(f"{recipe.benchmark}-{recipe.scale}/{recipe.name}-{job}-{seed}-{machine}-{own}")
    return Run(path, {"values": values, "machine": machine}, values, [], finished)


@pytest.fixture(scope="module")
def known() -> dict[str, Recipe]:
    """The recipes of the warm start."""
    return {one.name: one for one in recipes_at("vision", "smoke", ON) if one.benchmark == "warm_start"}


def titles(known: dict[str, Recipe], runs: list[Run]) -> list[tuple[str, int]]:
    """Which recipes are shown of how many runs."""
    return [(recipe.name + label, len(pool)) for recipe, label, _, pool in shown(list(known.values()), runs)]


def test_which_incomplete_recipe_is_shown(known: dict[str, Recipe]) -> None:
    fig2a, factor = known["fig2a_cifar10"], known["scale_factor"]  # none, S&P, full reset, FIRE; none, full, FIRE, own
    none, perturbed, full, fire = (run_of(fig2a, job) for job in range(4))
    own = run_of(factor, 3)
    assert own.values["method"]["norm"] == "own"
    # A tie goes to the first recipe, and only it is shown.
    assert titles(known, [none, fire]) == [("fig2a_cifar10", 2)]
    assert titles(known, [none, fire, run_of(fig2a, 2, finished=False)]) == [("fig2a_cifar10", 3)]
    # Else the larger share.
    assert titles(known, [none, fire, own]) == [("scale_factor", 3)]
    # Nothing is shown twice: the runs that are left are the incomplete recipe's.
    assert titles(known, [none, perturbed, full, fire]) == [("fig2a_cifar10", 4)]
    assert titles(known, [none, perturbed, fire, own]) == [("fig2a_cifar10", 3), ("scale_factor", 3)]
    # Complete recipes are always shown, whatever they share.
    assert titles(known, [none, perturbed, full, fire, own]) == [("fig2a_cifar10", 4), ("scale_factor", 4)]
    # No comparison, no recipe.
    assert titles(known, [fire, full]) == []
    assert titles(known, [none, run_of(fig2a, 3, seed=1)]) == []
    assert titles(known, [none, run_of(fig2a, 3, finished=False)]) == []


def test_incomplete_recipe_of_another_machine_is_told_apart(known: dict[str, Recipe]) -> None:
    """Precision is what a result ran with, no deviation; pooled it is not."""
    fig2a = known["fig2a_cifar10"]
    whole = [run_of(fig2a, job) for job in range(4)]
    elsewhere = [run_of(fig2a, job, machine="there", precision="bf16") for job in (0, 3)]
    found = titles(known, whole + elsewhere)
    assert found == [("fig2a_cifar10", 4), ("fig2a_cifar10-machine=there-precision=_bf16_", 2)]


def test_the_papers_curves_lie_over_ours() -> None:
    """Those of its methods, dotted: two of them are its final values alone, as lines across."""
    result = load(REPOSITORY / "results/vision/fig2a_cifar10-paper.csv")
    canvas = result.figure()
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
    plt.close(canvas)


@pytest.mark.parametrize(
    "name", ["language/fig3_60k", "atari/fig4a_asterix", "humanoid/fig4b_walk", "vision/fig2b_cifar10"]
)
def test_the_papers_curves_are_in_sight_in_every_domain(name: str) -> None:
    """With numbers of ours that are far from them."""
    result = load(REPOSITORY / f"results/{name}-laptop.csv")
    canvas = curves(result.data.assign(scale="paper"), result.domain)
    axes = canvas.axes[0]
    dotted = [line for line in axes.lines if line.get_linestyle() == ":" and len(line.get_ydata()) > 2]
    assert len(dotted) >= 3
    heights = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in dotted])
    low, high = axes.get_ylim()
    assert low < heights.min()
    assert heights.max() < high
    plt.close(canvas)
