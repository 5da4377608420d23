"""One number a run, by method or over a setting of it, where a recipe's point is not the way its curves go."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.report.figures import Panel, on_canvas
from scripts.report.methods import AFTER_RESET, VIEWS, View, base, colour, name
from scripts.report.results import Result
from scripts.report.tables import PAPER, after_reset, by_seed, interval, paper_finals

JITTER = 0.12  # of the seeds, so that equal ones show
MAGNITUDES = 50  # between the smallest and the largest value, from which on the axis is logarithmic
LOGARITHMIC = "logarithmic, without intervals"  # a symmetric interval would mislead there
PAPERS_PANEL = "warm_cifar10_resnet18"  # whose ablations are in results/paper


def points(result: Result) -> Figure:
    """Final value, mean over the last phase and what its view measures after the reset; then the paper's values."""
    spec, scale, view = result.spec, result.first.scale, VIEWS[result.recipe]
    final, mean = by_seed(result.finished, spec.metric)
    panels = {f"ours, scale={scale}: final {spec.title}": final, f"ours: mean {spec.title} of the last phase": mean}
    after = {metric: after_reset(result.finished, metric) for metric in view.measured}
    panels |= {f"ours: {AFTER_RESET[metric]}": table for metric, table in after.items() if len(table)}
    papers = view.figure and spec.panels.get(result.first.benchmark) == PAPERS_PANEL
    title = f"the paper's {view.figure}, scale=paper: "
    if papers and view.axis:
        panels[f"{title}final {spec.title}"] = paper_finals(result)[["final"]]
    draw = partial(over_setting, view) if view.axis else by_method
    drawn: list[Panel] = [(text, partial(draw, table.reindex(final.index))) for text, table in panels.items()]
    if papers and not view.axis:
        known = pd.read_csv(PAPER / "after_reset.csv").metric.unique()
        measured = [metric for metric in view.measured if metric in known]
        drawn += [(title + AFTER_RESET[metric], partial(paper_values, final.index, metric)) for metric in measured]
    canvas, shown = on_canvas(drawn, height=2.6 if view.axis else max(2.6, 0.6 + 0.36 * len(final)))
    if not view.axis:  # the methods' names once a row
        for axes in shown:
            axes.tick_params(labelleft=axes.get_subplotspec().is_first_col())  # type: ignore[union-attr]
    return canvas


def by_method(values: pd.DataFrame, axes: Axes) -> None:
    """Methods one below the other."""
    for place, method in enumerate(values.index):
        dots(values, method, place, axes, sideways=True)
    rows_of_methods(values.index, axes)
    if spans_magnitudes(values):
        axes.set_xscale("log")
        axes.set_xlabel(LOGARITHMIC, fontsize=8)


def over_setting(view: View, values: pd.DataFrame, axes: Axes) -> None:
    """Methods over a setting of theirs; those without it are lines across with their intervals, and so is `none`."""
    ticks = {method: tick for method, tick in view.places.items() if method in values.index}
    for method in (method for method in values.index if method not in ticks or base(method) == "none"):
        seeds = values.loc[method].dropna().to_numpy()
        if len(seeds):
            axes.axhline(seeds.mean(), color=colour(method), linestyle="--", linewidth=1.2, label=name(method))
        if len(seeds) > 1:
            low, high = seeds.mean() - interval(seeds), seeds.mean() + interval(seeds)
            axes.axhspan(low, high, color=colour(method), alpha=0.08)
    for place, method in enumerate(ticks):
        dots(values, method, place, axes)
    means = values.loc[list(ticks)].mean(axis=1).set_axis(range(len(ticks))).dropna()
    axes.plot(means.index, means, color=colour("fire"), linewidth=1, zorder=1)
    axes.set_xticks(range(len(ticks)), list(ticks.values()))
    axes.set(xlim=(-0.5, len(ticks) - 0.5), xlabel=view.axis)
    if spans_magnitudes(values):
        axes.set_yscale("log")
        axes.set_ylabel(LOGARITHMIC, fontsize=8)


def dots(values: pd.DataFrame, method: str, place: int, axes: Axes, sideways: bool = False) -> None:
    """Each seed of a method a dot, their mean a bar, with its 95 % t-interval unless the axis is logarithmic."""
    seeds = values.loc[method].dropna().to_numpy()
    if not len(seeds):
        return
    beside = place + (np.linspace(-JITTER, JITTER, len(seeds)) if len(seeds) > 1 else np.zeros(1))
    half = 0.0 if spans_magnitudes(values) or len(seeds) < 2 else interval(seeds)
    x, y = (seeds, beside) if sideways else (beside, seeds)
    axes.plot(x, y, "o", color=colour(method), alpha=0.5, markersize=4)
    at = {"x": seeds.mean(), "y": place, "xerr": half} if sideways else {"x": place, "y": seeds.mean(), "yerr": half}
    marker, size = ("|", 14) if sideways else ("_", 12)
    axes.errorbar(**at, fmt=marker, markersize=size, color=colour(method), markeredgewidth=2, capsize=3)


def paper_values(methods: pd.Index, metric: str, axes: Axes) -> None:
    """Values of the paper with the ends of its error bars, methods one below the other."""
    known = pd.read_csv(PAPER / "after_reset.csv").query("metric == @metric").set_index("method").reindex(methods)
    bars = np.nan_to_num([known.value - known.low, known.high - known.value])
    for place, method in enumerate(methods):
        axes.errorbar(
            known.value[method], place, xerr=bars[:, [place]], fmt="D", color=colour(method), capsize=3
        )  # fmt: skip
    rows_of_methods(methods, axes)


def rows_of_methods(methods: pd.Index, axes: Axes) -> None:
    """A row of the panel for each method."""
    axes.set_yticks(range(len(methods)), [name(method) for method in methods], fontsize=9)
    axes.set_ylim(len(methods) - 0.5, -0.5)


def spans_magnitudes(values: pd.DataFrame) -> bool:
    """Whether only a logarithmic axis shows all values."""
    low, high = values.min().min(), values.max().max()
    return bool(low > 0 and high > MAGNITUDES * low)
