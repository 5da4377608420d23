"""Final numbers by method, with intervals and differences paired by seed."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from scripts.report.domains import Domain, name, order

PAPER = Path(__file__).parents[2] / "results" / "paper"


def table(data: pd.DataFrame, domain: Domain) -> pd.DataFrame:
    """Final value of the domain's metric and its mean over the last phase, by method, with differences to `none`
    paired by seed; then the final values of its further metrics."""
    final, mean = by_seed(data, domain.metric)
    paper = pd.read_csv(PAPER / "final.csv")
    published = paper[paper.panel == domain.panels.get(data.benchmark.iloc[0])].set_index("method").final
    rows = []
    for method in sorted(final.index, key=order):
        values = final.loc[method].dropna()
        row = {
            "method": name(method), "seeds": len(values), "final": spread(values.to_numpy()),
            "mean of last phase": spread(mean.loc[method].dropna().to_numpy()),
            "final minus no reset": difference(final, method), "mean minus no reset": difference(mean, method),
        }  # fmt: skip
        for metric, (_, column) in domain.apart.items():
            apart, _ = by_seed(data, metric)
            row[f"final, {column}"] = spread(apart.loc[method].dropna().to_numpy())
            row[f"{column} minus no reset"] = difference(apart, method)
        row["paper's final (scale=paper)"] = f"{published[method]:.3f}" if method in published else ""
        if len(values) >= 5:
            row["IQM of final"] = iqm(values.to_numpy())
        rows.append(row)
    columns = pd.DataFrame(rows).fillna("")
    return columns.loc[:, (columns != "").any()]


def by_seed(data: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Final value of a metric in the last phase and its mean over it, methods by seeds."""
    values = data[(data.metric == metric) & ~data.at_boundary]
    last = values[values.phase == values.phase.max()]
    final = last.sort_values("step").groupby(["method", "seed"]).value.last().unstack("seed")
    return final, last.groupby(["method", "seed"]).value.mean().unstack("seed")


def difference(values: pd.DataFrame, method: str) -> str:
    """How far a method is from `none` in the same seeds."""
    if "none" not in values.index or method == "none":
        return ""
    return spread((values.loc[method] - values.loc["none"]).dropna().to_numpy(), sign=True)


def interval(sample: np.ndarray) -> float:
    """Half width of the 95 % t-interval of the mean; NaN for a single value."""
    if len(sample) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(sample) - 1) * stats.sem(sample))


def spread(sample: np.ndarray, sign: bool = False) -> str:
    """Mean and 95 % t-interval."""
    if not len(sample):
        return ""
    mean = f"{sample.mean():+.3f}" if sign else f"{sample.mean():.3f}"
    return mean + ("" if len(sample) < 2 else f" ± {interval(sample):.3f}")


def iqm(sample: np.ndarray) -> str:
    """Interquartile mean with its 95 % bootstrap interval (Agarwal et al. 2021)."""
    middle = lambda values, axis=-1: stats.trim_mean(values, 0.25, axis=axis)  # noqa: E731
    low, high = stats.bootstrap((sample,), middle, n_resamples=10_000, rng=np.random.default_rng(0)).confidence_interval
    return f"{middle(sample):.3f} [{low:.3f}, {high:.3f}]"
