"""Several games or tasks of a domain together, by the statistics of Agarwal et al. (2021) for few seeds and several
tasks: interquartile mean, and probability of improvement over no reset.

They are computed here and not by the authors' package. rliable 1.2.0 wants the same number of runs of every task, which
a recipe that is not complete does not have; with arch 7.2, the newest that it allows, its intervals end in a TypeError;
and it needs nine more packages.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.report.figures import on_canvas
from scripts.report.methods import VIEWS, colour, name, order
from scripts.report.points import rows_of_methods
from scripts.report.results import Result
from scripts.report.tables import RESAMPLES, Estimate, by_seed, estimate, iqm, none_beside, normalised

DRAWN_FROM = 3  # tasks
IMPROVEMENT = "probability of improvement over no reset"


def pools(results: Sequence[Result]) -> list[tuple[str, pd.DataFrame]]:
    """Pooled numbers of a domain's games or tasks, for each scale, machine and choice of settings that has several."""
    alike: dict[str, list[Result]] = {}
    for result in results:
        if result.spec.normalised and result.recipe not in ("", *VIEWS):
            where = f"scale={result.first.scale}, {result.first.machine}"
            alike.setdefault(where + (f", {result.changed}" if result.changed else ""), []).append(result)
    found = {where: pooled(tasks) for where, tasks in sorted(alike.items())}
    return [(where, numbers) for where, numbers in found.items() if len(numbers)]


def pooled(results: Sequence[Result]) -> pd.DataFrame:
    """By method, of all that have more than one task: how many tasks and runs, and the estimates of the interquartile
    mean of the final value, each task's on its own scale, and of the improvement over no reset, None for no reset."""
    scores = [normalised(result, by_seed(result.finished, result.spec.metric)[0]) for result in results]
    lines = {}
    for method in sorted({method for task in scores for method in task.index}, key=order):
        tasks = [task for task in scores if method in task.index and task.loc[method].notna().any()]
        if len(tasks) > 1:
            own = [runs(task, method) for task in tasks]
            nones = [none_beside(method, task.index) for task in tasks]
            pairs = [(x, runs(task, none)) for x, task, none in zip(own, tasks, nones, strict=True) if none is not None]
            pairs = [(x, y) for x, y in pairs if len(y)]
            improved = improvement(pairs) if pairs else None
            lines[method] = [len(own), sum(map(len, own)), iqm(own), improved]
    column = f"IQM, {results[0].spec.normalised[0]}"  # type: ignore[index]
    return pd.DataFrame.from_dict(lines, orient="index", columns=["tasks", "runs", column, IMPROVEMENT])


def runs(task: pd.DataFrame, method: str) -> np.ndarray:
    """The scores of a method's runs."""
    return task.loc[method].dropna().to_numpy()


def improvement(tasks: Sequence[tuple[np.ndarray, np.ndarray]]) -> Estimate:
    """Probability that a run of a method is above a run of another, ties counting half: of all pairs of runs of a task,
    and the mean over tasks. The interval is that of a bootstrap that draws the runs of each task and each method
    apart, as there, though here methods of one seed share their phase 0.

    Args:
        tasks: of each task the scores of both, which may be different numbers of runs.
    """
    rng = np.random.default_rng(0)
    draws = [[rng.choice(runs, (RESAMPLES, len(runs))) for runs in pair] for pair in tasks]
    low, high = np.quantile(np.mean([above(x, y) for x, y in draws], axis=0), [0.025, 0.975])
    return float(np.mean([above(x, y) for x, y in tasks])), low, high


def above(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of the pairs, one of x (..., m) and one of y (..., n), in which x is above y, ties counting half: (...)."""
    signs = np.sign(x[..., :, None] - y[..., None, :])
    return (signs.mean(axis=(-2, -1)) + 1) / 2


def as_text(numbers: pd.DataFrame) -> pd.DataFrame:
    """Pooled numbers for a table."""
    estimates = numbers.columns[2:]
    text = numbers.astype({"tasks": str, "runs": str})
    for column in estimates:
        text[column] = ["" if cell is None else estimate(cell, decimals=3) for cell in numbers[column]]
    text.insert(0, "method", [name(method) for method in numbers.index])
    return text


def drawing(numbers: pd.DataFrame) -> Figure | None:
    """The estimates with their intervals, of the methods that have all tasks; None for fewer than DRAWN_FROM tasks."""
    if numbers.tasks.max() < DRAWN_FROM:
        return None
    shown = numbers[numbers.tasks == numbers.tasks.max()]
    titles = {column: f"{column}, {numbers.tasks.max()} tasks" for column in numbers.columns[2:]}
    drawn = [(title, partial(intervals, shown[column])) for column, title in titles.items()]
    canvas, (_, improved) = on_canvas(drawn, height=max(2.6, 0.6 + 0.36 * len(shown)))
    improved.axvline(0.5, color="#888888", linewidth=1, linestyle=":")  # as often above as below
    improved.set_xlim(-0.02, 1.02)
    improved.tick_params(labelleft=False)
    return canvas


def intervals(estimates: pd.Series, axes: Axes) -> None:
    """Methods one below the other."""
    for place, (method, numbers) in enumerate(estimates.items()):
        if numbers is not None:
            middle, low, high = numbers
            bars = [[middle - low], [high - middle]]
            axes.errorbar(middle, place, xerr=bars, fmt="o", color=colour(str(method)), capsize=3, markersize=6)
    rows_of_methods(estimates.index, axes)
