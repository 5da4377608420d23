"""A result: runs that may be pooled, as a tidy CSV with a description beside it; both make its figure and its table."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.errors import HydraException
from matplotlib.figure import Figure
from omegaconf.errors import OmegaConfBaseException

from scripts.report.domains import DOMAINS, Domain
from scripts.report.figures import curves, save
from scripts.report.points import points
from scripts.report.recipes import composed, deviations, is_shared, recipes_at
from scripts.report.runs import Run, flat, poolable, tidy
from scripts.report.tables import pairs, table
from scripts.report.views import VIEWS

# What of a run's identity a reader wants to know, though it changes numbers only as chance does, by the names told.
RAN_WITH = {
    "device": "device", "threads": "threads", "compile": "compile", "precision": "precision",
    "environment.name": "environment", "environment.version": "its version", "environment.mujoco": "MuJoCo",
}  # fmt: skip


@dataclass(frozen=True)
class About:
    """What the CSV does not say.

    Attributes:
        recipe: whose jobs the runs are; empty if of none.
        difference: in which settings they differ from those of their scale or from other runs of the same name.
        ran_with: values of RAN_WITH by its names.
        torch: its versions. commits: of this repository.
    """

    recipe: str
    difference: str
    ran_with: dict[str, str]
    torch: list[str]
    commits: list[str]


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
    def seeds(self) -> str:
        """How many seeds its methods have."""
        counts = self.data.groupby("method").seed.nunique()
        return f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"

    @property
    def circumstances(self) -> dict[str, str]:
        """What they were computed on and with."""
        return {"machine": self.machine, **self.about.ran_with, "PyTorch": ", ".join(self.about.torch)}

    @property
    def command(self) -> str:
        """What makes the runs again; empty if no recipe does."""
        if not self.about.recipe:
            return ""
        choices = self.domain.choices(self.data.benchmark.iloc[0]) if is_shared(self.about.recipe) else []
        seeds = ",".join(str(seed) for seed in sorted(self.data.seed.unique()))
        words = [f"experiment={self.about.recipe}", *choices, f"scale={self.scale}", f"seed={seeds}"]
        if self.about.ran_with["device"] == "cpu":  # where their number can change the last bits
            words.append(f"threads={self.about.ran_with['threads']}")
        return f"python -m experiments.{self.domain.name} {' '.join(words)}"

    def table(self) -> pd.DataFrame:
        """The numbers by method."""
        return table(self.data, self.domain, VIEWS.get(self.about.recipe))

    def pairs(self) -> pd.DataFrame:
        """The differences between methods."""
        return pairs(self.data, self.domain)

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
        numbers, gaps = (part.to_markdown(index=False, disable_numparse=True) for part in (self.table(), self.pairs()))
        lines = [
            f"# {self.domain.name}: {self.title}", "",
            *([f"**{warning}**", ""] if warning else []), numbers, "",
            f"{self.domain.title.capitalize()}: mean over seeds ± half width of the 95 % t-interval. Differences are "
            "paired by seed: all methods of a seed continue from the same phase 0.", "",
            *([gaps, ""] if gaps else []),
            *(["**Methods have different numbers of seeds**: compare by the paired differences.", ""]
              if "to" in self.seeds else []),
            *([f"Settings of their own: {about.difference}.", ""] if about.difference else []),
            *([f"Command: `{self.command}`", ""] if self.command else []),
            ", ".join(f"{key}: {value}" for key, value in self.circumstances.items()) + ".", "",
            f"Commits: {', '.join(about.commits)}.", "",
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
    """The results that runs make: those of each recipe all of whose methods are there, and where runs are left over,
    all runs of their benchmark and scale together."""
    found = []
    for group in sorted({run.group for run in runs}):
        members = [run for run in runs if run.group == group]
        benchmark, _, scale = group.rpartition("-")
        choices = tuple(domain.choices(benchmark))
        claimed = set()
        for recipe in recipes_at(domain.name, scale, choices):
            if recipe.benchmark == benchmark:
                pools = recipe.pools(members)
                claimed |= {run.path for _, _, pool in pools for run in pool}
                found += [_result(domain, scale, recipe.title, recipe.name, *pool) for pool in pools]
        for label, difference, pool in poolable(members):
            if any(run.path not in claimed for run in pool):
                found.append(_result(domain, scale, group, "", label, difference, pool))
    return found


def _result(
    domain: Domain, scale: str, title: str, recipe: str, label: str, difference: str, members: list[Run]
) -> Result:
    words = (f"scale={scale}", *domain.choices(members[0].group.removesuffix(f"-{scale}")))
    usual = {name: _by_default(domain.name, (*words, f"method={name}")) for name in {r.method for r in members}}
    told = deviations(members[0].config, _by_default(domain.name, words)) if not recipe else []
    known = {word.split("=")[0] for word in difference.split(", ")}
    told = [word for word in told if word.split("=")[0].split(".")[-1] not in known]
    parts = [part for run in members for part in run.parts]
    own = flat(members[0].values)  # in which all of them agree
    about = About(
        recipe,
        ", ".join([*filter(None, [difference]), *told]),
        {label: own[key].strip('"') for key, label in RAN_WITH.items() if key in own},
        sorted({part["versions"]["torch"] for part in parts}),
        sorted({part["git"] for part in parts}),
    )
    data = tidy(members, domain, {name: values.get("method", {}) for name, values in usual.items()})
    return Result(domain, title + label, data, about)


def _by_default(domain: str, words: tuple[str, ...]) -> dict[str, Any]:
    """What a run has that says no more than `words`; nothing where these are not known here, such as an own method."""
    try:
        return composed(domain, words)
    except (HydraException, OmegaConfBaseException):
        return {}
