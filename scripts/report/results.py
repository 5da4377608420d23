"""A result: runs that may be pooled, as a tidy CSV with a description beside it; both make its figure and its table."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from scripts.report.domains import DOMAINS, Domain
from scripts.report.figures import curves, save
from scripts.report.points import points
from scripts.report.recipes import recipes_at
from scripts.report.runs import Run, commits, poolable, tidy
from scripts.report.tables import table
from scripts.report.views import VIEWS


@dataclass(frozen=True)
class About:
    """What the CSV does not say.

    Attributes:
        recipe: whose jobs the runs are; empty if of none.
        difference: in which settings they differ from other runs of the same name.
        torch: its version. commits: of this repository.
    """

    recipe: str
    difference: str
    torch: str
    commits: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """Runs of one benchmark, scale and machine.

    Attributes:
        title: its files' name without the ending.
        data: one line for each number logged, as `tidy` makes it.
    """

    domain: Domain
    title: str
    data: pd.DataFrame
    about: About

    @property
    def scale(self) -> str:
        """The runs' scale."""
        return str(self.data.scale.iloc[0])

    @property
    def machine(self) -> str:
        """What they were computed on."""
        return str(self.data.machine.iloc[0])

    @property
    def seeds(self) -> int:
        """How many seeds there are at most."""
        return int(self.data.groupby("method").seed.nunique().max())

    def table(self) -> pd.DataFrame:
        """The numbers by method."""
        return table(self.data, self.domain, VIEWS.get(self.about.recipe))

    def figure(self) -> Figure:
        """The picture."""
        view = VIEWS.get(self.about.recipe)
        return points(self.data, self.domain, view) if view else curves(self.data, self.domain)

    def warning(self) -> str:
        """What to know before reading."""
        if not self.domain.warning or self.scale == "paper":
            return ""
        return f"{self.domain.warning.capitalize()}; for the paper's protocol add scale=paper."

    def markdown(self) -> str:
        """Table and circumstances."""
        warning, about = self.warning(), self.about
        numbers = self.table().to_markdown(index=False, disable_numparse=True)
        lines = [
            f"# {self.domain.name}: {self.title}", "",
            *([f"**{warning}**", ""] if warning else []), numbers, "",
            f"{self.domain.title.capitalize()}: mean over seeds ± half width of the 95 % t-interval. Differences are "
            "paired by seed: all methods of a seed continue from the same phase 0.", "",
            *([f"Settings that differ from those of other runs: {about.difference}.", ""] if about.difference else []),
            f"Machine: {self.machine}. torch {about.torch}. Commits: {', '.join(about.commits)}.", "",
        ]  # fmt: skip
        return "\n".join(lines)

    def write(self, out: Path) -> None:
        """The CSV and its description, and what is made from them."""
        out.mkdir(parents=True, exist_ok=True)
        self.data.to_csv(out / f"{self.title}.csv", index=False)
        (out / f"{self.title}.json").write_text(json.dumps(asdict(self.about), indent=1) + "\n")
        self.show(out)

    def show(self, out: Path) -> None:
        """Figure and table."""
        save(self.figure(), out / f"{self.title}.png")
        (out / f"{self.title}.md").write_text(self.markdown())


def load(path: Path) -> Result:
    """The result whose CSV is at `path`."""
    data = pd.read_csv(path)
    about = About(**json.loads(path.with_suffix(".json").read_text()))
    return Result(DOMAINS[data.domain.iloc[0]], path.stem, data, about)


def results(domain: Domain, runs: list[Run]) -> list[Result]:
    """The results that runs make: those of each recipe all of whose jobs are there, and where runs are left over, all
    runs of their benchmark and scale together."""
    found = []
    for group in sorted({run.group for run in runs}):
        members = [run for run in runs if run.group == group]
        benchmark, _, scale = group.rpartition("-")
        claimed = set()
        for recipe in recipes_at(domain.name, scale):
            if recipe.benchmark == benchmark and (own := recipe.runs(members)):
                claimed |= {run.path for run in own}
                found += [_result(domain, f"{recipe.name}-{scale}", recipe.name, *pool) for pool in poolable(own)]
        if any(run.path not in claimed for run in members):
            found += [_result(domain, group, "", *pool) for pool in poolable(members)]
    return found


def _result(domain: Domain, title: str, recipe: str, label: str, difference: str, members: list[Run]) -> Result:
    made_with = sorted(set().union(*(commits(run) for run in members)))
    about = About(recipe, difference, members[0].info["versions"]["torch"], made_with)
    return Result(domain, title + label, tidy(members, domain), about)
