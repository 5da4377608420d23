"""The files of a run directory, read in one way by all: what is damaged is named, never a traceback.

run.json       what the run is: identity, settings, commit, versions, machine
config.yaml    its whole configuration
metrics.jsonl  its numbers (`metric_log`)
recipes/       the recipes that asked for it
done           the summary of a finished run, with the checksum of its metric log
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.common.errors import UserError
from experiments.common.files import check_regular, checksum, damaged, read_object, write_text
from experiments.common.schema import digest

LOG_CHECKSUM = "metrics_sha256"  # in `done`
_NEEDED = ("identity", "values", "command", "machine", "git", "versions", "continued", "branched_from")


def description(folder: Path) -> dict[str, Any]:
    """What `run.json` says.

    Raises:
        UserError: it cannot be read, or is damaged; so of the other files.
    """
    path = folder / "run.json"
    found = read_object(path, _NEEDED)
    needed = [] if is_shared_phase(folder) else ["method", "seed", "optimizer_at_boundary"]
    if not isinstance(found["values"], dict) or not found["values"].keys() >= {*needed}:
        raise damaged(path, f"its values lack {', '.join(needed)}")
    if digest(found["values"]) != found["identity"]:
        raise damaged(path, "its values have changed")
    return found


def configuration(folder: Path, schema: Any = None) -> DictConfig:
    """The configuration of a run, which must fit the `schema` if one is given."""
    path = folder / "config.yaml"
    check_regular(path)
    try:
        found: Any = OmegaConf.load(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except Exception as error:  # of YAML, OmegaConf or UTF-8
        raise damaged(path, error) from error
    if not isinstance(found, DictConfig):
        raise damaged(path, "it holds no settings")
    try:
        return OmegaConf.merge(OmegaConf.structured(schema), found) if schema else found  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(f"{path} is of another version: {str(error).splitlines()[0]}") from error


def summary(folder: Path) -> dict[str, Any] | None:
    """What a finished run has left in `done`; None if it has not finished."""
    path = folder / "done"
    return read_object(path) if path.exists() else None


def finish(folder: Path, found: dict[str, Any]) -> None:
    """Mark a run finished."""
    write_text(
        folder / "done", json.dumps({**found, LOG_CHECKSUM: checksum(folder / "metrics.jsonl")}, indent=1) + "\n"
    )


def check_finished_log(folder: Path, found: dict[str, Any]) -> None:
    """Raise UserError unless the metric log of a finished run is as it was when the run finished."""
    path = folder / "metrics.jsonl"
    if LOG_CHECKSUM in found and (not path.exists() or checksum(path) != found[LOG_CHECKSUM]):
        raise damaged(path, "it has changed since the run finished")


def overwrites(folder: Path) -> int:
    """How often a run has been redone in place of an earlier one."""
    path = folder / "overwrites"
    try:
        return int(path.read_bytes()) if path.exists() else 0
    except ValueError as error:
        raise damaged(path, error) from error


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """The recipes that asked for a run, by name, with the sweep each makes."""
    return {path.stem: read_object(path) for path in sorted(folder.glob("recipes/*.json"))}


def run_directories(folders: Iterable[Path]) -> list[Path]:
    """All run directories, finished or not, below some folders."""
    described = {file.parent for folder in folders for file in folder.rglob("run.json")}
    return sorted(path for path in described if not is_shared_phase(path))


def is_shared_phase(path: Path) -> bool:
    """Whether a workspace is an entry of the phase cache."""
    return path.parent.name == "phases"
