"""Curves and tables of finished runs, and the page of all results.

`python -m scripts.report vision|language|atari|humanoid [run directories]` writes into `outputs/report/<domain>/`, for
each recipe that asked for runs, a tidy CSV of every metric, a figure and a Markdown table. A recipe that is not
complete is shown with what is missing, if no reset and another method have finished in one seed. Runs that belong to no
such recipe are shown with all others of their benchmark and scale. Results of different scales, machines or settings
are never pooled.

`python -m scripts.report` makes figures and tables in `results/` from the CSVs there, and from all of them
`results/index.html`, a page that needs nothing but itself, and the README's table, `results/summary.md`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common.errors import UserError
from experiments.domains import NAMES
from experiments.domains import domain as described
from scripts import command
from scripts.report.page import figure, headline, markdown, page, table
from scripts.report.pooled import as_text, pools
from scripts.report.results import Result, load, results
from scripts.report.runs import find_runs


def report(domain: str, roots: Sequence[Path], out: Path) -> None:
    """Write and print the results of the runs below `roots`.

    Raises:
        UserError: no run has finished, or one is damaged or of another domain.
    """
    runs, step = find_runs(roots), described(domain).results.step
    for run in runs:
        if any(step not in row or "phase" not in row for row in run.rows):
            raise UserError(f"{run.path} is not a run of {domain}")
    elsewhere = sorted({str(run.path.parents[2]) for run in runs} - {"outputs"})
    found = results(domain, runs)
    if not found:
        raise UserError(f"no finished run below {', '.join(map(str, roots))}")
    command.check_writable(out)
    for result in found:
        result.write(out)
        print(show(result, out))
        if result.command and elsewhere:  # not in the files, which may be read on another machine
            print(f"The runs are not in outputs/: to continue them, add outputs_dir={' or '.join(elsewhere)}.")
        print(f"{out / result.title}.csv, .json, .png, .md")
    for where, numbers in pools(found):
        print(f"\nAll tasks together, {where}:\n\n{table(as_text(numbers))}")


def report_all(folder: Path) -> None:
    """Make everything in the folder of results from its CSVs."""
    found = [load(path.with_suffix(".csv")) for name in NAMES for path in sorted((folder / name).glob("*.json"))]
    if not found:
        raise UserError(f"no results in {folder}")
    command.check_writable(folder)
    for result in found:
        show(result, folder / result.first.domain)
    (folder / "index.html").write_text(page(found, folder), "utf-8")
    (folder / "summary.md").write_text(table(headline(found)) + "\n", "utf-8")
    print(f"{folder / 'index.html'}, summary.md: {len(found)} results")


def show(result: Result, out: Path) -> str:
    """Write a result's figure and tables; returns the tables."""
    figure(result).savefig(out / f"{result.title}.png", dpi=130)
    text = f"# {result.first.domain}: {result.title}\n\n{markdown(result)}"
    (out / f"{result.title}.md").write_text(text, "utf-8")
    return text


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m scripts.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("domain", nargs="?", choices=sorted(NAMES), help="whose runs; without it, the page")
    parser.add_argument(
        "runs", nargs="*", type=command.folder, help="run directories, or folders of them (outputs/<domain>)"
    )
    parser.add_argument("--out", type=command.folder, help="default: outputs/report/<domain>; results for the page")
    arguments = parser.parse_intermixed_args()
    if arguments.domain is None:
        report_all(arguments.out or Path("results"))
    else:
        roots = arguments.runs or [Path("outputs") / arguments.domain]
        report(arguments.domain, roots, arguments.out or Path("outputs/report") / arguments.domain)


if __name__ == "__main__":
    sys.exit(command.run(main))
