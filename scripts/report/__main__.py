"""Curves and tables of finished runs: `python -m scripts.report vision|language|atari|humanoid [run directories]`.

For each benchmark and scale it writes into `outputs/report/`: a tidy CSV of every metric of every run, a figure and a
Markdown table. Results of different scales, machines or settings are never pooled.
"""

import argparse
import sys
from pathlib import Path

from experiments.common.errors import UserError
from scripts.report.domains import DOMAINS, Domain
from scripts.report.figures import figure
from scripts.report.runs import Run, commits, find_runs, poolable, tidy
from scripts.report.tables import table


def report(domain: Domain, roots: list[Path], out: Path) -> None:
    """Write CSV, figure and table for each benchmark and scale found."""
    runs = find_runs(roots)
    out.mkdir(parents=True, exist_ok=True)
    for group in sorted({run.group for run in runs}):
        for label, (difference, members) in poolable([run for run in runs if run.group == group]).items():
            write(domain, group + label, difference, members, out)


def write(domain: Domain, title: str, difference: str, members: list[Run], out: Path) -> None:
    """Write CSV, figure and table of runs that may be pooled, and print the table; `difference` tells them from others
    of the same name."""
    data = tidy(members, domain)
    data.to_csv(out / f"{title}.csv", index=False)
    figure(data, domain, out / f"{title}.png")
    versions = members[0].info["versions"]
    short = domain.warning and data.scale.iloc[0] != "paper"
    warning = [f"**{domain.warning.capitalize()}**; for the paper's protocol add scale=paper.", ""] if short else []
    lines = [
        f"# {domain.name}: {title}", "", *warning, table(data, domain).to_markdown(index=False), "",
        f"{domain.title.capitalize()}: mean over seeds ± half width of the 95 % t-interval. Differences are paired by "
        "seed: all methods of a seed continue from the same phase 0.", "",
        *([f"Settings that differ from those of other runs: {difference}.", ""] if difference else []),
        f"Machine: {members[0].info['machine']}. torch {versions['torch']}. Commits: "
        f"{', '.join(sorted(set().union(*(commits(run) for run in members))))}.", "",
    ]  # fmt: skip
    (out / f"{title}.md").write_text("\n".join(lines))
    print("\n".join(lines))
    print(f"{len(members)} run{'s' * (len(members) > 1)}: {out / title}.csv, .png, .md")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.report", description=__doc__)
    parser.add_argument("domain", choices=sorted(DOMAINS), help="whose runs")
    parser.add_argument("runs", nargs="*", type=Path, help="run directories, or folders of them (outputs/<domain>)")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="default: %(default)s")
    arguments = parser.parse_intermixed_args()
    try:
        roots = arguments.runs or [Path("outputs") / arguments.domain]
        report(DOMAINS[arguments.domain], roots, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
