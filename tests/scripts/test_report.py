"""The report: numbers against the runs' own logs, and what is never pooled."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.common.errors import UserError
from experiments.common.schema import digest
from scripts.report.__main__ import report, report_all
from scripts.report.figures import curves
from scripts.report.page import markdown
from scripts.report.results import load
from scripts.report.runs import file_label
from scripts.report.tables import by_method, compact, compared, pairs, plain
from tests.conftest import REPOSITORY, numbers, run_dirs

Vision = Callable[..., tuple[int, str]]
GROUP = "warm_start-cifar10-resnet18-smoke"


def test_csv_figure_and_table(vision: Vision, tmp_path: Path) -> None:
    vision("experiment=fig2a_cifar10_core", "method=none,fire")
    arguments = ["vision", str(tmp_path / "outputs"), "--out", str(tmp_path / "report")]
    result = subprocess.run(
        [sys.executable, "-m", "scripts.report", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    data = pd.read_csv(tmp_path / "report" / "fig2a_cifar10_core-smoke.csv")
    assert (tmp_path / "report" / "fig2a_cifar10_core-smoke.png").stat().st_size > 10_000
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
    """A method's own settings are part of its name; what else differs makes results of their own."""
    vision("method=fire")
    vision("method=fire", "method.steps=20")
    vision("method=fire_steps20")
    vision("method=fire", "precision=bf16")
    report("vision", [tmp_path / "outputs"], tmp_path / "report")
    printed = capsys.readouterr().out
    names = sorted(path.stem for path in (tmp_path / "report").glob("*.md"))
    assert names == [f"{GROUP}-precision={precision}" for precision in ("bf16", "fp32")]
    assert "Settings: precision=bf16." in printed
    told = (tmp_path / "report" / f"{names[1]}.md").read_text()
    assert all(f"| {label} " in told for label in ("FIRE", "FIRE (steps=20)", "FIRE, 20 steps"))


def test_one_label_never_stands_for_two_settings(vision: Vision, tmp_path: Path) -> None:
    """Such as runs of a method whose config file has changed since."""
    vision("-m", "method=fire", "seed=0,1")
    changed = run_dirs(tmp_path / "outputs")[1] / "run.json"
    info = json.loads(changed.read_text())
    info["values"]["method"]["steps"] = 7
    info["identity"] = digest(info["values"])
    changed.write_text(json.dumps(info))
    report("vision", [tmp_path / "outputs"], tmp_path / "report")
    data = pd.read_csv(tmp_path / "report" / f"{GROUP}.csv")
    assert {*zip(data.method, data.seed, strict=True)} == {("fire (steps=10)", 0), ("fire (steps=7)", 1)}
    for directory in run_dirs(tmp_path / "outputs"):  # a recipe that asked for them has them, by whatever label
        (directory / "recipes").mkdir()
        (directory / "recipes" / "mine.json").write_text(json.dumps({"seed": "0,1,2", "method": "fire"}))
    report("vision", [tmp_path / "outputs"], tmp_path / "report")
    assert load(tmp_path / "report" / "mine-smoke.csv").missing == {"fire": [2]}


def test_unfinished_runs_are_named_and_none_is_an_error(vision: Vision, tmp_path: Path, capsys) -> None:
    vision("method=fire")
    (directory,) = run_dirs(tmp_path / "outputs")
    with pytest.raises(UserError, match="is not a run of language"):
        report("language", [tmp_path / "outputs"], tmp_path / "report")
    (directory / "done").unlink()
    with pytest.raises(UserError, match="no finished run below"):
        report("vision", [tmp_path / "outputs"], tmp_path / "report")
    assert f"left out, not finished: {directory}" in capsys.readouterr().out


@pytest.mark.slow
def test_atari_has_returns_and_human_scores(atari: Vision, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Long enough for training episodes, at random, to end.
    long = ("budget.steps=[800,1600]", "budget.restart_every=8000", "dqn.epsilon=[1,1]", "budget.eval_every=2400")
    atari("experiment=fig4a_asterix", "method=none,fire", "seed=0,1", *long)
    report("atari", [tmp_path / "outputs"], tmp_path / "report")
    printed = capsys.readouterr().out
    assert "**Too short to rank methods; " in printed
    assert (tmp_path / "report" / "fig4a_asterix-smoke.png").stat().st_size > 30_000
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


@pytest.mark.slow
def test_atari_without_a_finished_training_episode(atari: Vision, tmp_path: Path, capsys) -> None:
    """The table and the figure then tell of evaluations alone."""
    atari("method=none")
    (directory,) = run_dirs(tmp_path / "outputs")
    rows = numbers(directory)
    assert not any("train/return" in row for row in rows)
    report("atari", [tmp_path / "outputs"], tmp_path / "report")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| No reset"))
    assert f" {rows[-1]['eval/return']:.0f} " in line
    assert (tmp_path / "report" / "asterix-smoke.png").stat().st_size > 20_000


def test_humanoid_has_returns_and_success(humanoid: Vision, tmp_path: Path, capsys) -> None:
    """In one table, though one method keeps what the others begin again; the same method with both is two."""
    humanoid("experiment=fig4b_walk", "method=none,plasticity_injection", "seed=0,1")
    humanoid("experiment=fig4b_walk", "method=none", "seed=0", "optimizer_at_boundary=reset")
    report("humanoid", [tmp_path / "outputs"], tmp_path / "report")
    printed = capsys.readouterr().out
    assert {path.stem for path in (tmp_path / "report").glob("*.csv")} == {"fig4b_walk-smoke"}
    cells, finals = {}, {}
    header = [c.strip() for c in next(line for line in printed.splitlines() if "| method" in line).split("|")]
    for label, seeds in (("No reset", 2), ("No reset (optimizer_at_boundary=reset)", 1), ("Plasticity injection", 2)):
        line = next(line for line in printed.splitlines() if re.match(rf"\| {re.escape(label)} +\|", line))
        finals[label] = [
            numbers(directory)[-1]["eval/return"]
            for directory in run_dirs(tmp_path / "outputs")
            if directory.name.startswith("none") == label.startswith("No")
            and bool(json.loads((directory / "run.json").read_text())["method_settings"]) == ("(" in label)
        ]
        assert len(finals[label]) == seeds
        assert f" {sum(finals[label]) / seeds:.1f} " in line
        score = (sum(finals[label]) / seeds - 2.4) / (700 - 2.4)
        assert f" {round(score, 3) + 0.0:.3f} " in line
        cells[label] = dict(zip(header, [c.strip() for c in line.split("|")], strict=True))
    # Paired with the one of which the command line says as little about the optimiser.
    gaps = [injected - none for injected, none in zip(finals["Plasticity injection"], finals["No reset"], strict=True)]
    told = cells["Plasticity injection"]["final minus no reset"]
    assert float(told.split(" ± ")[0]) == pytest.approx(sum(gaps) / 2, abs=0.051)
    assert [row["paper's final (scale=paper)"] for row in cells.values()] == ["594", "594", "353"]
    assert "**Too short to rank methods; " in printed


def test_language_has_losses_of_each_corpus(language: Vision, tmp_path: Path, capsys) -> None:
    language("experiment=fig3_best", "method=none,fire", "seed=0,1")
    report("language", [tmp_path / "outputs"], tmp_path / "report")
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
    places = load(tmp_path / "report" / f"{stem}.csv").places
    assert (data.step - places == [boundaries[key] for key in zip(data.method, data.seed, strict=True)]).all()


def test_other_data_of_one_name_are_named(language: Vision, tmp_path: Path, capsys) -> None:
    language("method=none")
    language("method=none", "budget.first_tokens=15000", "data.second=[wikitext2]")
    report("language", [tmp_path / "outputs"], tmp_path / "report")
    names = sorted(path.name for path in (tmp_path / "report").glob("*.md"))
    assert len(names) == 2
    assert all(name.startswith("wikitext2_imdb-60k-smoke-") and len(name) < 100 for name in names)
    printed = capsys.readouterr().out
    assert "first_tokens=15000" in printed
    assert "first_tokens=20000" in printed


def test_recipes_share_runs(vision: Vision, tmp_path: Path, capsys) -> None:
    """A run that one recipe asked for, and later another, is in both; others of its group stand beside them."""
    vision("experiment=fig2a_cifar10_core", "method=none,fire", "seed=0")
    vision("experiment=scale_factor", "seed=0", "benchmark=warm_start")
    vision("method=shrink_perturb")  # no recipe asked for this one
    directories = {path.name.split("-")[0]: path for path in run_dirs(tmp_path / "outputs")}
    recipes = {name: {file.stem for file in path.glob("recipes/*")} for name, path in directories.items()}
    both = {"fig2a_cifar10_core", "scale_factor"}
    assert recipes == {
        "none": both, "fire": both, "full_reset": {"scale_factor"}, "fire_own_norm": {"scale_factor"},
        "shrink_perturb": set(),
    }  # fmt: skip
    report("vision", [tmp_path / "outputs"], tmp_path / "report")
    methods = {path.stem: {*pd.read_csv(path).method} for path in (tmp_path / "report").glob("*.csv")}
    factor = f"scale_factor-{GROUP}"
    four = {"none", "full_reset", "fire", "fire_own_norm"}
    assert methods == {"fig2a_cifar10_core-smoke": {"none", "fire"}, factor: four, GROUP: set(directories)}
    about = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "report").glob("*.json")}
    assert about["fig2a_cifar10_core-smoke"]["missing"] == {
        "none": [1, 2], "shrink_perturb": [0, 1, 2], "full_reset": [0, 1, 2], "fire": [1, 2]
    }  # fmt: skip
    assert about[factor]["missing"] == {method: [1, 2] for method in four}
    assert about[GROUP]["missing"] == {}
    printed = capsys.readouterr().out
    command = "python -m experiments.vision experiment=scale_factor benchmark=warm_start scale=smoke seed=0,1,2"
    assert f"`{command} precision=fp32 compile=false threads=1`" in printed
    assert printed.count(f"to continue them, add outputs_dir={tmp_path / 'outputs'}.\n") == 2

    # What the view of scale_factor measures, against the log.
    result = load(tmp_path / "report" / f"{factor}.csv")
    own = by_method(result).set_index("method").loc["FIRE, own norms"]
    boundary = next(row for row in numbers(directories["fire_own_norm"]) if "reset/sfe" in row)
    for key, column in (
        ("reset/sfe_normalised", "SFE / that of a full reset"),
        ("plasticity/dfi_normalised", "DfI / min(out, in) after the reset"),
        ("plasticity/anisotropy", "anisotropy after the reset"),
        ("test/accuracy_refreshed", "accuracy after the reset, batch norm refreshed"),
    ):
        assert float(own[column].replace(",", "")) == pytest.approx(boundary[key], rel=0.01)
    assert own["against the paper"] == ""
    assert by_method(result).set_index("method")["against the paper"]["FIRE"] == "one seed"
    assert (tmp_path / "report" / f"{factor}.png").stat().st_size > 10_000


def test_muon_stands_beside_other_methods(vision: Vision, tmp_path: Path) -> None:
    """Though its runs alone depend on `model.scope.adam`."""
    vision("experiment=fig2a_cifar10", "method=fire,muon", "seed=0")
    report("vision", [tmp_path / "outputs"], tmp_path / "report")
    (table,) = (tmp_path / "report").glob("*.csv")
    assert {*pd.read_csv(table).method} == {"fire", "muon"}


def test_settings_of_the_command_line_are_named(vision: Vision, tmp_path: Path) -> None:
    """A run with settings of its own is not taken for the paper's FIRE, or for one of the scale's numbers."""
    tiny = ("budget.train_images=100", "budget.test_images=20")
    vision("method=fire", "method.norm=own", *tiny)
    report("vision", [tmp_path / "outputs"], tmp_path / "report")
    told = (tmp_path / "report" / f"{GROUP}.md").read_text()
    assert "| FIRE (norm=own) |" in told
    assert "0.829" not in told
    assert "Settings: budget.test_images=20, budget.train_images=100." in told


def test_what_differs_from_other_runs_of_a_recipe_is_named(vision: Vision, tmp_path: Path) -> None:
    """In the title, in words, and in the command."""
    for words in ([], ["budget.epochs=[2,2]"]):
        vision("experiment=fig2a_cifar10_core", "method=none,fire", "seed=0", *words)
    report("vision", [tmp_path / "outputs"], tmp_path / "report")
    titles = ["fig2a_cifar10_core-smoke-epochs=_2,2_", "fig2a_cifar10_core-smoke-epochs=_3,2_"]
    assert sorted(path.stem for path in (tmp_path / "report").glob("*.csv")) == titles
    other, usual = (load(tmp_path / "report" / f"{title}.csv") for title in titles)
    assert (other.changed, usual.changed) == ("budget.epochs=[2,2]", "budget.epochs=[3,2]")
    assert "scale=smoke 'budget.epochs=[2,2]' seed=0,1,2" in other.command
    assert "epochs" not in usual.command
    assert len(file_label(["section.key=" + "value" * 20])) == 9


def test_where_each_part_of_a_run_was_computed_is_told(vision: Vision, tmp_path: Path) -> None:
    """What went on elsewhere is not pooled with what did not; all versions and commits are named."""
    tiny = ("budget.train_images=100", "budget.test_images=20", "threads=1")
    vision("-m", "method=none,fire", *tiny)
    _, none = run_dirs(tmp_path / "outputs")
    info = json.loads((none / "run.json").read_text())
    part = {"git": "of the phase", "versions": {"torch": "1.13.0"}, "machine": info["machine"]}
    (none / "run.json").write_text(json.dumps({**info, "branched_from": [part]}))
    report("vision", [tmp_path / "outputs"], tmp_path / "together")
    about = json.loads((tmp_path / "together" / f"{GROUP}.json").read_text())
    assert about["torch"] == sorted(["1.13.0", info["versions"]["torch"]])
    assert about["commits"] == sorted(["of the phase", info["git"]])
    assert about["ran_with"] == {"device": "cpu", "threads": "1", "compile": "false", "precision": "fp32"}
    told = (tmp_path / "together" / f"{GROUP}.md").read_text()
    assert "threads: 1, compile: false, precision: fp32, PyTorch: 1.13.0, " in told

    elsewhere = {**part, "machine": "another one"}
    (none / "run.json").write_text(json.dumps({**info, "continued": [elsewhere]}))
    report("vision", [tmp_path / "outputs"], tmp_path / "apart")
    machines = [pd.read_csv(path).machine.unique() for path in sorted((tmp_path / "apart").glob("*.csv"))]
    both = " and ".join(sorted([info["machine"], "another one"]))
    assert sorted(name for (name,) in machines) == sorted([info["machine"], both])


def test_page_of_a_single_method(vision: Vision, tmp_path: Path) -> None:
    """Of no recipe, so without a command; with nothing to compare with."""
    vision("method=fire")
    report("vision", [tmp_path / "outputs"], tmp_path / "results" / "vision")
    report_all(tmp_path / "results")
    page = (tmp_path / "results" / "index.html").read_text()
    assert GROUP in page
    assert "python -m" not in page
    assert "minus no reset" not in (tmp_path / "results" / "summary.md").read_text()


def test_command_that_makes_a_result_again() -> None:
    shared, own = (
        load(REPOSITORY / f"results/{name}.csv").command
        for name in ("vision/isometry_or_norm-warm_start-cifar10-plain_cnn-laptop", "atari/fig4a_asterix-laptop")
    )
    ran_with = "precision=fp32 compile=false threads=1"
    choices = f"experiment=isometry_or_norm model=plain_cnn scale=laptop seed=0,1,2,3,4 {ran_with}"
    assert shared == f"python -m experiments.vision {choices}"
    assert own == f"python -m experiments.atari experiment=fig4a_asterix scale=laptop seed=0,1,2,3 {ran_with}"


def test_differences_between_methods_are_paired_by_seed() -> None:
    result = load(REPOSITORY / "results/vision/fig2a_cifar10-laptop.csv")
    finals = result.data.query("metric == 'test/accuracy' and step == 70").set_index(["method", "seed"]).value
    gaps = [finals["fire", seed] - finals["full_reset", seed] for seed in (0, 1, 2)]
    half = stats.t.ppf(0.975, 2) * stats.sem(gaps)
    told = pairs(result).set_index("difference")
    assert told.final["FIRE minus Full reset"] == f"{sum(gaps) / 3:+.3f} ± {half:.3f}"
    assert len(told) == 10 * 9 / 2  # none of them with no reset
    assert told.index[0] == "Full reset minus Shrink & perturb"
    assert told.index[-1] == "FIRE minus Self-normalised resets"


def test_different_numbers_of_seeds_and_five_of_them() -> None:
    """The first are said, and of five there is an interquartile mean."""
    result = load(REPOSITORY / "results/vision/fig2a_cifar10-laptop.csv")
    again = result.data[(result.data.method == "fire") & (result.data.seed < 2)]
    again = again.assign(seed=again.seed + 3, value=again.value * 1.01)
    more = replace(result, data=pd.concat([result.data, again], ignore_index=True))
    assert "**Methods have different numbers of seeds**" in markdown(more)
    assert "different numbers" not in markdown(result)
    told = by_method(more).set_index("method")["IQM of final"]
    finals = more.data.query("metric == 'test/accuracy' and step == 70 and method == 'fire'").value
    middle, low, high = map(float, re.findall(r"[\d.]+", told["FIRE"]))
    assert middle == pytest.approx(stats.trim_mean(finals, 0.25), abs=5e-4)
    assert finals.min() - 5e-4 <= low < middle < high <= finals.max() + 5e-4
    assert told["No reset"] == ""
    assert "IQM of final" not in by_method(result)


def test_many_variants_of_a_method_are_told_apart() -> None:
    result = load(REPOSITORY / "results/vision/fig2a_cifar10-laptop.csv")
    data = result.data
    fire = data[data.method == "fire"]
    variants = [fire.assign(method=f"fire (steps={steps})") for steps in (5, 10, 20, 30, 40, 50)]
    canvas = curves(replace(result, data=pd.concat([data[data.method == "none"], *variants], ignore_index=True)))
    lines, labels = canvas.axes[0].get_legend_handles_labels()
    assert labels[:7] == ["No reset", *(f"FIRE (steps={steps})" for steps in (5, 10, 20, 30, 40, 50))]
    looks = {(line.get_color(), line.get_marker(), line._unscaled_dash_pattern) for line in lines[:7]}
    assert len({str(look) for look in looks}) == 7


@pytest.mark.parametrize(
    ("label", "published"),
    [
        ("fire", "fire"), ("fire (steps=5)", "fire (steps=5)"), ("none (optimizer_at_boundary=keep)", "none"),
        ("fire (steps=5, optimizer_at_boundary=keep)", "fire (steps=5)"),
        ("fire (optimizer_at_boundary=keep, steps=5)", "fire (steps=5)"),
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
        ([0.1, -0.1, 0.02], "no clear difference"), ([0.1], "one seed"), ([], ""),
    ],
)  # fmt: skip
def test_direction_against_the_papers(ours: list[float], said: str) -> None:
    assert compared(np.array(ours), 0.829, 0.778) == said


def test_no_direction_where_the_paper_shows_none() -> None:
    """Values nearer to one another than its figures can be read."""
    assert compared(np.array([0.3, 0.31, 0.32]), 3.057, 3.056) == "level in the paper"
    assert compared(np.array([30.0, 31.0, 32.0]), 600.0, 594.0) == "level in the paper"
