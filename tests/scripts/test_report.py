"""The report: numbers against the runs' own logs, and what is never pooled."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.common.errors import UserError
from scripts.report.__main__ import report, report_all
from scripts.report.domains import DOMAINS
from scripts.report.figures import curves, origins
from scripts.report.results import load
from scripts.report.tables import compact, compared, plain, pooled
from tests.conftest import REPOSITORY, numbers, run_dirs

Vision = Callable[..., tuple[int, str]]


def test_csv_figure_and_table(vision: Vision, tmp_path: Path) -> None:
    vision("-m", "method=none,fire", "seed=0,1,2")
    arguments = ["vision", str(tmp_path / "outputs"), "--out", str(tmp_path / "report")]
    result = subprocess.run(
        [sys.executable, "-m", "scripts.report", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    data = pd.read_csv(tmp_path / "report" / "fig2a_cifar10-smoke.csv")
    assert (tmp_path / "report" / "fig2a_cifar10-smoke.png").stat().st_size > 10_000
    finals: dict[str, list[float]] = {"none": [], "fire": []}
    for directory in run_dirs(tmp_path / "outputs"):
        method, seed, _ = directory.name.split("-")
        rows = numbers(directory)
        finals[method].append(rows[-1]["test/accuracy"])
        for row, number in ((rows[0], 1), (rows[-1], 5)):
            one = data.query(f"method == '{method}' and seed == {seed[1:]} and step == {number} and not at_boundary")
            assert one.set_index("metric").value["train/loss"] == pytest.approx(row["train/loss"])
    difference = [fire - none for fire, none in zip(finals["fire"], finals["none"], strict=True)]
    half = stats.t.ppf(0.975, 2) * stats.sem(difference)
    line = next(line for line in result.stdout.splitlines() if line.startswith("| FIRE"))
    mean = sum(difference) / 3
    assert f"{mean:+.3f} ± {half:.3f}" in line
    assert f"{sum(finals['fire']) / 3:.3f} ± " in line
    assert "0.829" in line


def test_different_settings_are_not_pooled(vision: Vision, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vision("method=fire")
    vision("method=fire", "method.steps=20")
    vision("method=fire", "precision=bf16")
    report(DOMAINS["vision"], [tmp_path / "outputs"], tmp_path / "report")
    printed = capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "report").glob("*.md"))
    assert names == ["warm_start-smoke-precision=_bf16_.md", "warm_start-smoke-precision=_fp32_.md"]
    assert "FIRE (steps=10)" in printed
    assert "FIRE (steps=20)" in printed


def test_unfinished_runs_are_named_and_none_is_an_error(vision: Vision, tmp_path: Path, capsys) -> None:
    vision("method=fire")
    (directory,) = run_dirs(tmp_path / "outputs")
    (directory / "done").unlink()
    with pytest.raises(UserError, match="no finished run below"):
        report(DOMAINS["vision"], [tmp_path / "outputs"], tmp_path / "report")
    assert f"left out, not finished: {directory}" in capsys.readouterr().out


@pytest.mark.slow
def test_atari_has_returns_and_human_scores(atari: Vision, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Long enough for training episodes, at random, to end.
    long = ("budget.steps=[800,1600]", "budget.restart_every=8000", "dqn.epsilon=[1,1]", "budget.eval_every=2400")
    atari("-m", "method=none,fire", "seed=0,1", *long)
    report(DOMAINS["atari"], [tmp_path / "outputs"], tmp_path / "report")
    printed = capsys.readouterr().out
    assert "**Too short to rank methods; " in printed
    assert (tmp_path / "report" / "asterix-smoke.png").stat().st_size > 30_000
    fire = [numbers(d) for d in run_dirs(tmp_path / "outputs") if d.name.startswith("fire")]
    final = [[row["train/return"] for row in rows if "train/return" in row][-1] for rows in fire]
    evaluated = [rows[-1]["eval/return"] for rows in fire]
    header, line = (next(line for line in printed.splitlines() if start in line) for start in ("| method", "| FIRE"))
    cells = dict(zip(*([c.strip() for c in row.split("|")] for row in (header, line)), strict=True))
    assert cells["final"].startswith(f"{sum(final) / 2:.0f} ± ")
    assert cells["final, evaluation"].startswith(f"{sum(evaluated) / 2:.0f} ± ")
    # Random 210, human 8503.3 (Wang et al. 2016).
    assert cells["final, human-normalised"].startswith(f"{(sum(final) / 2 - 210) / 8293.3:.3f} ± ")
    assert cells["paper's final (scale=paper)"] == "2250"


def test_atari_without_a_finished_training_episode(atari: Vision, tmp_path: Path, capsys) -> None:
    """The table and the figure then tell of evaluations alone."""
    atari("method=none")
    (directory,) = run_dirs(tmp_path / "outputs")
    rows = numbers(directory)
    assert not any("train/return" in row for row in rows)
    report(DOMAINS["atari"], [tmp_path / "outputs"], tmp_path / "report")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| No reset"))
    assert f" {rows[-1]['eval/return']:.0f} " in line
    assert (tmp_path / "report" / "asterix-smoke.png").stat().st_size > 20_000


def test_humanoid_has_returns_and_success(humanoid: Vision, tmp_path: Path, capsys) -> None:
    """In one table, though one method keeps what the others begin anew; the same method with both is two."""
    humanoid("-m", "method=none,plasticity_injection", "seed=0,1")
    report(DOMAINS["humanoid"], [tmp_path / "outputs"], tmp_path / "default")
    assert "| No reset  " in capsys.readouterr().out
    assert [path.stem for path in (tmp_path / "default").glob("*.csv")] == ["fig4b_walk-smoke"]
    humanoid("method=none", "optimizer_at_boundary=reset")
    report(DOMAINS["humanoid"], [tmp_path / "outputs"], tmp_path / "report")
    printed = capsys.readouterr().out.split("# humanoid: h1-walk-smoke")[1]  # of all, since one is of no recipe
    assert {path.stem for path in (tmp_path / "report").glob("*.csv")} == {"fig4b_walk-smoke", "h1-walk-smoke"}
    cells, means = {}, {}
    header = [c.strip() for c in next(line for line in printed.splitlines() if "| method" in line).split("|")]
    for label, seeds in (
        ("No reset (optimizer_at_boundary=keep)", 2), ("No reset (optimizer_at_boundary=reset)", 1),
        ("Plasticity injection (optimizer_at_boundary=reset)", 2),
    ):  # fmt: skip
        line = next(line for line in printed.splitlines() if line.startswith(f"| {label} "))
        finals = [
            numbers(directory)[-1]["eval/return"]
            for directory in run_dirs(tmp_path / "outputs")
            if (directory.name.startswith("none")) == label.startswith("No")
            and json.loads((directory / "run.json").read_text())["values"]["optimizer_at_boundary"]
            == ("keep" if "keep" in label else "reset")
        ]
        assert len(finals) == seeds
        assert f" {sum(finals) / seeds:.1f} " in line
        score = (sum(finals) / seeds - 2.4) / (700 - 2.4)
        assert f" {round(score, 3) + 0.0:.3f} " in line
        cells[label] = dict(zip(header, [c.strip() for c in line.split("|")], strict=True))
        means[label] = finals
    # Paired with the one that did the same with the optimiser, in the seed that both have.
    _, anew, injected = cells
    gap = means[injected][0] - means[anew][0]
    assert float(cells[injected]["final minus no reset"]) == pytest.approx(gap, abs=0.051)
    assert [row["paper's final (scale=paper)"] for row in cells.values()] == ["594", "594", "353"]
    assert "**Too short to rank methods; " in printed


def test_language_has_losses_of_each_corpus(language: Vision, tmp_path: Path, capsys) -> None:
    language("-m", "method=none,fire", "seed=0,1", "checkpoint=best")
    report(DOMAINS["language"], [tmp_path / "outputs"], tmp_path / "report")
    printed = capsys.readouterr().out
    (stem,) = [path.stem for path in (tmp_path / "report").glob("*.csv")]
    assert stem == "fig3_best-smoke"
    assert (tmp_path / "report" / f"{stem}.png").stat().st_size > 30_000
    data = pd.read_csv(tmp_path / "report" / f"{stem}.csv")
    finals: dict[str, list[dict]] = {"none": [], "fire": []}
    for directory in run_dirs(tmp_path / "outputs"):
        finals[directory.name.split("-")[0]].append(numbers(directory)[-1])
    line = next(line for line in printed.splitlines() if line.startswith("| FIRE"))
    for key in ("val/loss", "val/loss_first", "val/loss_second"):
        difference = [fire[key] - none[key] for fire, none in zip(finals["fire"], finals["none"], strict=True)]
        assert f"{sum(difference) / 2:+.3f} ± " in line
    assert "3.023" in line  # the paper's
    # Seeds branch at different iterations; the curves count from there.
    boundaries = data[data.at_boundary & (data.metric == "val/loss")].set_index(["method", "seed"]).step
    assert (boundaries.loc["none"] == boundaries.loc["fire"]).all()
    assert (origins(data) == [boundaries[key] for key in zip(data.method, data.seed, strict=True)]).all()


def test_other_data_of_one_name_are_told_apart_in_words(language: Vision, tmp_path: Path, capsys) -> None:
    language("method=none")
    language("method=none", "budget.first_tokens=15000", "data.second=[wikitext2]")
    report(DOMAINS["language"], [tmp_path / "outputs"], tmp_path / "report")
    names = sorted(path.name for path in (tmp_path / "report").glob("*.md"))
    assert len(names) == 2
    assert all(name.startswith("wikitext2_imdb-60k-smoke-") and len(name) < 100 for name in names)
    printed = capsys.readouterr().out
    assert "first_tokens=15000" in printed
    assert "first_tokens=20000" in printed


def test_tasks_are_pooled_each_on_its_own_scale() -> None:
    columns = ["benchmark", "method", "seed", "phase", "step", "metric", "value", "at_boundary"]
    random, human = {"asterix": 210.0, "beam_rider": 363.9}, {"asterix": 8503.3, "beam_rider": 16926.5}
    tasks, scores = [], []
    for number, game in enumerate(("asterix", "beam_rider")):
        finals = [300.0 + 100 * number, 500.0, 900.0 - 50 * number, 1000.0]
        scores += [(value - random[game]) / (human[game] - random[game]) for value in finals]
        rows = [(game, "fire", seed, 1, 10, "train/return", value, False) for seed, value in enumerate(finals)]
        tasks.append(pd.DataFrame(rows, columns=columns))
    (line,) = pooled(tasks, DOMAINS["atari"]).to_dict("records")
    assert (line["method"], line["tasks"], line["runs"]) == ("FIRE", "2", "8")
    middle, low, high = map(float, re.findall(r"[\d.]+", line["IQM, human-normalised"]))
    assert middle == pytest.approx(sum(sorted(scores)[2:6]) / 4, abs=5e-4)
    assert low < middle < high
    assert pooled(tasks[:1], DOMAINS["atari"]).empty


@pytest.mark.slow
def test_a_recipes_runs_are_told_by_its_name(vision: Vision, tmp_path: Path, capsys) -> None:
    """With what its view measures; runs of the same benchmark beside it are told apart from it."""
    vision("experiment=scale_factor", "seed=0")
    report(DOMAINS["vision"], [tmp_path / "outputs"], tmp_path / "report")
    assert [path.stem for path in (tmp_path / "report").glob("*.csv")] == ["scale_factor-warm_start-smoke"]
    assert (tmp_path / "report" / "scale_factor-warm_start-smoke.png").stat().st_size > 10_000
    by_method = capsys.readouterr().out.split("| difference")[0]
    lines = [line for line in by_method.splitlines() if line.startswith("| ")]
    header = [cell.strip() for cell in lines[0].split("|")]
    own = dict(zip(header, [c.strip() for c in lines[-1].split("|")], strict=True))
    assert own["method"] == "FIRE (norm=own)"
    (directory,) = (d for d in run_dirs(tmp_path / "outputs") if "norm: own" in (d / "config.yaml").read_text())
    boundary = next(row for row in numbers(directory) if "reset/sfe" in row)
    for key, column in (
        ("reset/sfe_normalised", "SFE / that of a full reset"),
        ("plasticity/dfi_normalised", "DfI / min(out, in) after the reset"),
    ):
        assert float(own[column].replace(",", "")) == pytest.approx(boundary[key], rel=0.01)
    assert own["against the paper"] == ""
    assert [c.strip() for c in lines[-2].split("|")][header.index("against the paper")] == "one seed"

    vision("method=shrink_perturb")  # which completes fig2a as well
    vision("method=fire", "budget.epochs=[3,3]")  # no recipe's number
    report(DOMAINS["vision"], [tmp_path / "outputs"], tmp_path / "more")
    titles = ["fig2a_cifar10-smoke", "scale_factor-warm_start-smoke", "warm_start-smoke-epochs=_3,_3_"]
    assert sorted(path.stem for path in (tmp_path / "more").glob("*.csv")) == titles
    about = json.loads((tmp_path / "more" / f"{titles[-1]}.json").read_text())
    assert about["recipe"] == ""
    assert "epochs=[3, 3]" in about["difference"]


def test_a_setting_that_is_not_usual_is_told_of_a_single_run(vision: Vision, tmp_path: Path) -> None:
    """Nor is it taken for the paper's FIRE, or a run of other numbers for the scale's."""
    tiny = ("budget.train_images=100", "budget.test_images=20")
    vision("method=fire", "method.norm=own", *tiny)
    report(DOMAINS["vision"], [tmp_path / "outputs"], tmp_path / "report")
    told = (tmp_path / "report" / "warm_start-smoke.md").read_text()
    assert "| FIRE (norm=own) |" in told
    assert "0.829" not in told
    assert "Settings of their own: budget.test_images=20, budget.train_images=100." in told


def test_where_each_part_of_a_run_was_computed_is_told(vision: Vision, tmp_path: Path) -> None:
    """What went on elsewhere is not pooled with what did not; all versions and commits are named."""
    tiny = ("budget.train_images=100", "budget.test_images=20", "threads=1")
    vision("-m", "method=none,fire", *tiny)
    _, none = run_dirs(tmp_path / "outputs")
    info = json.loads((none / "run.json").read_text())
    part = {"git": "of the phase", "versions": {"torch": "1.13.0"}, "machine": info["machine"]}
    (none / "run.json").write_text(json.dumps({**info, "branched_from": [part]}))
    report(DOMAINS["vision"], [tmp_path / "outputs"], tmp_path / "together")
    about = json.loads((tmp_path / "together" / "warm_start-smoke.json").read_text())
    assert about["torch"] == sorted(["1.13.0", info["versions"]["torch"]])
    assert about["commits"] == sorted(["of the phase", info["git"]])
    assert about["ran_with"] == {"device": "cpu", "threads": "1", "compile": "false", "precision": "fp32"}
    told = (tmp_path / "together" / "warm_start-smoke.md").read_text()
    assert "threads: 1, compile: false, precision: fp32, PyTorch: 1.13.0, " in told

    elsewhere = {**part, "machine": "another one"}
    (none / "run.json").write_text(json.dumps({**info, "continued": [elsewhere]}))
    report(DOMAINS["vision"], [tmp_path / "outputs"], tmp_path / "apart")
    machines = [pd.read_csv(path).machine.unique() for path in sorted((tmp_path / "apart").glob("*.csv"))]
    both = " and ".join(sorted([info["machine"], "another one"]))
    assert sorted(name for (name,) in machines) == sorted([info["machine"], both])


def test_page_of_a_single_method(vision: Vision, tmp_path: Path) -> None:
    """Of no recipe, so without a command; with nothing to compare with."""
    vision("method=fire")
    report(DOMAINS["vision"], [tmp_path / "outputs"], tmp_path / "results" / "vision")
    report_all(tmp_path / "results")
    page = (tmp_path / "results" / "index.html").read_text()
    assert "warm_start-smoke" in page
    assert "python -m" not in page
    assert "minus no reset" not in (tmp_path / "results" / "summary.md").read_text()


def test_command_that_makes_a_result_again() -> None:
    shared, own = (
        load(REPOSITORY / f"results/{name}.csv").command
        for name in ("vision/isometry_exactness-warm_start-laptop", "atari/fig4a_asterix-laptop")
    )
    choices = "experiment=isometry_exactness benchmark=warm_start scale=laptop seed=0,1,2 threads=1"
    assert shared == f"python -m experiments.vision {choices}"
    assert own == "python -m experiments.atari experiment=fig4a_asterix scale=laptop seed=0,1,2,3 threads=1"


def test_differences_between_methods_are_paired_by_seed() -> None:
    result = load(REPOSITORY / "results/vision/fig2a_cifar10-laptop.csv")
    finals = result.data.query("metric == 'test/accuracy' and step == 70").set_index(["method", "seed"]).value
    gaps = [finals["fire", seed] - finals["full_reset", seed] for seed in (0, 1, 2)]
    half = stats.t.ppf(0.975, 2) * stats.sem(gaps)
    told = result.pairs().set_index("difference")
    assert told.final["FIRE minus Full reset"] == f"{sum(gaps) / 3:+.3f} ± {half:.3f}"
    assert list(told.index) == [
        "Full reset minus Shrink & perturb",
        "FIRE minus Shrink & perturb",
        "FIRE minus Full reset",
    ]


def test_many_variants_of_a_method_are_told_apart() -> None:
    data = load(REPOSITORY / "results/vision/fig2a_cifar10-laptop.csv").data
    fire = data[data.method == "fire"]
    variants = [fire.assign(method=f"fire (steps={steps})") for steps in (5, 10, 20, 30, 40, 50)]
    canvas = curves(pd.concat([data[data.method == "none"], *variants]), DOMAINS["vision"])
    lines, labels = canvas.axes[0].get_legend_handles_labels()
    assert labels[:7] == ["No reset", *(f"FIRE (steps={steps})" for steps in (5, 10, 20, 30, 40, 50))]
    looks = {(line.get_color(), line.get_marker(), line._unscaled_dash_pattern) for line in lines[:7]}
    assert len({str(look) for look in looks}) == 7


@pytest.mark.parametrize(
    ("label", "published"),
    [
        ("fire", "fire"), ("fire (steps=5)", "fire (steps=5)"), ("none (optimizer_at_boundary=keep)", "none"),
        ("fire (steps=5, optimizer_at_boundary=keep)", "fire (steps=5)"),
    ],
)  # fmt: skip
def test_label_by_which_the_papers_value_is_found(label: str, published: str) -> None:
    assert plain(label) == published


@pytest.mark.parametrize(
    ("value", "digits", "told"),
    [
        (3963.2, 3, "3,960"), (0.03184, 3, "0.0318"), (1.9, 3, "1.90"), (0.0, 3, "0"), (999.6, 3, "1,000"),
        (4.2e-14, 2, "4.2e-14"), (-17.46, 2, "-17"), (2.5e7, 2, "2.5e+07"),
    ],
)  # fmt: skip
def test_numbers_of_any_size(value: float, digits: int, told: str) -> None:
    assert compact(value, digits) == told


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([0.1, 0.11, 0.12], "same direction"), ([-0.1, -0.11, -0.12], "opposite direction"),
        ([0.1, -0.1, 0.02], "not told from no reset"), ([0.1], "one seed"), ([], ""),
    ],
)  # fmt: skip
def test_direction_against_the_papers(ours: list[float], said: str) -> None:
    assert compared(np.array(ours), 0.829, 0.778) == said


def test_no_direction_where_the_paper_shows_none() -> None:
    """Values nearer to one another than its figures can be read."""
    assert compared(np.array([0.3, 0.31, 0.32]), 3.057, 3.056) == "level in the paper"
    assert compared(np.array([30.0, 31.0, 32.0]), 600.0, 594.0) == "level in the paper"
