"""A result: runs that may be pooled, as a tidy CSV with a description beside it; both make its figure and its table."""

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.errors import HydraException
from matplotlib.figure import Figure
from omegaconf.errors import OmegaConfBaseException

from scripts.report.domains import DOMAINS, Domain
from scripts.report.figures import curves, save
from scripts.report.missing import Unfinished, missing, told, unfinished, without
from scripts.report.points import points
from scripts.report.recipes import Recipe, composed, deviations, is_shared, recipes_at, shown
from scripts.report.runs import Run, flat, label_methods, leave_out, poolable, tidy
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
        missing: the seeds in which methods of the recipe have not finished yet.
        unfinished: runs of which the CSV has the numbers so far.
    """

    recipe: str
    difference: str
    ran_with: dict[str, str]
    torch: list[str]
    commits: list[str]
    missing: dict[str, list[int]] = field(default_factory=dict)
    unfinished: list[Unfinished] = field(default_factory=list)


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

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The lines of the data that are of finished runs."""
        return without(self.data, self.about.unfinished)

    @property
    def is_complete(self) -> bool:
        """Whether every method of its recipe has finished in some seed, and nothing is under way."""
        return not self.about.unfinished and self.about.missing.keys() <= set(self.data.method)

    @property
    def seeds(self) -> str:
        """How many seeds its methods have."""
        counts = self.finished.groupby("method").seed.nunique()
        return f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"

    @property
    def circumstances(self) -> dict[str, str]:
        """What they were computed on and with."""
        return {"machine": self.machine, **self.about.ran_with, "PyTorch": ", ".join(self.about.torch)}

    @property
    def command(self) -> str:
        """What makes the runs again, and those that are missing; empty if no recipe does."""
        if not self.about.recipe:
            return ""
        choices = self.domain.choices(self.data.benchmark.iloc[0]) if is_shared(self.about.recipe) else []
        seeds = {*self.data.seed.unique().tolist(), *(seed for lacks in self.about.missing.values() for seed in lacks)}
        words = [f"experiment={self.about.recipe}", *choices, f"scale={self.scale}"]
        usual, ran_with = _by_default(self.domain.name, tuple(words)), self.about.ran_with
        words.append(f"seed={','.join(map(str, sorted(seeds)))}")
        if ran_with["precision"] != usual.get("precision"):
            words.append(f"precision={ran_with['precision']}")
        if ran_with["device"] == "cuda" or ran_with["compile"] != "false":  # on CUDA `auto` is not the same everywhere
            words.append(f"compile={ran_with['compile']}")
        if ran_with["device"] == "cpu":  # where their number can change the last bits
            words.append(f"threads={ran_with['threads']}")
        return f"python -m experiments.{self.domain.name} {' '.join(words)}"

    def table(self) -> pd.DataFrame:
        """The numbers by method."""
        return table(self.finished, self.domain, VIEWS.get(self.about.recipe))

    def pairs(self) -> pd.DataFrame:
        """The differences between methods."""
        return pairs(self.finished, self.domain)

    def figure(self) -> Figure:
        """The picture."""
        view = VIEWS.get(self.about.recipe)
        if view:
            return points(self.finished, self.domain, view)
        return curves(self.data, self.domain, self.about.unfinished)

    def warnings(self) -> list[str]:
        """What to know before reading."""
        found = []
        if self.domain.warning and self.scale != "paper":
            found.append(f"{self.domain.warning.capitalize()}; for the paper's protocol add scale=paper.")
        if self.seeds == "1" and self.finished.method.nunique() > 1:
            found.append("One seed: there is no interval, so no difference here is a claim.")
        return found

    def missing(self) -> str:
        """What of the recipe is not there; empty if all is."""
        lacks = told(self.about.missing, self.about.unfinished, self.domain)
        return f"{'' if self.is_complete else 'This recipe is not complete. '}{lacks}" if lacks else ""

    def markdown(self) -> str:
        """Table and circumstances."""
        about, lacks = self.about, self.missing()
        command = "Command, which also runs what is missing" if lacks else "Command"
        numbers, gaps = (part.to_markdown(index=False, disable_numparse=True) for part in (self.table(), self.pairs()))
        lines = [
            f"# {self.domain.name}: {self.title}", "",
            *(line for warning in self.warnings() for line in (f"**{warning}**", "")),
            *([lacks, ""] if lacks else []), numbers, "",
            f"{self.domain.title.capitalize()}: mean over seeds ± half width of the 95 % t-interval. Differences are "
            "paired by seed: all methods of a seed continue from the same phase 0.", "",
            *([gaps, ""] if gaps else []),
            *(["**Methods have different numbers of seeds**: compare by the paired differences.", ""]
              if "to" in self.seeds else []),
            *([f"Settings of their own: {about.difference}.", ""] if about.difference else []),
            *([f"{command}: `{self.command}`", ""] if self.command else []),
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
    known = json.loads(path.with_suffix(".json").read_text())
    begun = [Unfinished(**one) for one in known.pop("unfinished", [])]
    return Result(DOMAINS[data.domain.iloc[0]], path.stem, data, About(**known, unfinished=begun))


def results(domain: Domain, runs: list[Run]) -> list[Result]:
    """The results that runs make: those of recipes, as `shown` chooses them, and where finished runs are left over, all
    of their benchmark and scale together."""
    found = []
    for group in sorted({run.group for run in runs}):
        members = [run for run in runs if run.group == group]
        benchmark, _, scale = group.rpartition("-")
        recipes = recipes_at(domain.name, scale, tuple(domain.choices(benchmark)))
        claimed = set()
        for recipe, label, difference, pool in shown([one for one in recipes if one.benchmark == benchmark], members):
            claimed |= {run.path for run in pool}
            found.append(_result(domain, scale, recipe.title + label, recipe, difference, pool))
        for label, difference, pool in poolable([run for run in members if run.finished]):
            if any(run.path not in claimed for run in pool):
                found.append(_result(domain, scale, group + label, None, difference, pool))
        for run in members:
            if not run.finished and run.path not in claimed:
                leave_out(run.path)
    return found


def _result(
    domain: Domain, scale: str, title: str, recipe: Recipe | None, difference: str, members: list[Run]
) -> Result:
    words = (f"scale={scale}", *domain.choices(members[0].group.removesuffix(f"-{scale}")))
    jobs = recipe.as_runs() if recipe else []  # those that are missing have a name, too
    methods = {run.method for run in (*members, *jobs)}
    usual = {name: _by_default(domain.name, (*words, f"method={name}")) for name in methods}
    labels = label_methods([*members, *jobs], {name: values.get("method", {}) for name, values in usual.items()})
    differs = deviations(members[0].config, _by_default(domain.name, words)) if not recipe else []
    known = {word.split("=")[0] for word in difference.split(", ")}
    differs = [word for word in differs if word.split("=")[0].split(".")[-1] not in known]
    parts = [part for run in members for part in run.parts]
    own = flat(members[0].values)  # in which all of them agree
    about = About(
        recipe.name if recipe else "",
        ", ".join([*filter(None, [difference]), *differs]),
        {label: own[key].strip('"') for key, label in RAN_WITH.items() if key in own},
        sorted({part["versions"]["torch"] for part in parts}),
        sorted({part["git"] for part in parts}),
        missing(recipe, jobs, members, labels) if recipe else {},
        unfinished(members, labels, domain),
    )
    return Result(domain, title, tidy(members, domain, labels), about)


def _by_default(domain: str, words: tuple[str, ...]) -> dict[str, Any]:
    """What a run has that says no more than `words`; nothing where these are not known here, such as an own method."""
    try:
        return composed(domain, words)
    except (HydraException, OmegaConfBaseException):
        return {}
