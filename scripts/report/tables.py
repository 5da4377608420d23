"""Tables of a result: final numbers by method, differences paired by seed, and the paper's beside them."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scripts.report.methods import base, name, order
from scripts.report.results import Result
from scripts.report.statistics import (
    OPTIMIZER,
    after_reset,
    by_seed,
    difference,
    interval,
    iqm,
    iqm_of_tasks,
    sample,
    significant,
    spread,
)
from scripts.report.views import AFTER_RESET, VIEWS, View

# How exactly the paper's figures can be read: accuracies and losses, and returns, which are larger, relatively.
READING, READING_OF_RETURNS, RETURNS = 0.002, 0.02, 20
PAPER = Path(__file__).parents[2] / "results" / "paper"


def by_method(result: Result) -> pd.DataFrame:
    """Final value of the domain's metric and its mean over the last phase, with differences to `none` paired by seed;
    then its further metrics, what a view measures after the reset, and the paper's final value."""
    spec, data, view = result.spec, result.finished, VIEWS.get(result.about.recipe)
    final, mean = by_seed(data, spec.metric)
    apart = {column: by_seed(data, metric)[0] for metric, (_, column) in spec.apart.items()}
    published, rows = paper_finals(result), []
    for method in final.index:
        values, ours = sample(final, method), difference(final, method)
        row = {
            "method": name(method),
            "seeds": data[data.method == method].seed.nunique(),
            "final": spread(values, spec.decimals),
            "mean of last phase": spread(sample(mean, method), spec.decimals),
            "final minus no reset": spread(ours, spec.decimals, sign=True),
            "paper's final (scale=paper)": paper_text(published, plain(method), spec.decimals),
            "against the paper": compared(ours, published.final.get(plain(method)), published.final.get("none")),
            "mean minus no reset": spread(difference(mean, method), spec.decimals, sign=True),
        }
        if base(method) == "none":
            row["against the paper"] = ""
        if spec.normalised:
            row[f"final, {spec.normalised[0]}"] = spread(normalised(result, values))
        for column, finals in apart.items():
            row[f"final, {column}"] = spread(sample(finals, method), spec.decimals)
            row[f"{column} minus no reset"] = spread(difference(finals, method), spec.decimals, sign=True)
        if view:
            row |= measured(data, method, view)
        if len(values) >= 5:
            row["IQM of final"] = iqm(values, spec.decimals)
        rows.append(row)
    return without_empty(pd.DataFrame(rows))


def measured(data: pd.DataFrame, method: str, view: View) -> dict[str, str]:
    """What a view measures after the reset, and the paper's values of it."""
    known = pd.read_csv(PAPER / "after_reset.csv").set_index(["metric", "method"]).value
    row = {}
    for metric in view.measured:
        row[AFTER_RESET[metric]] = significant(sample(after_reset(data, metric), method))
        if view.figure and not view.axis:
            theirs = known.get((metric, method))
            row[f"the paper's {AFTER_RESET[metric]}"] = "" if theirs is None else f"{theirs:g}"
    return row


def pairs(result: Result) -> pd.DataFrame:
    """Differences between every two methods but `none`, paired by seed: of the final value and of the mean over the last
    phase."""
    final, mean = by_seed(result.finished, result.spec.metric)
    rows = []
    for first, second in itertools.combinations([method for method in final.index if base(method) != "none"], 2):
        at_end, on_average = ((part.loc[second] - part.loc[first]).dropna().to_numpy() for part in (final, mean))
        rows.append(
            {"difference": f"{name(second)} minus {name(first)}", "seeds": len(at_end),
             "final": spread(at_end, result.spec.decimals, sign=True),
             "mean of last phase": spread(on_average, result.spec.decimals, sign=True)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def pooled(results: Sequence[Result]) -> pd.DataFrame:
    """Several games or tasks of a domain together: the interquartile mean over all their runs of the final value, each
    task's on its own scale."""
    scores: dict[str, list[np.ndarray]] = {}
    for result in results:
        final, _ = by_seed(result.finished, result.spec.metric)
        for method in final.index:
            scores.setdefault(method, []).append(normalised(result, sample(final, method)))
    rng, rows = np.random.default_rng(0), []
    for method in sorted(scores, key=order):
        tasks = [task for task in scores[method] if len(task)]
        if len(tasks) > 1:
            column = f"IQM, {results[0].spec.normalised[0]}"  # type: ignore[index]
            runs = str(sum(map(len, tasks)))
            rows.append({"method": name(method), "tasks": str(len(tasks)), "runs": runs, column: iqm_of_tasks(tasks, rng)})
    return pd.DataFrame(rows)


def normalised(result: Result, values: np.ndarray) -> np.ndarray:
    """Values of the metric on the domain's common scale; none where that is not known of the benchmark."""
    assert result.spec.normalised is not None
    scores = [result.spec.normalised[1](result.first.benchmark, value) for value in values]
    return np.array([] if None in scores else scores)


def paper_finals(result: Result) -> pd.DataFrame:
    """The paper's final values by method, and whether its figure shows them only a little earlier."""
    known, panel = pd.read_csv(PAPER / "final.csv"), result.spec.panels.get(result.first.benchmark)
    view = VIEWS.get(result.about.recipe)
    panels = [panel, f"{panel}/{view.finals}" if view else None]  # the values of a figure of its own come last
    return known[known.panel.isin(panels)].drop_duplicates("method", keep="last").set_index("method")


def paper_text(published: pd.DataFrame, method: str, decimals: int) -> str:
    """A final value of the paper for readers; nothing where it has none."""
    if method not in published.index:
        return ""
    about, value = published.approximate[method] == "yes", published.final[method]
    return f"{'~' if about else ''}{value:.{decimals if decimals > 1 else 0}f}"


def plain(label: str) -> str:
    """A method's label as the paper's values have it: without what happened to the optimiser."""
    return OPTIMIZER.sub("", label).replace("(, ", "(").replace(", )", ")").removesuffix(" ()")


def compared(ours: np.ndarray, theirs: float | None, nothing: float | None) -> str:
    """Whether our difference to `none` has the direction of the paper's. Sizes cannot be compared between scales."""
    if theirs is None or nothing is None or not len(ours):
        return ""
    if abs(theirs - nothing) <= (READING if abs(nothing) < RETURNS else READING_OF_RETURNS * abs(nothing)):
        return "level in the paper"
    if len(ours) < 2:
        return "one seed"
    if abs(ours.mean()) <= interval(ours):
        return "not told from no reset"
    return "same direction" if (ours.mean() > 0) == (theirs > nothing) else "opposite direction"


def without_empty(table: pd.DataFrame) -> pd.DataFrame:
    """A table without the columns in which nothing stands."""
    table = table.fillna("")
    return table.loc[:, (table != "").any()]
