"""Save a view of each domain in Weights & Biases: `python -m scripts.wandb_workspace outputs/ --entity me`.

A view overlays the methods of each group (benchmark and scale, and what else may not be averaged), each with its
settings, the mean of its seeds with its range, in the colour the method has everywhere here. Colours are those of the
runs found in the folders; runs with other settings that come later have W&B's own until it is saved again. `--json`
prints the views instead of saving them and needs no account.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.config import WandbConfig
from experiments.common.wandb_mirror import labels
from experiments.common.workspace import run_directories
from experiments.domains import NAMES
from scripts.report.methods import colour
from scripts.report.specs import results_of

RESETS = (
    "reset/sfe_normalised", "plasticity/dfi_normalised", "plasticity/sharpness", "plasticity/effective_rank",
    "plasticity/dormant", "plasticity/weight_norm", "plasticity/grad_norm",
)  # fmt: skip


def view(domain: str, runs: Sequence[Path], entity: str, project: str) -> Any:
    """The workspace of a domain, not saved yet, with the colours of its runs."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    spec = results_of(domain)

    def section(name: str, metrics: Sequence[str]) -> Any:
        panels: list[Any] = [
            reports.LinePlot(
                title=metric, x=spec.step, y=[metric], title_x=spec.steps, groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
            )
            for metric in metrics
        ]  # fmt: skip
        return workspaces.Section(name=name, panels=panels, is_open=True)

    colours: dict[object, object] = {workspaces.GroupPath(*groups): colour(groups[-1]) for groups in map(labels, runs)}
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"FIRE {domain}",
        sections=[section("results", [spec.metric, *spec.apart]), section("plasticity", RESETS)],
        settings=workspaces.WorkspaceSettings(x_axis=spec.step, max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=[workspaces.Tags().isin([domain])],
            groupby=[workspaces.Metric("Group"), workspaces.Config("settings"), workspaces.Config("variant")],
            group_colors=colours,
        ),
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.wandb_workspace", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("outputs")], help="of the runs to be coloured; default: outputs"
    )
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY", ""), help="user or team; $WANDB_ENTITY")
    parser.add_argument(
        "--project", default=os.environ.get("WANDB_PROJECT", WandbConfig().project), help="default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print the views, save nothing")
    arguments = parser.parse_args()
    if not (arguments.entity or arguments.json):
        print("error: whose workspace? give --entity or set WANDB_ENTITY", file=sys.stderr)
        return 2
    found = [run.absolute() for run in run_directories(arguments.folders)]
    views = {
        name: view(
            name, [run for run in found if run.parts[-3] == name], arguments.entity or "entity", arguments.project
        )
        for name in NAMES
    }
    if arguments.json:
        models = {name: made._to_model().model_dump(mode="json", by_alias=True) for name, made in views.items()}
        print(json.dumps(models, indent=1))
        return 0
    for name, made in views.items():
        try:
            print(f"{name}: {made.save().url}")
        except Exception as error:  # whatever W&B raises: no key, no network, no such entity
            print(f"error: {name}: {(str(error) or type(error).__name__).splitlines()[0]}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
