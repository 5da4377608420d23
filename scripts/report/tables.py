"""Final numbers by method, with intervals and differences paired by seed."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from scripts.report.domains import Domain, base, name, order

AT_BOUNDARY = re.compile(r"optimizer_at_boundary=\w+")
PAPER = Path(__file__).parents[2] / "results" / "paper"


def table(data: pd.DataFrame, domain: Domain) -> pd.DataFrame:
    """Final value of the domain's metric and its mean over the last phase, by method, with differences to `none`
    paired by seed; then the final values of its further metrics."""
    final, mean = by_seed(data, domain.metric)
    paper = pd.read_csv(PAPER / "final.csv")
    published = paper[paper.panel == domain.panels.get(data.benchmark.iloc[0])].set_index("method").final
    say, rows = partial(spread, decimals=domain.decimals), []
    methods = sorted(data.method.unique(), key=order)
    final, mean = final.reindex(methods), mean.reindex(methods)  # of a short run there may be no value
    for method in methods:
        values = final.loc[method].dropna()
        row = {
            "method": name(method),
            "seeds": data[data.method == method].seed.nunique(),
            "final": say(values.to_numpy()),
            "mean of last phase": say(mean.loc[method].dropna().to_numpy()),
            "final minus no reset": say(difference(final, method), sign=True),
            "mean minus no reset": say(difference(mean, method), sign=True),
        }  # fmt: skip
        if domain.normalised:
            column, scaled = domain.normalised
            values_scaled = [scaled(data.benchmark.iloc[0], value) for value in values]
            if values_scaled and None not in values_scaled:
                row[f"final, {column}"] = spread(np.array(values_scaled))
        for metric, (_, column) in domain.apart.items():
            apart = by_seed(data, metric)[0].reindex(methods)
            row[f"final, {column}"] = say(apart.loc[method].dropna().to_numpy())
            row[f"{column} minus no reset"] = say(difference(apart, method), sign=True)
        plain = AT_BOUNDARY.sub("", method).removesuffix(" ()")
        row["paper's final (scale=paper)"] = f"{published[plain]:.{domain.decimals}f}" if plain in published else ""
        if len(values) >= 5:
            row["IQM of final"] = iqm(values.to_numpy(), domain.decimals)
        rows.append(row)
    columns = pd.DataFrame(rows).fillna("")
    return columns.loc[:, (columns != "").any()]


def by_seed(data: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Final value of a metric in the last phase and its mean over it, methods by seeds."""
    values = data[(data.metric == metric) & ~data.at_boundary]
    last = values[values.phase == values.phase.max()]
    final = last.sort_values("step").groupby(["method", "seed"]).value.last().unstack("seed")
    return final, last.groupby(["method", "seed"]).value.mean().unstack("seed")


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
    mean = f"{sample.mean():{'+' if sign else ''}.{decimals}f}"
    return mean + ("" if len(sample) < 2 else f" ± {interval(sample):.{decimals}f}")


def iqm(sample: np.ndarray, decimals: int = 3) -> str:
    """Interquartile mean with its 95 % bootstrap interval (Agarwal et al. 2021)."""
    middle = lambda values, axis=-1: stats.trim_mean(values, 0.25, axis=axis)  # noqa: E731
    low, high = stats.bootstrap((sample,), middle, n_resamples=10_000, rng=np.random.default_rng(0)).confidence_interval
    return f"{middle(sample):.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"
