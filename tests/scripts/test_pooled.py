"""Several games together: the statistics against their plain definitions, and where they are shown."""

import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scripts.report.__main__ import report_all
from scripts.report.pooled import IMPROVEMENT, above, as_text, drawing, improvement, pooled, pools
from scripts.report.results import Result
from scripts.report.tables import iqm

COLUMNS = [
    "domain", "benchmark", "method", "seed", "scale", "machine", "phase", "step_name", "step", "metric", "value",
    "at_boundary",
]  # fmt: skip
# Random and human play (Wang et al. 2016).
GAMES = {"asterix": (210.0, 8503.3), "beam_rider": (363.9, 16926.5), "demon_attack": (152.1, 1971.0)}
FINALS = {
    "none": [300.0, 500.0, 850.0, 1000.0],
    "full_reset": [900.0, 400.0, 500.0, 1000.0],
    "fire": [1200.0, 700.0, 1000.0],
}


def game(number: int, methods: Sequence[str] = tuple(FINALS)) -> Result:
    """A made-up result of a game, whose runs end a little higher in each further game."""
    name = list(GAMES)[number]
    rows = [
        ("atari", name, method, seed, "laptop", "a machine", phase, "env_step", 10 * (phase + 1), metric, value, False)
        for method in methods
        for seed, value in enumerate(FINALS[method])
        for phase in (0, 1)
        for metric, value in (("train/return", value + 100 * number), ("eval/return", value))
    ]
    ran_with = {"precision": "fp32", "compile": "false", "threads": "1"}
    data = pd.DataFrame(rows, columns=COLUMNS)
    return Result(f"fig4a_{name}-laptop", data, f"fig4a_{name}", ran_with=ran_with)


def score(number: int, value: float) -> float:
    """On the scale of human play."""
    random, human = list(GAMES.values())[number]
    return (value + 100 * number - random) / (human - random)


def probability(x: Sequence[float], y: Sequence[float]) -> float:
    """Of all pairs."""
    return sum((a > b) + (a == b) / 2 for a, b in itertools.product(x, y)) / (len(x) * len(y))


@pytest.mark.parametrize("games", [2, 3])
def test_each_game_on_its_own_scale(games: int) -> None:
    numbers = pooled([game(number) for number in range(games)])
    assert list(numbers.index) == ["none", "full_reset", "fire"]
    assert list(numbers.tasks) == [games] * 3
    assert list(numbers.runs) == [4 * games, 4 * games, 3 * games]
    for method, finals in FINALS.items():
        scores = [score(number, value) for number in range(games) for value in finals]
        middle, low, high = numbers.loc[method, "IQM, human-normalised"]
        assert middle == pytest.approx(stats.trim_mean(scores, 0.25))
        assert low < middle < high
        if method == "none":
            assert numbers.loc[method, IMPROVEMENT] is None
            continue
        middle, low, high = numbers.loc[method, IMPROVEMENT]
        assert middle == pytest.approx(probability(finals, FINALS["none"]))  # the same in every game
        assert 0 <= low < middle < high <= 1
    assert pooled([game(0)]).empty


def test_methods_and_runs_that_some_games_lack() -> None:
    """A method of one game alone is left out; of two of three it is in the table, and in no figure."""
    assert "fire" not in pooled([game(0), game(1, ["none", "full_reset"])]).index
    numbers = pooled([game(0), game(1), game(2, ["none", "full_reset"])])
    assert dict(numbers.tasks) == {"none": 3, "full_reset": 3, "fire": 2}
    canvas = drawing(numbers)
    assert canvas is not None
    labels = [label.get_text() for label in canvas.axes[0].get_yticklabels()]
    assert labels == ["No reset", "Full reset"]
    assert drawing(pooled([game(0), game(1)])) is None


def test_improvement_is_over_the_none_that_did_the_same_with_the_optimiser() -> None:
    kept, reset = ("none (optimizer_at_boundary=keep)", "none (optimizer_at_boundary=reset)")
    tasks = []
    for number in (0, 1):
        data = game(number, ["none", "fire"]).data
        worse = data[data.method == "none"].assign(method=reset, value=-1000.0)
        data = pd.concat([data.replace("none", kept).replace("fire", "fire (optimizer_at_boundary=reset)"), worse])
        tasks.append(Result("", data.reset_index(drop=True)))
    numbers = pooled(tasks)
    assert numbers.loc["fire (optimizer_at_boundary=reset)", IMPROVEMENT] == (1, 1, 1)
    assert numbers.loc[kept, IMPROVEMENT] is None
    assert numbers.loc[reset, IMPROVEMENT] is None


def test_improvement_of_runs_in_different_numbers() -> None:
    rng = np.random.default_rng(1)
    tasks = [
        (rng.integers(6, size=m).astype(float), rng.integers(6, size=n).astype(float)) for m, n in ((3, 5), (7, 2))
    ]
    middle, low, high = improvement(tasks)
    assert middle == pytest.approx(np.mean([probability(x, y) for x, y in tasks]))
    for x, y in tasks:  # Mann and Whitney's U, by which rliable computes it
        assert above(x, y) == pytest.approx(stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)))
    assert above(np.stack([tasks[0][0]] * 4), np.stack([tasks[0][1]] * 4)).shape == (4,)
    again = np.random.default_rng(2)
    plain = [
        np.mean([probability(again.choice(x, len(x)), again.choice(y, len(y))) for x, y in tasks]) for _ in range(2000)
    ]
    assert [low, high] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.03)
    assert improvement([(np.ones(3), np.ones(4))]) == (0.5, 0.5, 0.5)
    assert improvement([(np.ones(3), np.zeros(4))] * 2) == (1, 1, 1)


def test_against_rliable() -> None:
    """What rliable 1.2.0 gives for these scores, (runs, tasks), with 20,000 and 50,000 resamples. It was run with
    NumPy 2.4 and arch 7.2, and without its argument `random_state`, which arch refuses."""
    x = np.array([[1.0, 4, 2], [3, 5, 9], [2, 6, 4], [7, 1, 3], [5, 5, 8]])
    y = np.array([[2.0, 3, 4], [1, 5, 1], [3, 2, 6], [6, 2, 2]])
    middle, *interval = improvement(list(zip(x.T, y.T, strict=True)))
    assert middle == pytest.approx(0.65833333)
    assert interval == pytest.approx([0.44166667, 0.85833333], abs=0.02)
    middle, *interval = iqm(list(x.T))
    assert middle == pytest.approx(4.11111111)
    assert interval == pytest.approx([2.88888889, 5.55555556], abs=0.15)


def test_interquartile_mean_by_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(3)
    tasks = [rng.normal(size=5), rng.normal(size=8) + 1]
    middle, low, high = iqm(tasks)
    assert middle == pytest.approx(np.mean(np.sort(np.concatenate(tasks))[3:10]))
    plain = []
    for _ in range(2000):
        drawn = np.sort(np.concatenate([rng.choice(task, len(task)) for task in tasks]))
        plain.append(drawn[3:10].mean())
    assert [low, high] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.08)


def test_only_alike_results_are_pooled() -> None:
    """Of one scale, machine and choice of settings, and of recipes that are about a game."""
    other = game(2)
    other.data["machine"] = "another machine"
    assert [where for where, _ in pools([game(0), game(1), other])] == ["scale=laptop, a machine"]
    assert pools([game(0), other]) == []
    ablation = Result("x", game(1).data, "scale_factor")
    assert pools([game(0), ablation]) == []


@pytest.mark.parametrize("games", [2, 3])
def test_table_and_figure_on_the_page(games: int, tmp_path: Path) -> None:
    """The figure from three games on."""
    for number in range(games):
        game(number).write(tmp_path / "atari")
    report_all(tmp_path)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert page.count("figure of all tasks of atari together") == (games == 3)
    together = page.split("atari: all tasks together, scale=laptop, a machine")[1]
    (table,) = pd.read_html(io.StringIO(re.search(r"<table>.*?</table>", together, re.DOTALL)[0]))  # type: ignore[index]
    expected = as_text(pooled([game(number) for number in range(games)]))
    assert list(table.columns) == list(expected.columns)
    shown = table.set_index("method").loc["FIRE", IMPROVEMENT]
    assert shown == expected.set_index("method").loc["FIRE", IMPROVEMENT]
    assert shown.startswith(f"{probability(FINALS['fire'], FINALS['none']):.3f} [")
