"""Curves and tables of finished runs, and the page of all results.

`python -m scripts.report vision|language|atari|humanoid [run directories]` writes into `outputs/report/<domain>/`, for
each recipe of which every method has finished in some seed, a tidy CSV of every metric, a figure and a Markdown table.
A recipe that is not complete is shown with what is missing, if no reset and another method have finished in one seed;
of several that could show the same runs, only the one with the largest share of its methods is. Runs that belong to no
such recipe are told with all others of their benchmark and scale. Results of different scales, machines or settings are
never pooled.

`python -m scripts.report` makes figures and tables in `results/` anew from the CSVs there, and from all of them
`results/index.html`, a page that needs nothing but itself, and the README's table, `results/summary.md`.
"""

import argparse
import sys
from pathlib import Path

from experiments.common.errors import UserError
from scripts.report.domains import DOMAINS, Domain
from scripts.report.page import headline, page
from scripts.report.results import load, results
from scripts.report.runs import find_runs


def report(domain: Domain, roots: list[Path], out: Path) -> None:
    """Write and print what the runs below `roots` result in."""
    runs = find_runs(roots)
    elsewhere = sorted({run.config["outputs_dir"] for run in runs} - {"outputs"})
    for result in results(domain, runs):
        result.write(out)
        print(result.markdown())
        if result.command and elsewhere:  # not in the files, which may be read on another machine
            print(f"The runs are not in outputs/: to go on with them, add outputs_dir={' or '.join(elsewhere)}.")
        print(f"{out / result.title}.csv, .json, .png, .md")


def report_all(folder: Path) -> None:
    """Make everything in the folder of results anew from its CSVs."""
    found = []
    for path in (file for name in DOMAINS for file in sorted((folder / name).glob("*.json"))):
        found.append(load(path.with_suffix(".csv")))
        found[-1].show(path.parent)
    if not found:
        raise UserError(f"no results in {folder}")
    whole, lines = page(found, folder), headline(found).to_markdown(index=False, disable_numparse=True)
    (folder / "index.html").write_text(whole)
    (folder / "summary.md").write_text(lines + "\n")
    print(f"{folder / 'index.html'}, summary.md: {len(found)} results")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("domain", nargs="?", choices=sorted(DOMAINS), help="whose runs; without it, the page")
    parser.add_argument("runs", nargs="*", type=Path, help="run directories, or folders of them (outputs/<domain>)")
    parser.add_argument("--out", type=Path, help="default: outputs/report/<domain>; results for the page")
    arguments = parser.parse_intermixed_args()
    try:
        if arguments.domain is None:
            report_all(arguments.out or Path("results"))
        else:
            roots = arguments.runs or [Path("outputs") / arguments.domain]
            report(DOMAINS[arguments.domain], roots, arguments.out or Path("outputs/report") / arguments.domain)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
