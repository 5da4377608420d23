"""Save a view of each domain in Weights & Biases: `python -m scripts.wandb_workspace --entity me`.

A view overlays the methods of each group (benchmark and scale), each with its settings, the mean of its seeds with its
range, in the colour the method has everywhere here. `--json` prints the views instead of saving them and needs no
account.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from experiments.common.config import CONFIGS, WandbConfig
from experiments.common.wandb_mirror import variant
from scripts.report.domains import DOMAINS, METHODS, Domain
from scripts.report.recipes import composed, recipes_at

SCALES = ("laptop", "workstation", "paper")
RESETS = (
    "reset/sfe_normalised", "plasticity/dfi_normalised", "plasticity/sharpness", "plasticity/effective_rank",
    "plasticity/dormant", "plasticity/weight_norm", "plasticity/grad_norm",
)  # fmt: skip


def view(domain: Domain, entity: str, project: str) -> Any:
    """The workspace of a domain, not saved yet."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    def section(name: str, metrics: Sequence[str]) -> Any:
        panels: list[Any] = [
            reports.LinePlot(
                title=metric, x=domain.step, y=[metric], title_x=domain.steps, groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
            )
            for metric in metrics
        ]  # fmt: skip
        return workspaces.Section(name=name, panels=panels, is_open=True)

    colours: dict[object, object] = {
        workspaces.GroupPath(f"{domain.name}-{group}", label): colour
        for (group, label), colour in known(domain).items()
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"FIRE {domain.name}",
        sections=[section("results", [domain.metric, *domain.apart]), section("plasticity", RESETS)],
        settings=workspaces.WorkspaceSettings(x_axis=domain.step, max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=[workspaces.Tags().isin([domain.name])],
            groupby=[workspaces.Metric("Group"), workspaces.Config("variant")],
            group_colors=colours,
        ),
    )


def known(domain: Domain) -> dict[tuple[str, str], str]:
    """The colours of methods with their usual settings, by the W&B group without the domain and the variant."""
    colours = {}
    for scale in [scale for scale in SCALES if (CONFIGS / domain.name / "scale" / f"{scale}.yaml").exists()]:
        for choices in {tuple(domain.choices(recipe.benchmark)) for recipe in recipes_at(domain.name, scale, ())}:
            for method, (_, colour, _) in METHODS.items():
                values = composed(domain.name, (f"scale={scale}", *choices, f"method={method}"))
                colours[f"{domain.benchmark(values)}-{scale}", variant(values["method"])] = colour
    return colours


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.wandb_workspace", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY", ""), help="user or team; $WANDB_ENTITY")
    parser.add_argument(
        "--project", default=os.environ.get("WANDB_PROJECT", WandbConfig().project), help="default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print the views, save nothing")
    arguments = parser.parse_args()
    if not (arguments.entity or arguments.json):
        print("error: whose workspace? give --entity or set WANDB_ENTITY", file=sys.stderr)
        return 2
    views = {name: view(domain, arguments.entity or "entity", arguments.project) for name, domain in DOMAINS.items()}
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
