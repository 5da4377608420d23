"""One number a run, by method or over a setting of it, where a recipe's point is not the way its curves go."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.report.domains import Domain, base, colour, name, order, setting
from scripts.report.figures import Panel, legend_below, on_canvas
from scripts.report.tables import PAPER, after_reset, by_seed, interval, paper_finals
from scripts.report.views import AFTER_RESET, View

Values = Mapping[str, np.ndarray]  # of a method, one for each seed
JITTER = 0.12  # of the seeds, so that equal ones show
MAGNITUDES = 50
WITHOUT_INTERVALS = "logarithmic, without intervals"
PAPERS_PANEL = "warm_cifar10_resnet18"  # that whose ablations are in results/paper


def points(data: pd.DataFrame, domain: Domain, view: View) -> Figure:
    """Final value, mean over the last phase and what the view measures after the reset; then the paper's values."""
    methods = sorted(data.method.unique(), key=order)
    draw = partial(over_setting, view, methods) if view.setting else partial(by_method, methods)
    scale = data.scale.iloc[0]
    final, mean = ({m: row.dropna().to_numpy() for m, row in part.iterrows()} for part in by_seed(data, domain.metric))
    drawn: list[Panel] = [
        (f"ours, scale={scale}: final {domain.title}", partial(draw, final)),
        (f"ours: mean {domain.title} of the last phase", partial(draw, mean)),
    ]
    drawn += [(f"ours: {AFTER_RESET[metric]}", partial(draw, after_reset(data, metric))) for metric in view.measured]
    if view.figure and domain.panels.get(data.benchmark.iloc[0]) == PAPERS_PANEL:
        drawn += papers(domain, data.benchmark.iloc[0], view, methods)
    shown = 0 if view.setting else len(methods)
    canvas, panels = on_canvas(drawn, height=max(2.6, 0.6 + 0.36 * shown))
    if not view.setting:  # the methods' names once a row
        for axes in panels:
            axes.tick_params(labelleft=axes.get_subplotspec().is_first_col())  # type: ignore[union-attr]
    legend_below(canvas, panels[0])
    return canvas


def papers(domain: Domain, benchmark: str, view: View, methods: list[str]) -> list[Panel]:
    """The paper's panels of the figure."""
    title = f"the paper's {view.figure}, scale=paper: "
    if view.setting:
        finals = {method: np.array([value]) for method, value in paper_finals(domain, benchmark).items()}
        return [(f"{title}final {domain.title}", partial(over_setting, view, methods, finals))]
    known = pd.read_csv(PAPER / "after_reset.csv")
    return [
        (title + AFTER_RESET[metric], partial(published, methods, known[known.metric == metric]))
        for metric in view.measured
    ]


def published(methods: list[str], rows: pd.DataFrame, axes: Axes) -> None:
    """Values of the paper with the ends of its error bars, methods one below the other."""
    for row in rows.fillna({"low": rows.value, "high": rows.value}).to_dict("records"):
        bar = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        if row["method"] not in methods:
            continue
        place = methods.index(row["method"])
        axes.errorbar(row["value"], place, xerr=bar, fmt="D", color=colour(row["method"]), capsize=3)
    rows_of_methods(methods, axes)


def rows_of_methods(methods: list[str], axes: Axes) -> None:
    """A row of the panel for each method."""
    axes.set_yticks(range(len(methods)), [name(method) for method in methods], fontsize=9)
    axes.set_ylim(len(methods) - 0.5, -0.5)


def by_method(methods: list[str], values: Values, axes: Axes) -> None:
    """Methods one below the other: each seed a dot, their mean a bar, with its 95 % t-interval where the axis is not
    logarithmic."""
    bar = no_bar if spans_magnitudes(values) else half_width
    for place, method in enumerate(methods):
        sample = values.get(method, np.array([]))
        if not len(sample):
            continue
        axes.plot(sample, place + _spread_out(sample), "o", color=colour(method), alpha=0.5, markersize=4)
        axes.errorbar(
            sample.mean(), place, xerr=bar(sample), fmt="|", color=colour(method), markersize=14, markeredgewidth=2,
            capsize=3,
        )  # fmt: skip
    rows_of_methods(methods, axes)
    if spans_magnitudes(values):
        axes.set_xscale("log")
        axes.set_xlabel(WITHOUT_INTERVALS, fontsize=8)


def spans_magnitudes(values: Values) -> bool:
    """Whether only a logarithmic axis shows them all."""
    everything = np.concatenate([*values.values(), np.array([])])
    return bool(len(everything) and everything.min() > 0 and everything.max() > MAGNITUDES * everything.min())


def over_setting(view: View, methods: list[str], values: Values, axes: Axes) -> None:
    """Methods over a setting of theirs; those without it are lines across with their intervals."""
    placed = {m: setting(m, view.setting) or dict(view.places).get(m) for m in methods}
    words = sorted({word for word in placed.values() if word}, key=_numeric)
    across = [m for m, word in placed.items() if word is None or base(m) == "none"]
    for method in across:
        sample = values.get(method, np.array([]))
        if len(sample):
            axes.axhline(sample.mean(), color=colour(method), linestyle="--", linewidth=1.2, label=name(method))
            if len(sample) > 1:
                half = interval(sample)
                axes.axhspan(sample.mean() - half, sample.mean() + half, color=colour(method), alpha=0.08)
    means = {}
    bar = no_bar if spans_magnitudes(values) else half_width
    for method, word in placed.items():
        sample = values.get(method, np.array([]))
        if word is None or not len(sample):
            continue
        place = words.index(word)
        means[place] = sample.mean()
        axes.plot(place + _spread_out(sample), sample, "o", color=colour(method), alpha=0.5, markersize=4)
        axes.errorbar(
            place, sample.mean(), yerr=bar(sample), fmt="_", color=colour(method), markersize=12, markeredgewidth=2,
            capsize=3,
        )  # fmt: skip
    axes.plot(sorted(means), [means[place] for place in sorted(means)], color=colour("fire"), linewidth=1, zorder=1)
    axes.set_xticks(range(len(words)), words)
    axes.set_xlim(-0.5, len(words) - 0.5)
    axes.set_xlabel(view.setting)
    if spans_magnitudes(values):
        axes.set_yscale("log")
        axes.set_ylabel(WITHOUT_INTERVALS, fontsize=8)


def _numeric(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return float("inf")


def half_width(sample: np.ndarray) -> float:
    """Of the interval; 0 of a single value."""
    return interval(sample) if len(sample) > 1 else 0.0


def no_bar(sample: np.ndarray) -> float:
    """On a logarithmic axis, where an interval that is symmetric misleads, the seeds speak for themselves."""
    return 0.0


def _spread_out(sample: np.ndarray) -> np.ndarray:
    return np.linspace(-JITTER, JITTER, len(sample)) if len(sample) > 1 else np.zeros(1)
