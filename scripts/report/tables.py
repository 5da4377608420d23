"""Final numbers by method, with intervals, differences paired by seed, and the paper's beside them."""

import itertools
import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from scripts.report.domains import Domain, base, name, order
from scripts.report.views import AFTER_RESET, View

AT_BOUNDARY = re.compile(r"optimizer_at_boundary=\w+")
RESAMPLES = 10_000
# How exactly the paper's figures can be read: accuracies and losses, and returns, which are larger, relatively.
READING, READING_OF_RETURNS, RETURNS = 0.002, 0.02, 20
PAPER = Path(__file__).parents[2] / "results" / "paper"


def table(data: pd.DataFrame, domain: Domain, view: View | None = None) -> pd.DataFrame:
    """Final value of the domain's metric and its mean over the last phase, by method, with differences to `none`
    paired by seed; then its further metrics, what a view measures after the reset, and the paper's final value."""
    benchmark = data.benchmark.iloc[0]
    final, mean = by_seed(data, domain.metric)
    published = paper_finals(domain, benchmark)
    known = pd.read_csv(PAPER / "after_reset.csv").itertuples(index=False)
    measured = {(method, metric): f"{value:g}" for method, metric, value, _, _ in known}
    say, rows = partial(spread, decimals=domain.decimals), []
    methods = sorted(data.method.unique(), key=order)
    final, mean = final.reindex(methods), mean.reindex(methods)  # of a short run there may be no value
    for method in methods:
        values = final.loc[method].dropna()
        ours, theirs = difference(final, method), published.get(plain(method))
        row = {
            "method": name(method),
            "seeds": data[data.method == method].seed.nunique(),
            "final": say(values.to_numpy()),
            "mean of last phase": say(mean.loc[method].dropna().to_numpy()),
            "final minus no reset": say(ours, sign=True),
            "paper's final (scale=paper)": theirs.text(domain.decimals) if theirs is not None else "",
            "against the paper": compared(ours, theirs, published.get("none")) if base(method) != "none" else "",
            "mean minus no reset": say(difference(mean, method), sign=True),
        }  # fmt: skip
        if domain.normalised:
            column, scaled = domain.normalised
            values_scaled = [scaled(benchmark, value) for value in values]
            if values_scaled and None not in values_scaled:
                row[f"final, {column}"] = spread(np.array(values_scaled))
        for metric, (_, column) in domain.apart.items():
            apart = by_seed(data, metric)[0].reindex(methods)
            row[f"final, {column}"] = say(apart.loc[method].dropna().to_numpy())
            row[f"{column} minus no reset"] = say(difference(apart, method), sign=True)
        for metric in view.measured if view else ():
            row[AFTER_RESET[metric]] = significant(after_reset(data, metric).get(method))
            if view and view.figure and not view.setting:
                row[f"the paper's {AFTER_RESET[metric]}"] = measured.get((method, metric), "")
        if len(values) >= 5:
            row["IQM of final"] = iqm(values.to_numpy(), domain.decimals)
        rows.append(row)
    columns = pd.DataFrame(rows).fillna("")
    return columns.loc[:, (columns != "").any()]


def pairs(data: pd.DataFrame, domain: Domain) -> pd.DataFrame:
    """Differences between every two methods but `none`, which the table has, paired by seed: of the final value and of
    the mean over the last phase."""
    methods = sorted((method for method in data.method.unique() if base(method) != "none"), key=order)
    final, mean = (part.reindex(methods) for part in by_seed(data, domain.metric))
    rows = []
    for first, second in itertools.combinations(methods, 2):
        at_end, on_average = ((part.loc[second] - part.loc[first]).dropna().to_numpy() for part in (final, mean))
        rows.append(
            {"difference": f"{name(second)} minus {name(first)}", "seeds": len(at_end),
             "final": spread(at_end, sign=True, decimals=domain.decimals),
             "mean of last phase": spread(on_average, sign=True, decimals=domain.decimals)}
        )  # fmt: skip
    return pd.DataFrame(rows)


class Published(float):
    """A final value of the paper; `approximate` where its figure shows it only a little earlier."""

    approximate: bool

    def text(self, decimals: int) -> str:
        """The number for people."""
        mark = "~" if self.approximate else ""
        return f"{mark}{self:.{decimals if decimals > 1 else 0}f}"


def paper_finals(domain: Domain, benchmark: str) -> dict[str, Published]:
    """The paper's final values by method, for a benchmark that it has."""
    known = pd.read_csv(PAPER / "final.csv")
    finals = {}
    for row in known[known.panel == domain.panels.get(benchmark)].to_dict("records"):
        finals[row["method"]] = value = Published(row["final"])
        value.approximate = row["approximate"] == "yes"
    return finals


def plain(method: str) -> str:
    """A method's label as the paper's values have it: without what became of the optimiser."""
    return AT_BOUNDARY.sub("", method).replace(", )", ")").removesuffix(" ()")


def compared(ours: np.ndarray, theirs: float | None, nothing: float | None) -> str:
    """Whether our difference to `none` points where the paper's does. Sizes cannot be compared between scales."""
    if theirs is None or nothing is None or not len(ours):
        return ""
    if abs(theirs - nothing) <= (READING if abs(nothing) < RETURNS else READING_OF_RETURNS * abs(nothing)):
        return "level in the paper"
    if len(ours) < 2:
        return "one seed"
    if abs(ours.mean()) <= interval(ours):
        return "not told from no reset"
    return "same direction" if (ours.mean() > 0) == (theirs > nothing) else "opposite direction"


def by_seed(data: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Final value of a metric in the last phase and its mean over it, methods by seeds."""
    values = data[(data.metric == metric) & ~data.at_boundary]
    last = values[values.phase == values.phase.max()]
    final = last.sort_values("step").groupby(["method", "seed"]).value.last().unstack("seed")
    return final, last.groupby(["method", "seed"]).value.mean().unstack("seed")


def after_reset(data: pd.DataFrame, metric: str) -> dict[str, np.ndarray]:
    """A metric right after the last reset: the values of a method's seeds."""
    rows = data[(data.metric == metric) & data.at_boundary & (data.phase == data.phase.max())].sort_values("seed")
    return {str(method): values.to_numpy() for method, values in rows.groupby("method").value}


def difference(values: pd.DataFrame, method: str) -> np.ndarray:
    """How far a method is from `none` in each seed that both have; from the `none` that did the same with the optimiser
    where there are several."""
    nones = [other for other in values.index if base(other) == "none"]
    alike = [other for other in nones if AT_BOUNDARY.findall(other) == AT_BOUNDARY.findall(method)]
    if base(method) == "none" or not (alike or len(nones) == 1):
        return np.array([])
    return (values.loc[method] - values.loc[(alike or nones)[0]]).dropna().to_numpy()


def interval(sample: np.ndarray) -> float:
    """Half width of the 95 % t-interval of the mean; NaN for a single value."""
    if len(sample) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(sample) - 1) * stats.sem(sample))


def spread(sample: np.ndarray, sign: bool = False, decimals: int = 3) -> str:
    """Mean and 95 % t-interval; nothing for no values."""
    if not len(sample):
        return ""
    mean = f"{round(sample.mean(), decimals) + 0.0:{'+' if sign else ''}.{decimals}f}"  # + 0.0: never -0
    return mean + ("" if len(sample) < 2 else f" ± {interval(sample):.{decimals}f}")


def significant(sample: np.ndarray | None) -> str:
    """Mean and 95 % t-interval of a quantity of any size."""
    if sample is None or not len(sample):
        return ""
    return compact(sample.mean(), 3) + ("" if len(sample) < 2 else f" ± {compact(interval(sample), 2)}")


def compact(value: float, digits: int) -> str:
    """A number to some significant digits, without an exponent where it is of a common size."""
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(places, 0)}f}"


def pooled(tasks: Sequence[pd.DataFrame], domain: Domain) -> pd.DataFrame:
    """Several games or tasks together: the interquartile mean over all their runs of the final value, each task's on
    its own scale, with the 95 % interval of a bootstrap that draws seeds within each task (Agarwal et al. 2021)."""
    assert domain.normalised is not None
    column, scaled = domain.normalised
    scores: dict[str, list[np.ndarray]] = {}
    for data in tasks:
        benchmark = data.benchmark.iloc[0]
        for method, values in by_seed(data, domain.metric)[0].iterrows():
            found = [scaled(benchmark, value) for value in values.dropna()]
            if found and None not in found:
                scores.setdefault(str(method), []).append(np.array(found))
    rng, rows = np.random.default_rng(0), []
    for method in sorted(scores, key=order):
        if len(scores[method]) < 2:
            continue
        drawn = [rng.choice(task, (RESAMPLES, len(task))) for task in scores[method]]
        low, high = np.quantile(stats.trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1), [0.025, 0.975])
        everything = np.concatenate(scores[method])
        middle = stats.trim_mean(everything, 0.25)
        rows.append(
            {"method": name(method), "tasks": str(len(scores[method])), "runs": str(len(everything)),
             f"IQM, {column}": f"{middle:.3f} [{low:.3f}, {high:.3f}]"}
        )  # fmt: skip
    return pd.DataFrame(rows)


def iqm(sample: np.ndarray, decimals: int = 3) -> str:
    """Interquartile mean with its 95 % bootstrap interval (Agarwal et al. 2021)."""
    middle = lambda values, axis=-1: stats.trim_mean(values, 0.25, axis=axis)  # noqa: E731
    low, high = stats.bootstrap(
        (sample,), middle, n_resamples=RESAMPLES, rng=np.random.default_rng(0)
    ).confidence_interval
    return f"{middle(sample):.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"
