"""Save a view of each domain in Weights & Biases: `python -m scripts.wandb_workspace outputs/ --entity me`.

A view overlays the methods of each group (benchmark and scale, and what else may not be averaged): the mean of a
method's seeds with its range, in the method's colour. Only runs found in the folders get colours, so save again later.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as ws

from experiments.common.config import WandbConfig
from experiments.common.domain import Domain
from experiments.common.errors import UserError
from experiments.common.run_files import run_directories
from experiments.common.wandb_mirror import labels
from experiments.domains import NAMES, domain
from scripts import command
from scripts.report.methods import colour

PLASTICITY = (
    "reset/sfe_normalised", "plasticity/dfi_normalised", "plasticity/sharpness", "plasticity/effective_rank",
    "plasticity/dormant", "plasticity/weight_norm", "plasticity/grad_norm",
)  # fmt: skip


def view(of: Domain, groups: Sequence[tuple[str, str, str]], entity: str, project: str) -> ws.Workspace:
    """The workspace of a domain, not saved yet, with colours for the groups of its runs."""
    spec = of.results
    over_seeds: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax", "title_x": spec.steps}
    sections = []
    for title, metrics in (("results", [spec.metric, *spec.apart]), ("plasticity", PLASTICITY)):
        panels: list[Any] = [reports.LinePlot(title=m, x=spec.step, y=[m], **over_seeds) for m in metrics]
        sections.append(ws.Section(name=title, panels=panels, is_open=True))
    colours: dict[object, object] = {ws.GroupPath(*group): colour(group[-1]) for group in groups}
    shown = ws.RunsetSettings(
        filters=[ws.Tags().isin([of.name])],
        groupby=[ws.Metric("Group"), ws.Config("settings"), ws.Config("variant")],
        group_colors=colours,
    )
    axis = ws.WorkspaceSettings(x_axis=spec.step, max_runs=100)
    return ws.Workspace(entity, project, f"FIRE {of.name}", sections, axis, shown)


def main() -> None:
    """The command line."""
    project = os.environ.get("WANDB_PROJECT", WandbConfig().project)
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m scripts.wandb_workspace", description=__doc__)
    parser.add_argument(
        "folders", nargs="*", type=command.folder, default=[Path("outputs")], help="of runs; default: outputs"
    )
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY"), help="user or team; $WANDB_ENTITY")
    parser.add_argument("--project", default=project, help="default: %(default)s")
    given = parser.parse_args()
    if not given.entity:
        raise UserError("whose workspace? give --entity or set WANDB_ENTITY")
    for folder in given.folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
    folders = [run.absolute() for run in run_directories(given.folders)]
    runs = list(command.readable(folders, lambda run: (run.parts[-3], labels(run))))
    for name in NAMES:
        made = view(domain(name), [group for of, group in runs if of == name], given.entity, given.project)
        try:
            print(f"{name}: {made.save().url}")
        except Exception as error:  # whatever W&B raises: no key, no network, no such entity
            raise UserError(f"{name}: {(str(error) or type(error).__name__).splitlines()[0]}") from error


if __name__ == "__main__":
    sys.exit(command.run(main))
