"""Curves of a result, with the paper's beside them."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from scripts.report.methods import METHODS, base, colour, name, order
from scripts.report.results import Result
from scripts.report.tables import PAPER

matplotlib.rcParams.update({"svg.hashsalt": "fire", "svg.fonttype": "none"})  # the same text every time, and small
# Share of all points that a panel of losses shows, and one with the paper's curves: the first few after a reset would
# hide the rest.
SHOWN = 0.9
LOOKS = list(product(("", "o", "^", "s", "x"), ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))))  # of variants
ALWAYS = {"none", "shrink_perturb", "full_reset", "plasticity_injection", "fire"}  # of the paper's curves
Panel = tuple[str, Callable[[Axes], None]]


def curves(result: Result) -> Figure:
    """Our curves; the paper's over them at scale=paper, beside them otherwise."""
    spec, scale, count = result.spec, result.first.scale, result.finished.seed.nunique()
    panel = spec.panels.get(result.first.benchmark)
    level = bool(panel and "warm" in panel)  # of some methods the paper gives only the final value
    ours = f"ours, scale={scale}, {count} seed{'s' if count > 1 else ''}"
    theirs = f"the paper's {spec.figure}"
    draw_ours = partial(draw, result, spec.metric)
    if panel and scale == "paper":
        ours += f"\ndotted: {theirs}" + (" (a level line: only the final value is known)" if level else "")
        draw_ours = partial(draw_over, result, panel)
    elif spec.warning and scale != "paper":
        ours += f"\n{spec.warning}"
    drawn: list[Panel] = [(ours, draw_ours)]
    if panel and scale != "paper":
        theirs += ", scale=paper" + (" (dotted: final value)" if level else "")
        drawn.append((theirs, partial(draw_paper, result, panel, linewidth=1.5)))
    drawn += [(f"ours, {title}", partial(draw, result, metric)) for metric, (title, _) in spec.apart.items()]
    if spec.before:
        drawn.append(("ours, before: phase 0 until the branch", partial(draw_before, result)))
    canvas, panels = on_canvas(drawn, *((7.2, 4.2) if len(drawn) == 1 else ()))
    for axes, (title, _) in zip(panels, drawn, strict=True):
        before = "before" in title
        since = not before and not spec.from_start(result.first.benchmark)
        axes.set_xlabel(spec.steps + (" since the new data came" if since else ""))
        axes.set_ylabel("loss" if before else spec.axis or spec.title)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 1M
        if axes.get_xlim()[1] < 10:  # a few steps have no fractions
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return canvas


def on_canvas(drawn: Sequence[Panel], width: float = 5.2, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Panels with their titles, three in a row, or two where that leaves no gap, and the legend of the first below."""
    columns = 2 if len(drawn) == 4 else min(len(drawn), 3)
    rows = -(-len(drawn) // columns)
    canvas = Figure(figsize=(width * columns, height * rows + 0.4), layout="constrained")
    panels = [canvas.add_subplot(rows, columns, number) for number in range(1, len(drawn) + 1)]
    for axes, (title, action) in zip(panels, drawn, strict=True):
        action(axes)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    lines, labels = panels[0].get_legend_handles_labels()
    if lines:
        across = 3 if len(panels) == 1 else 5
        canvas.legend(lines, labels, loc="outside lower center", ncols=across, frameon=False, fontsize=9)
    return canvas, panels


def draw(result: Result, metric: str, axes: Axes) -> None:
    """A metric: each seed faint, the mean of the seeds strong; unfinished runs as far as they are."""
    since = not result.spec.from_start(result.first.benchmark)
    data = result.data.assign(x=result.places)
    boundaries = data[data.at_boundary].x.unique()
    shared = boundaries[0] if len(boundaries) == 1 and not since else None  # before it all methods are one
    # At a boundary there are two evaluations at one step, before and after the reset: the curve drops there.
    data = data[(data.metric == metric) & (data.x >= 0)].sort_values(["x", "at_boundary"], kind="stable")
    data = data[(data.x > 0) | data.at_boundary] if since else data
    finished = data[data.index.isin(result.finished.index)]
    if finished.empty:
        axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center")
    methods = sorted(finished.method.unique(), key=order)
    for method in methods:
        variants = [other for other in methods if colour(other) == colour(method)]
        marker, dash = LOOKS[variants.index(method) % len(LOOKS)]
        look: dict[str, Any] = {"linestyle": dash, "color": colour(method)}
        seeds = finished[finished.method == method]
        if shared is not None and method != methods[0]:
            seeds = seeds[seeds.x >= shared]
        for _, one in seeds.groupby("seed"):
            axes.plot(one.x, one.value, alpha=0.25, linewidth=0.8, **look)
        mean = seeds.groupby(["x", "at_boundary"]).value.mean().reset_index()
        axes.plot(mean.x, mean.value, marker=marker, markevery=0.1, label=name(method), linewidth=2, **look)
    for method, seed in result.under_way:
        one = data[(data.method == method) & (data.seed == seed)]
        if shared is not None:
            one = one[(one.x > shared) | one.at_boundary]
        several = f", seed {seed}" if data.seed.nunique() > 1 else ""
        axes.plot(
            one.x, one.value, linestyle=(0, (4, 1.5)), marker="o", markevery=[-1], markerfacecolor="white",
            markersize=7, color=colour(method), linewidth=1.6,
            label=f"{name(method)}{several} ({result.progress(method, seed)})",
        )  # fmt: skip
    if shared is not None:
        axes.axvline(shared, color="#888888", linewidth=1, linestyle=":")
        axes.annotate(" reset", (shared, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    if "loss" in metric and len(finished):
        limit(axes, finished.value.min(), finished.value.quantile(SHOWN))


def draw_before(result: Result, axes: Axes) -> None:
    """Metrics of phase 0, one curve a seed: from where all methods continue."""
    before = result.data[(result.data.phase == 0) & (result.data.method == result.first.method)]
    for (metric, label), style in zip(result.spec.before.items(), ("--", "-"), strict=True):
        for number, (_, one) in enumerate(before[before.metric == metric].groupby("seed")):
            axes.plot(one.step, one.value, style, color="#555555", linewidth=1.2, label=label if number == 0 else None)
    axes.legend(frameon=False, fontsize=9)


def draw_paper(result: Result, panel: str, axes: Axes, **style: Any) -> None:
    """The paper's curves of a panel."""
    published, first = pd.read_csv(PAPER / "figures.csv").query("panel == @panel"), axes.figure.axes[0]
    ours = ALWAYS.union(map(base, result.data.method.unique()))
    for shown in (METHODS[method] for method in METHODS if method in ours):
        curve = published[published.method.isin(shown.published)].sort_values("x")
        look = {"color": shown.colour, **style}
        if len(curve) == 2 and curve.y.nunique() == 1:  # the figure gives only its final value
            look["linestyle"] = ":"
        axes.plot(result.spec.paper_step * curve.x, curve.y, **look)
        if len(curve) and not any(str(line.get_label()).startswith(shown.name) for line in first.lines):
            if axes is first:  # over ours, and ours does not have it
                first.plot([], [], **look, label=f"{shown.name} (the paper only)")
            else:
                first.plot([], [], color=shown.colour, label=shown.name, linewidth=2)


def draw_over(result: Result, panel: str, axes: Axes) -> None:
    """Our curves with the paper's over them, dotted, with a white edge by which they show on ours."""
    draw(result, result.spec.metric, axes)
    ours, count = heights(axes.lines), len(axes.lines)
    edge = [patheffects.withStroke(linewidth=3.5, foreground="white")]
    draw_paper(result, panel, axes, linestyle=":", linewidth=1.8, path_effects=edge)
    theirs = heights(axes.lines[count:])
    if "return" in result.spec.metric or not (len(ours) and len(theirs)):  # returns begin low, which is to be seen
        return
    falling = "loss" in result.spec.metric
    low, high = np.quantile(ours, (0, SHOWN) if falling else (1 - SHOWN, 1))
    limit(axes, min(low, theirs.min()), max(high, theirs.max()))


def limit(axes: Axes, low: Any, high: Any) -> None:
    """Let the y-axis show these values with some room around them."""
    axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))


def heights(lines: Sequence[Line2D]) -> np.ndarray:
    """The y-values of all points of some lines that are finite."""
    values = np.concatenate([np.array([]), *(np.asarray(line.get_ydata(), dtype=float) for line in lines)])
    return values[np.isfinite(values)]
