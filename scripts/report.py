"""Curves and tables of finished runs: `python -m scripts.report vision [run directories]`.

For each benchmark and scale it writes into `outputs/report/`: a tidy CSV of every metric of every run, a figure and a
Markdown table. Results of different scales, machines or settings are never pooled.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from experiments.common.errors import UserError
from experiments.common.metric_log import read_rows
from experiments.common.workspace import run_directories

RESULTS = Path(__file__).parents[1] / "results"
# One colour and one place for each method, everywhere (Okabe and Ito's palette, safe for colour-blind readers).
METHODS = {
    "none": ("No reset", "#000000", "Base"),
    "shrink_perturb": ("Shrink & perturb", "#E69F00", "S&P"),
    "full_reset": ("Full reset", "#56B4E9", "Full"),
    "fire": ("FIRE", "#D55E00", "FIRE"),
}
PANELS = {"warm_start": "warm_cifar10_resnet18", "continual": "cont_cifar10_resnet18"}
METRIC, STEP = "test/accuracy", "epoch"


@dataclass
class Run:
    """A finished run, as its directory tells it."""

    path: Path
    info: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def values(self) -> dict[str, Any]:
        """The identity's values."""
        return self.info["values"]

    @property
    def group(self) -> str:
        """Benchmark and scale."""
        return self.path.parent.name


def find_runs(roots: list[Path]) -> list[Run]:
    """Every finished run below `roots`; unfinished ones are named and left out."""
    runs = []
    for path in run_directories(roots):
        if (path / "done").exists():
            runs.append(Run(path, json.loads((path / "run.json").read_text()), read_rows(path / "metrics.jsonl")))
        else:
            print(f"left out, not finished: {path}")
    if not runs:
        raise UserError(f"no finished run below {', '.join(map(str, roots))}")
    return runs


def label_methods(runs: list[Run]) -> dict[Path, str]:
    """The method's name of each run, with the settings in which runs of that method differ."""
    labels = {}
    for run in runs:
        method = run.values["method"]
        same = [other.values["method"] for other in runs if other.values["method"]["name"] == method["name"]]
        varying = [key for key in method if len({json.dumps(other.get(key)) for other in same}) > 1]
        settings = ", ".join(f"{key}={method[key]}" for key in varying)
        labels[run.path] = method["name"] + (f" ({settings})" if settings else "")
    return labels


def circumstances(run: Run) -> dict[str, str]:
    """Everything but method and seed that can change a run's numbers, nested keys dotted."""
    flat: dict[str, str] = {"machine": run.info["machine"]}
    stack = [("", key, value) for key, value in run.values.items() if key not in ("method", "seed")]
    while stack:
        prefix, key, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{prefix}{key}.", inner, content) for inner, content in value.items()]
        else:
            flat[prefix + key] = json.dumps(value)
    return flat


def poolable(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs of one benchmark and scale, apart where more than method and seed differs; keyed by what differs."""
    flat = {run.path: circumstances(run) for run in runs}
    keys = sorted(set().union(*flat.values()))
    varying = [key for key in keys if len({one.get(key) for one in flat.values()}) > 1]
    pools: dict[str, list[Run]] = {}
    for run in runs:
        label = "".join(f"-{key.split('.')[-1]}={flat[run.path].get(key)}" for key in varying)
        pools.setdefault("".join(c if c.isalnum() or c in "-=.," else "_" for c in label), []).append(run)
    return pools


def tidy(runs: list[Run], domain: str) -> pd.DataFrame:
    """One line for each number logged."""
    labels, lines = label_methods(runs), []
    for run in runs:
        benchmark, _, scale = run.group.rpartition("-")
        for row in run.rows:
            for metric, value in row.items():
                if metric not in (STEP, "phase"):
                    lines.append(
                        (domain, benchmark, labels[run.path], run.values["seed"], scale, run.info["machine"],
                         row["phase"], STEP, row[STEP], metric, value, "train/loss" not in row)
                    )  # fmt: skip
    columns = ["domain", "benchmark", "method", "seed", "scale", "machine", "phase"]
    return pd.DataFrame(lines, columns=[*columns, "step_name", "step", "metric", "value", "at_boundary"])


def interval(sample: np.ndarray) -> float:
    """Half width of the 95 % t-interval of the mean; NaN for a single value."""
    if len(sample) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(sample) - 1) * stats.sem(sample))


def table(data: pd.DataFrame) -> pd.DataFrame:
    """Final test accuracy and its mean over the last phase, by method, with differences to `none` paired by seed."""
    tests = data[(data.metric == METRIC) & ~data.at_boundary]
    last = tests[tests.phase == tests.phase.max()]
    final = last.sort_values("step").groupby(["method", "seed"]).value.last().unstack("seed")
    mean = last.groupby(["method", "seed"]).value.mean().unstack("seed")
    paper = pd.read_csv(RESULTS / "paper" / "final_accuracy.csv")
    published = paper[paper.benchmark == data.benchmark.iloc[0]].set_index("method").final_test_accuracy
    rows = []
    for method in sorted(final.index, key=order):
        values = final.loc[method].dropna()
        row = {
            "method": name(method), "seeds": len(values), "final": spread(values.to_numpy()),
            "mean of last phase": spread(mean.loc[method].dropna().to_numpy()), "final minus no reset": "",
            "mean minus no reset": "",
        }  # fmt: skip
        if "none" in final.index and method != "none":
            row["final minus no reset"] = spread((final.loc[method] - final.loc["none"]).dropna().to_numpy(), sign=True)
            row["mean minus no reset"] = spread((mean.loc[method] - mean.loc["none"]).dropna().to_numpy(), sign=True)
        row["paper's final (scale=paper)"] = f"{published[method]:.3f}" if method in published else ""
        if len(values) >= 5:
            row["IQM of final"] = iqm(values.to_numpy())
        rows.append(row)
    columns = pd.DataFrame(rows).fillna("")
    return columns.loc[:, (columns != "").any()]


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


def order(method: str) -> tuple[int, str]:
    """Place of a method in every table and legend."""
    return (list(METHODS).index(base(method)) if base(method) in METHODS else len(METHODS), method)


def base(method: str) -> str:
    """A method's name without settings."""
    return method.split(" (")[0]


def name(method: str) -> str:
    """A method's name for people."""
    return method.replace(base(method), METHODS[base(method)][0]) if base(method) in METHODS else method


def colour(method: str) -> str:
    """A method's colour; those added later share one."""
    return METHODS[base(method)][1] if base(method) in METHODS else "#009E73"


def draw_ours(axes: Axes, data: pd.DataFrame, origin: int) -> None:
    """Test accuracy over epochs counted from `origin`: each seed faint, their mean strong."""
    tests = data[(data.metric == METRIC) & (data.step >= origin)]
    for method in sorted(tests.method.unique(), key=order):
        # At a boundary there are two tests at one epoch, before and after the reset: the curve drops there.
        seeds = tests[tests.method == method].sort_values(["step", "at_boundary"], kind="stable")
        if origin:
            seeds = seeds[(seeds.step > origin) | seeds.at_boundary]
        curve = seeds.groupby(["step", "at_boundary"]).value.mean().reset_index()
        for _, one in seeds.groupby("seed"):
            axes.plot(one.step - origin, one.value, color=colour(method), alpha=0.25, linewidth=0.8)
        axes.plot(curve.step - origin, curve.value, color=colour(method), label=name(method), linewidth=2)


def draw_paper(axes: Axes, benchmark: str, **style: Any) -> None:
    """The paper's curves of a benchmark."""
    figures = pd.read_csv(RESULTS / "paper" / "figures.csv").query(f"panel == '{PANELS[benchmark]}'")
    for _, (label, tint, published) in METHODS.items():
        curve = figures[figures.method == published].sort_values("x")
        constant = len(curve) == 2 and curve.y.nunique() == 1  # the figure gives only its final value
        axes.plot(curve.x, curve.y, color=tint, **{**style, **({"linestyle": ":"} if constant else {})})
        if not any(line.get_label() == label for line in axes.figure.axes[0].lines):
            axes.figure.axes[0].plot([], [], color=tint, label=label, linewidth=2)


def figure(data: pd.DataFrame, path: Path) -> None:
    """Our curves; the paper's over them at its own scale, beside them otherwise."""
    benchmark, scale = data.benchmark.iloc[0], data.scale.iloc[0]
    warm = benchmark == "warm_start"
    origin = int(data[(data.phase == data.phase.max()) & data.at_boundary].step.min()) if warm else 0
    panels = 1 if scale == "paper" else 2
    canvas, axes = plt.subplots(1, panels, figsize=(5.2 * panels, 3.8), squeeze=False, layout="constrained")
    draw_ours(axes[0, 0], data, origin)
    seeds = data.seed.nunique()
    axes[0, 0].set_title(f"ours, scale={scale}, {seeds} seed{'s' if seeds > 1 else ''}", fontsize=10)
    if scale == "paper":
        draw_paper(axes[0, 0], benchmark, linestyle="--", linewidth=1)
    else:
        draw_paper(axes[0, 1], benchmark, linewidth=1.5)
        axes[0, 1].set_title("the paper's Figure 2, scale=paper (dotted: final value)", fontsize=10)
    for panel in axes[0]:
        panel.set(xlabel="epochs since the new data came" if warm else "epochs", ylabel="test accuracy")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    canvas.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    canvas.savefig(path, dpi=150)
    plt.close(canvas)


def report(domain: str, roots: list[Path], out: Path) -> None:
    """Write CSV, figure and table for each benchmark and scale found."""
    runs = find_runs(roots)
    out.mkdir(parents=True, exist_ok=True)
    for group in sorted({run.group for run in runs}):
        for difference, members in poolable([run for run in runs if run.group == group]).items():
            write(domain, group + difference, members, out)


def commits(run: Run) -> set[str]:
    """Commits a run was computed with; several where it was interrupted and went on."""
    return {run.info["git"], *(part["git"] for part in run.info.get("continued", []))}


def write(domain: str, title: str, members: list[Run], out: Path) -> None:
    """Write CSV, figure and table of runs that may be pooled, and print the table."""
    data = tidy(members, domain)
    data.to_csv(out / f"{title}.csv", index=False)
    figure(data, out / f"{title}.png")
    versions = members[0].info["versions"]
    lines = [
        f"# {domain}: {title}", "", table(data).to_markdown(index=False), "",
        "Test accuracy: mean over seeds ± half width of the 95 % t-interval. Differences are paired by seed: all "
        "methods of a seed continue from the same phase 0.", "",
        f"Machine: {members[0].info['machine']}. torch {versions['torch']}. Commits: "
        f"{', '.join(sorted(set().union(*(commits(run) for run in members))))}.", "",
    ]  # fmt: skip
    (out / f"{title}.md").write_text("\n".join(lines))
    print("\n".join(lines))
    print(f"{len(members)} run{'s' * (len(members) > 1)}: {out / title}.csv, .png, .md")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.report", description=__doc__)
    parser.add_argument("domain", choices=["vision"], help="whose runs")
    parser.add_argument("runs", nargs="*", type=Path, help="run directories, or folders of them (outputs/<domain>)")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        roots = arguments.runs or [Path("outputs") / arguments.domain]
        report(arguments.domain, roots, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
