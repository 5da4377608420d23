"""Tables of a result: final numbers by method, differences paired by seed, and the paper's beside them.

Numbers are kept as frames of methods by seeds, and a cell of a table is the mean of a line with its 95 % t-interval.
"""

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from scripts.report.methods import AFTER_RESET, ALWAYS, VIEWS, View, base, name, order
from scripts.report.results import Result

RESAMPLES = 10_000
OPTIMIZER = re.compile(r"(?:, )?optimizer_at_boundary=\w+")
# How exactly the paper's figures can be read: accuracies and losses, and returns, which are larger, relatively.
READING, READING_OF_RETURNS, RETURNS = 0.002, 0.02, 20
Estimate = tuple[float, float, float]
"""A number and the ends of its 95 % interval."""
PAPER = Path(__file__).parents[2] / "results" / "paper"


def by_method(result: Result) -> pd.DataFrame:
    """Final value of the domain's metric and its mean over the last phase, with differences to `none` paired by seed;
    then its further metrics, what a view measures after the reset, and the paper's final value."""
    spec, data, view = result.spec, result.finished, VIEWS.get(result.recipe, View(measured=()))
    final, mean = by_seed(data, spec.metric)
    gaps, published = minus_none(final), paper_finals(result)
    theirs = published.reindex([plain(method) for method in final.index]).set_axis(final.index)
    against = {m: compared(gaps.loc[m].to_numpy(), theirs.final[m], published.final.get("none")) for m in final.index}
    columns = {
        "method": pd.Series(map(name, final.index), final.index),
        "seeds": data.groupby("method").seed.nunique().astype(str),
        "final": cells(final, spec.decimals),
        "mean of last phase": cells(mean, spec.decimals),
        "final minus no reset": cells(gaps, spec.decimals, sign=True),
        "paper's final (scale=paper)": theirs.text,
        "against the paper": pd.Series(against),
        "mean minus no reset": cells(minus_none(mean), spec.decimals, sign=True),
    }
    if spec.normalised:
        columns[f"final, {spec.normalised[0]}"] = cells(normalised(result, final))
    for metric, (_, column) in spec.apart.items():
        apart, apart_mean = by_seed(data, metric)
        columns[f"final, {column}"] = cells(apart, spec.decimals)
        columns[f"{column} minus no reset"] = cells(minus_none(apart), spec.decimals, sign=True)
        columns[f"mean of last phase, {column}"] = cells(apart_mean, spec.decimals)
        columns[f"mean of {column} minus no reset"] = cells(minus_none(apart_mean), spec.decimals, sign=True)
    known = pd.read_csv(PAPER / "after_reset.csv").set_index("method")
    for metric in [*ALWAYS, *view.measured]:
        columns[AFTER_RESET[metric]] = cells(after_reset(data, metric), decimals=None)
        if view.figure and not view.axis:
            columns[f"the paper's {AFTER_RESET[metric]}"] = known[known.metric == metric].value.map("{:g}".format)
    finals = {method: line.dropna().to_numpy() for method, line in final.iterrows()}
    iqms = {method: estimate(iqm([seeds]), spec.decimals) for method, seeds in finals.items() if len(seeds) >= 5}
    columns["IQM of final"] = pd.Series(iqms, dtype=object)
    return without_empty(pd.DataFrame(columns, index=final.index))


def pairs(result: Result) -> pd.DataFrame:
    """Differences between every two methods but `none`, paired by seed: of the final value and of the mean over the
    last phase, of the domain's metric and its further ones."""
    spec, data = result.spec, result.finished
    values = {}
    for metric, column in {spec.metric: "", **{key: f", {column}" for key, (_, column) in spec.apart.items()}}.items():
        values[f"final{column}"], values[f"mean of last phase{column}"] = by_seed(data, metric)
    final = values["final"]
    lines = []
    for first, second in itertools.combinations([method for method in final.index if base(method) != "none"], 2):
        gaps = {column: table.loc[second] - table.loc[first] for column, table in values.items()}
        texts = {column: spread(gap, spec.decimals, sign=True) for column, gap in gaps.items()}
        lines.append({
            "difference": f"{name(second)} minus {name(first)}", "seeds": str(gaps["final"].count()), **texts
        })  # fmt: skip
    return without_empty(pd.DataFrame(lines)) if lines else pd.DataFrame()


def iqm(tasks: Sequence[np.ndarray]) -> Estimate:
    """Interquartile mean of all runs, with the 95 % interval of a bootstrap that draws seeds within each task (Agarwal
    et al. 2021)."""
    rng = np.random.default_rng(0)
    drawn = np.concatenate([rng.choice(task, (RESAMPLES, len(task))) for task in tasks], axis=1)
    low, high = np.quantile(stats.trim_mean(drawn, 0.25, axis=1), [0.025, 0.975])
    return stats.trim_mean(np.concatenate(tasks), 0.25), low, high


def estimate(numbers: Estimate, decimals: int) -> str:
    """An estimate and its interval as text."""
    middle, low, high = (f"{number:.{decimals}f}" for number in numbers)
    return f"{middle} [{low}, {high}]"


def by_seed(data: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Final value of a metric in the last phase, which is its last evaluation, and its mean over that phase."""
    values = data[(data.metric == metric) & ~data.at_boundary]
    values = values[values.phase == values.phase.max()].sort_values("step", kind="stable")
    last, methods = values.groupby(["method", "seed"]).value, sorted(data.method.unique(), key=order)
    return last.last().unstack("seed").reindex(methods), last.mean().unstack("seed").reindex(methods)


def after_reset(data: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric right after the last reset."""
    rows = data[(data.metric == metric) & data.at_boundary & (data.phase == data.phase.max())]
    return rows.groupby(["method", "seed"]).value.last().unstack("seed")


def minus_none(values: pd.DataFrame) -> pd.DataFrame:
    """How far each method is from `none` in the seeds that both have."""
    gaps = values * np.nan
    for method in values.index:
        if (none := none_beside(method, values.index)) is not None:
            gaps.loc[method] = values.loc[method] - values.loc[none]
    return gaps


def none_beside(method: str, methods: Iterable[str]) -> str | None:
    """The `none` among `methods` with which a method is compared: of several, the one that did the same with the
    optimiser. None of `none` itself, and where there is none."""
    nones = [other for other in methods if base(other) == "none"]
    alike = [none for none in nones if OPTIMIZER.findall(none) == OPTIMIZER.findall(method)]
    if base(method) == "none" or not (alike or len(nones) == 1):
        return None
    return (alike or nones)[0]


def normalised(result: Result, values: pd.DataFrame) -> pd.DataFrame:
    """Values of the metric on the domain's common scale; NaN where that is not known of the benchmark."""
    assert result.spec.normalised is not None
    _, scaled = result.spec.normalised
    return values.map(lambda value: scaled(result.first.benchmark, value)).astype(float)


def interval(seeds: np.ndarray) -> float:
    """Half width of the 95 % t-interval of the mean; NaN for a single value."""
    return float(stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(seeds)) if len(seeds) > 1 else math.nan


def cells(values: pd.DataFrame, decimals: int | None = 3, sign: bool = False) -> pd.Series:
    """The lines of a frame as text."""
    return pd.Series({method: spread(line, decimals, sign) for method, line in values.iterrows()})


def spread(line: pd.Series, decimals: int | None, sign: bool = False) -> str:
    """Mean and 95 % t-interval, to some significant digits where `decimals` is None; nothing for no values."""
    seeds = line.dropna().to_numpy()
    if not len(seeds):
        return ""
    mean, half = seeds.mean(), interval(seeds)
    if decimals is None:
        text, width = compact(mean, 3), compact(half, 2)
    else:
        text, width = (
            f"{round(mean, decimals):{'+' if sign else ''}z.{decimals}f}",
            f"{half:.{decimals}f}",
        )  # z: never -0
    return f"{text} ± {width}" if len(seeds) > 1 else text


def compact(value: float, digits: int) -> str:
    """A number to some significant digits, without an exponent where it is of a common size."""
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    return f"{Decimal(f'{value:#.{digits}g}'):,f}"


def paper_finals(result: Result) -> pd.DataFrame:
    """The paper's final values by method; and as text, with ~ where its figure shows them only a little earlier, they
    and their gains over no reset."""
    known, panel = pd.read_csv(PAPER / "final.csv"), result.spec.panels.get(result.first.benchmark)
    view = VIEWS.get(result.recipe)
    panels = [panel, f"{panel}/{view.finals}" if view else None]  # the values of a figure of its own come last
    known = known[known.panel.isin(panels)].drop_duplicates("method", keep="last").set_index("method")
    decimals = result.spec.decimals if result.spec.decimals > 1 else 0
    rough = known.approximate == "yes"
    gains = known.final - known.final.get("none", math.nan)
    rough_gains = rough | rough.get("none", False)
    return known.assign(
        text=[f"{'~' * about}{value:.{decimals}f}" for about, value in zip(rough, known.final, strict=True)],
        gain=[f"{'~' * about}{value:+.{decimals}f}" for about, value in zip(rough_gains, gains, strict=True)],
    )


def plain(label: str) -> str:
    """A method's label as the paper's values have it: without what happened to the optimiser."""
    return OPTIMIZER.sub("", label).replace("(, ", "(").removesuffix(" ()")


def compared(ours: np.ndarray, theirs: float, nothing: float | None) -> str:
    """Whether our difference to `none` has the direction of the paper's. Sizes cannot be compared between scales."""
    ours = ours[~np.isnan(ours)]
    if nothing is None or math.isnan(theirs) or not len(ours):
        return ""
    if abs(theirs - nothing) <= (READING if abs(nothing) < RETURNS else READING_OF_RETURNS * abs(nothing)):
        return "level in the paper"
    if len(ours) < 2:
        return "one seed"
    if abs(ours.mean()) <= interval(ours):
        return "no clear difference"
    return "same direction" if (ours.mean() > 0) == (theirs > nothing) else "opposite direction"


def without_empty(table: pd.DataFrame) -> pd.DataFrame:
    """A table without the columns in which nothing stands."""
    table = table.fillna("")
    return table.loc[:, (table != "").any()]
