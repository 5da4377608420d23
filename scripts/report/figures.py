"""Curves of runs, with the paper's beside them."""

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from scripts.report.domains import METHODS, Domain, base, colour, name, order
from scripts.report.missing import Unfinished, without
from scripts.report.tables import PAPER

# Share of all points that a panel of losses shows, and one with the paper's curves: what a reset does to the first few
# would hide the rest.
SHOWN = 0.9
# Of the variants of one method.
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("", "o", "^", "s", "x")
Panel = tuple[str, Callable[[Axes], None]]


def curves(data: pd.DataFrame, domain: Domain, unfinished: Sequence[Unfinished] = ()) -> Figure:
    """Our curves; the paper's over them at its own scale, in a panel of their own otherwise."""
    benchmark, scale = data.benchmark.iloc[0], data.scale.iloc[0]
    since = domain.since_boundary(benchmark)
    data = data.assign(x=data.step - (origins(data) if since else 0))
    finished = without(data, unfinished)
    panel = domain.panels.get(benchmark)
    seeds = finished.seed.nunique()
    ours = f"ours, scale={scale}, {seeds} seed{'s' if seeds > 1 else ''}"
    ours += f"\n{domain.warning}" if domain.warning and scale != "paper" else ""

    def own(metric: str, axes: Axes) -> None:
        draw(finished, metric, since, axes)
        draw_unfinished(data, unfinished, metric, since, domain, axes)

    drawn: list[Panel] = [(ours, partial(own, domain.metric))]
    if panel and scale == "paper":
        ours += f"\ndotted: the paper's {domain.figure}"
        ours += " (a level line: only the final value is known)" if "warm" in panel else ""
        drawn[0] = (ours, partial(draw_over, partial(own, domain.metric), panel, domain))
    elif panel:
        title = f"the paper's {domain.figure}, scale=paper" + (" (dotted: final value)" if "warm" in panel else "")
        drawn.append((title, partial(draw_paper, panel, domain.paper_step, linewidth=1.5)))
    for metric, (title, _) in domain.apart.items():
        drawn.append((f"ours, {title}", partial(own, metric)))
    if domain.before:
        drawn.append(("ours, before: phase 0 until the branch", partial(draw_before, data, domain.before)))
    canvas, panels = on_canvas(drawn, *((7.2, 4.2) if len(drawn) == 1 else ()))
    for axes, (title, _) in zip(panels, drawn, strict=True):
        counted = domain.steps + (" since the new data came" if since and "before" not in title else "")
        axes.set(xlabel=counted, ylabel=(domain.axis or domain.title) if "before" not in title else "loss")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 1M
        if axes.get_xlim()[1] < 10:  # of a few steps none has a fraction
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(canvas, panels[0])
    return canvas


def legend_below(canvas: Figure, axes: Axes) -> None:
    """One legend for all panels, of what `axes` has labels for."""
    lines, labels = axes.get_legend_handles_labels()
    if lines:
        columns = 3 if len(canvas.axes) == 1 else 5
        canvas.legend(lines, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def on_canvas(drawn: list[Panel], width: float = 5.2, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Panels with their titles, three in a row, or two where that leaves no gap."""
    columns = 2 if len(drawn) == 4 else min(len(drawn), 3)
    rows = -(-len(drawn) // columns)
    canvas, grid = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows + 0.4), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(drawn) :]:
        axes.set_visible(False)
    panels = list(grid.flat[: len(drawn)])
    for axes, (title, action) in zip(panels, drawn, strict=True):
        action(axes)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return canvas, panels


def save(canvas: Figure, path: Path) -> None:
    """As a file."""
    canvas.savefig(path, dpi=130)
    plt.close(canvas)


def svg(canvas: Figure) -> str:
    """As text, the same every time it is made."""
    with plt.rc_context({"svg.hashsalt": "fire"}):
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None})
    plt.close(canvas)
    return file.getvalue()


def origins(data: pd.DataFrame) -> pd.Series:
    """The step of the last boundary of the run that each line of `data` is of."""
    boundary = data[(data.phase == data.phase.max()) & data.at_boundary]
    first = boundary.groupby(["method", "seed"]).step.min().rename("origin")
    return data.join(first, on=["method", "seed"]).origin


def draw(data: pd.DataFrame, metric: str, since: bool, axes: Axes) -> None:
    """A metric over `x`: each seed faint, their mean strong."""
    tests = data[(data.metric == metric) & (data.x >= 0)]
    boundaries = data[data.at_boundary].x.unique()
    shared = boundaries[0] if len(boundaries) == 1 and not since else None
    methods = sorted(tests.method.unique(), key=order)
    for number, method in enumerate(methods):
        variants = [other for other in methods if base(other) == base(method)]
        turn, place = divmod(variants.index(method), len(DASHES))
        style, marker = DASHES[place], MARKERS[turn % len(MARKERS)]
        # At a boundary there are two tests at one step, before and after the reset: the curve drops there.
        seeds = tests[tests.method == method].sort_values(["x", "at_boundary"], kind="stable")
        if since:
            seeds = seeds[(seeds.x > 0) | seeds.at_boundary]
        elif shared is not None and number > 0:  # before it all methods are one
            seeds = seeds[seeds.x >= shared]
        curve = seeds.groupby(["x", "at_boundary"]).value.mean().reset_index()
        for _, one in seeds.groupby("seed"):
            axes.plot(one.x, one.value, linestyle=style, color=colour(method), alpha=0.25, linewidth=0.8)
        axes.plot(
            curve.x, curve.value, linestyle=style, marker=marker, markevery=0.1, color=colour(method),
            label=name(method), linewidth=2,
        )  # fmt: skip
    if tests.empty:
        axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center")
    if shared is not None:
        axes.axvline(shared, color="#888888", linewidth=1, linestyle=":")
        axes.annotate(" reset", (shared, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    if "loss" in metric and len(tests):
        low, high = tests.value.min(), tests.value.quantile(SHOWN)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))


def draw_unfinished(
    data: pd.DataFrame, unfinished: Sequence[Unfinished], metric: str, since: bool, domain: Domain, axes: Axes
) -> None:
    """Runs as far as they are, from a single boundary on: dashed, with an open end, which the legend explains."""
    several = data.seed.nunique() > 1
    for one in unfinished:
        run = data[(data.method == one.method) & (data.seed == one.seed)]
        boundaries = run[run.at_boundary].x.unique()
        if since or len(boundaries) == 1:
            run = run[(run.x > boundaries.max()) | run.at_boundary]
        curve = run[(run.metric == metric) & (run.x >= 0)].sort_values(["x", "at_boundary"], kind="stable")
        label = f"{name(one.method)}{f', seed {one.seed}' if several else ''} ({one.words(domain)})"
        axes.plot(
            curve.x, curve.value, linestyle=(0, (4, 1.5)), marker="o", markevery=[-1], markerfacecolor="white",
            markersize=7, color=colour(one.method), linewidth=1.6, label=label,
        )  # fmt: skip


def draw_before(data: pd.DataFrame, metrics: dict[str, str], axes: Axes) -> None:
    """Metrics of phase 0, one curve a seed: what all methods go on from."""
    before = data[data.phase == 0]
    before = before[before.method == before.method.iloc[0]]
    for (metric, label), style in zip(metrics.items(), ("--", "-"), strict=True):
        for number, (_, one) in enumerate(before[before.metric == metric].groupby("seed")):
            axes.plot(one.step, one.value, style, color="#555555", linewidth=1.2, label=label if number == 0 else None)
    axes.legend(frameon=False, fontsize=9)


def draw_paper(panel: str, step: float, axes: Axes, **style: Any) -> None:
    """The paper's curves of a panel, in which 1 on the x-axis is `step` steps."""
    figures = pd.read_csv(PAPER / "figures.csv").query(f"panel == '{panel}'")
    first = axes.figure.axes[0]
    for _, (label, tint, published) in METHODS.items():
        curve = figures[figures.method.isin(published)].sort_values("x")
        constant = len(curve) == 2 and curve.y.nunique() == 1  # the figure gives only its final value
        look = {"color": tint, **style, **({"linestyle": ":"} if constant else {})}
        axes.plot(step * curve.x, curve.y, **look)
        if len(curve) and not any(str(line.get_label()).startswith(label) for line in first.lines):
            if axes is first:  # over ours, and ours does not have it
                first.plot([], [], **look, label=f"{label} (the paper only)")
            else:
                first.plot([], [], color=tint, label=label, linewidth=2)


def draw_over(own: Callable[[Axes], None], panel: str, domain: Domain, axes: Axes) -> None:
    """Our curves with the paper's over them, dotted, with a white edge by which they show on ours."""
    own(axes)
    ours = heights(axes.lines)
    edge = [patheffects.withStroke(linewidth=3.5, foreground="white")]
    count = len(axes.lines)
    draw_paper(panel, domain.paper_step, axes, linestyle=":", linewidth=1.8, path_effects=edge)
    if domain.whole is None:  # returns begin low, and that is what they are about
        return
    theirs = heights(axes.lines[count:])
    if not (len(ours) and len(theirs)):
        return
    rising = "loss" not in domain.metric
    low = min(np.quantile(ours, 1 - SHOWN) if rising else ours.min(), theirs.min())
    high = max(ours.max() if rising else np.quantile(ours, SHOWN), theirs.max())
    axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))


def heights(lines: Sequence[Line2D]) -> np.ndarray:
    """The y-values of all points of some lines that are finite."""
    values = np.concatenate([np.array([]), *(np.asarray(line.get_ydata(), dtype=float) for line in lines)])
    return values[np.isfinite(values)]
