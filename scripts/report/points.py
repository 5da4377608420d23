"""One number a run, by method or over a setting of it, where a recipe's point is not the way its curves go."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.report.figures import Panel, legend_below, on_canvas
from scripts.report.methods import base, colour, name
from scripts.report.results import Result
from scripts.report.statistics import after_reset, by_seed, interval, sample
from scripts.report.tables import PAPER, paper_finals
from scripts.report.views import AFTER_RESET, View

Values = Mapping[str, np.ndarray]  # of a method, one for each seed
JITTER = 0.12  # of the seeds, so that equal ones show
MAGNITUDES = 50  # between the smallest and the largest value, from which on the axis is logarithmic
PAPERS_PANEL = "warm_cifar10_resnet18"  # whose ablations are in results/paper


def points(result: Result, view: View) -> Figure:
    """Final value, mean over the last phase and what the view measures after the reset; then the paper's values."""
    spec, scale = result.spec, result.first.scale
    final, mean = by_seed(result.finished, spec.metric)
    methods = list(final.index)
    panels = [(f"ours, scale={scale}: final {spec.title}", final), (f"ours: mean {spec.title} of the last phase", mean)]
    panels += [(f"ours: {AFTER_RESET[metric]}", after_reset(result.finished, metric)) for metric in view.measured]
    draw = partial(over_setting, view) if view.axis else by_method
    drawn: list[Panel] = [(title, partial(draw, {m: sample(table, m) for m in methods})) for title, table in panels]
    if view.figure and spec.panels.get(result.first.benchmark) == PAPERS_PANEL:
        title = f"the paper's {view.figure}, scale=paper: "
        if view.axis:
            published = paper_finals(result)[["final"]]
            drawn.append((f"{title}final {spec.title}", partial(draw, {m: sample(published, m) for m in methods})))
        else:
            drawn += [(title + AFTER_RESET[metric], partial(paper_values, methods, metric)) for metric in view.measured]
    canvas, shown = on_canvas(drawn, height=2.6 if view.axis else max(2.6, 0.6 + 0.36 * len(methods)))
    if not view.axis:  # the methods' names once a row
        for axes in shown:
            axes.tick_params(labelleft=axes.get_subplotspec().is_first_col())  # type: ignore[union-attr]
    legend_below(canvas, shown[0])
    return canvas


def by_method(values: Values, axes: Axes) -> None:
    """Methods one below the other."""
    for place, (method, seeds) in enumerate(values.items()):
        dots(seeds, place, colour(method), spans_magnitudes(values), axes, sideways=True)
    rows_of_methods(list(values), axes)
    if spans_magnitudes(values):
        axes.set_xscale("log")
        axes.set_xlabel("logarithmic, without intervals", fontsize=8)


def over_setting(view: View, values: Values, axes: Axes) -> None:
    """Methods over a setting of theirs; those without it are lines across with their intervals, and so is `none`."""
    known = {method: place for method, place in view.places if method in values}
    ticks, means = list(known.values()), {}
    for method, seeds in values.items():
        if len(seeds) and (method not in known or base(method) == "none"):
            axes.axhline(seeds.mean(), color=colour(method), linestyle="--", linewidth=1.2, label=name(method))
            if len(seeds) > 1:
                low, high = seeds.mean() - interval(seeds), seeds.mean() + interval(seeds)
                axes.axhspan(low, high, color=colour(method), alpha=0.08)
        if len(seeds) and method in known:
            place = ticks.index(known[method])
            means[place] = seeds.mean()
            dots(seeds, place, colour(method), spans_magnitudes(values), axes)
    axes.plot(sorted(means), [means[place] for place in sorted(means)], color=colour("fire"), linewidth=1, zorder=1)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel(view.axis)
    if spans_magnitudes(values):
        axes.set_yscale("log")
        axes.set_ylabel("logarithmic, without intervals", fontsize=8)


def dots(seeds: np.ndarray, place: int, tint: str, logarithmic: bool, axes: Axes, sideways: bool = False) -> None:
    """Each seed a dot, their mean a bar, with its 95 % t-interval unless the axis is logarithmic: there an interval that
    is symmetric misleads."""
    if not len(seeds):
        return
    beside = place + (np.linspace(-JITTER, JITTER, len(seeds)) if len(seeds) > 1 else np.zeros(1))
    half = 0.0 if logarithmic or len(seeds) < 2 else interval(seeds)
    style: dict[str, Any] = {"color": tint, "markeredgewidth": 2, "capsize": 3}
    if sideways:
        axes.plot(seeds, beside, "o", color=tint, alpha=0.5, markersize=4)
        axes.errorbar(seeds.mean(), place, xerr=half, fmt="|", markersize=14, **style)
    else:
        axes.plot(beside, seeds, "o", color=tint, alpha=0.5, markersize=4)
        axes.errorbar(place, seeds.mean(), yerr=half, fmt="_", markersize=12, **style)


def paper_values(methods: Sequence[str], metric: str, axes: Axes) -> None:
    """Values of the paper with the ends of its error bars, methods one below the other."""
    known = pd.read_csv(PAPER / "after_reset.csv")
    known = known.fillna({"low": known.value, "high": known.value})
    for row in known[(known.metric == metric) & known.method.isin(methods)].itertuples():
        bar = [[row.value - row.low], [row.high - row.value]]
        axes.errorbar(row.value, methods.index(row.method), xerr=bar, fmt="D", color=colour(row.method), capsize=3)
    rows_of_methods(methods, axes)


def rows_of_methods(methods: Sequence[str], axes: Axes) -> None:
    """A row of the panel for each method."""
    axes.set_yticks(range(len(methods)), [name(method) for method in methods], fontsize=9)
    axes.set_ylim(len(methods) - 0.5, -0.5)


def spans_magnitudes(values: Values) -> bool:
    """Whether only a logarithmic axis shows all values."""
    everything = np.concatenate([*values.values(), np.array([])])
    return bool(len(everything) and everything.min() > 0 and everything.max() > MAGNITUDES * everything.min())
