"""Numbers of a result by method and seed: intervals, paired differences, interquartile means."""

import math
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from scripts.report.methods import base, order

RESAMPLES = 10_000
OPTIMIZER = re.compile(r"optimizer_at_boundary=\w+")


def by_seed(data: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Final value of a metric in the last phase, which is its last evaluation, and its mean over that phase; methods by
    seeds."""
    values = data[(data.metric == metric) & ~data.at_boundary]
    last = values[values.phase == values.phase.max()].sort_values("step", kind="stable").groupby(["method", "seed"]).value
    methods = sorted(data.method.unique(), key=order)
    return last.last().unstack("seed").reindex(methods), last.mean().unstack("seed").reindex(methods)


def after_reset(data: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric right after the last reset; methods by seeds."""
    rows = data[(data.metric == metric) & data.at_boundary & (data.phase == data.phase.max())]
    return rows.groupby(["method", "seed"]).value.last().unstack("seed")


def sample(values: pd.DataFrame, method: str) -> np.ndarray:
    """The values of a method's seeds; none if it has no line."""
    return values.loc[method].dropna().to_numpy() if method in values.index else np.array([])


def difference(values: pd.DataFrame, method: str) -> np.ndarray:
    """How far a method is from `none` in each seed that both have; of several `none` from the one that did the same with
    the optimiser."""
    nones = [other for other in values.index if base(other) == "none"]
    alike = [other for other in nones if OPTIMIZER.findall(other) == OPTIMIZER.findall(method)]
    if base(method) == "none" or not (alike or len(nones) == 1):
        return np.array([])
    return (values.loc[method] - values.loc[(alike or nones)[0]]).dropna().to_numpy()


def interval(sample: np.ndarray) -> float:
    """Half width of the 95 % t-interval of the mean; NaN for a single value."""
    if len(sample) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(sample) - 1) * stats.sem(sample))


def spread(sample: np.ndarray, decimals: int = 3, sign: bool = False) -> str:
    """Mean and 95 % t-interval; nothing for no values."""
    if not len(sample):
        return ""
    mean = f"{round(sample.mean(), decimals) + 0.0:{'+' if sign else ''}.{decimals}f}"  # + 0.0: never -0
    return mean + ("" if len(sample) < 2 else f" ± {interval(sample):.{decimals}f}")


def significant(sample: np.ndarray) -> str:
    """Mean and 95 % t-interval of a quantity of any size; nothing for no values."""
    if not len(sample):
        return ""
    return compact(sample.mean(), 3) + ("" if len(sample) < 2 else f" ± {compact(interval(sample), 2)}")


def compact(value: float, digits: int) -> str:
    """A number to some significant digits, without an exponent where it is of a common size."""
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(places, 0)}f}"


def iqm(sample: np.ndarray, decimals: int = 3) -> str:
    """Interquartile mean with its 95 % bootstrap interval (Agarwal et al. 2021)."""
    drawn = stats.bootstrap((sample,), _middle, n_resamples=RESAMPLES, rng=np.random.default_rng(0))
    return _with_ends(_middle(sample), *drawn.confidence_interval, decimals)


def iqm_of_tasks(tasks: Sequence[np.ndarray], rng: np.random.Generator) -> str:
    """Interquartile mean over all runs of several tasks, with the 95 % interval of a bootstrap that draws seeds within
    each task (Agarwal et al. 2021)."""
    drawn = np.concatenate([rng.choice(task, (RESAMPLES, len(task))) for task in tasks], axis=1)
    return _with_ends(_middle(np.concatenate(tasks)), *np.quantile(_middle(drawn), [0.025, 0.975]), 3)


def _middle(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return stats.trim_mean(values, 0.25, axis=axis)


def _with_ends(value: float | np.ndarray, low: float, high: float, decimals: int) -> str:
    return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"
