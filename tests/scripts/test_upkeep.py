"""Scripts on real run directories."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
from filelock import FileLock

from experiments.common import checkpoint
from experiments.common.wandb_mirror import labels
from experiments.domains import NAMES, domain
from scripts.report.methods import METHODS
from scripts.wandb_workspace import view
from tests.conftest import REPOSITORY, Command, run_dirs


def script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"scripts.{name}", *arguments],
        cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_clean_lists_and_frees_what_is_not_in_use(vision: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    vision("-m", "seed=0,1", "method=none")
    phases = sorted((outputs / "phases").iterdir())
    listed = script("clean", str(outputs)).stdout
    assert all(str(phase) in listed for phase in phases)
    assert "in all; --free deletes them" in listed
    with FileLock(phases[0] / ".lock"):
        freed = script("clean", str(outputs), "--free").stdout
    assert f"in use, kept: {phases[0]}" in freed
    assert [phase.exists() for phase in phases] == [True, False]
    assert len(run_dirs(outputs)) == 2
    assert script("clean", str(tmp_path / "nowhere")).returncode == 1
    finished = run_dirs(outputs)[0]
    checkpoint.save(finished, {"left": "over"})  # as if killed between writing `done` and removing checkpoints
    assert "left-over checkpoints of a finished run" in script("clean", str(outputs), "--free").stdout
    assert (finished / "done").exists()
    assert not list(finished.glob("checkpoint-*.pt"))


def test_clean_names_what_is_kept_and_leaves_final_weights(language: Command, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    language("checkpoint=30k")
    listed = script("clean", str(outputs)).stdout
    assert "shared phase with " in listed
    assert "30k" in listed
    (phase,) = (outputs / "phases").iterdir()
    files = {path.stat().st_ino: path.stat().st_size for path in phase.glob("*.pt")}
    assert f"{sum(files.values()) / 1e6:10.1f} MB" in listed
    script("clean", str(outputs), "--free")
    assert not phase.exists()
    assert list(run_dirs(outputs)[0].glob("kept-final-*.pt"))


def test_wandb_sync_finds_what_was_written_offline(vision: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """The README's command, without the upload."""
    vision("method=none", "wandb.mode=offline")
    (directory,) = run_dirs(tmp_path / "outputs")
    found = [str(path) for path in (tmp_path / "outputs").glob("*/*/*/wandb/latest-run")]
    assert found == [str(directory / "wandb/latest-run")]
    words = [sys.executable, "-m", "wandb", "sync", "--dry-run", *found]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "Would sync 1 run(s)" in result.stdout + result.stderr


@pytest.mark.slow
def test_wandb_workspace_overlays_the_methods_of_each_domain(
    vision: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """The service cannot be asked, so what would be sent to it is looked at."""
    vision("-m", "method=none,fire")
    vision("method=fire", "budget.train_images=1000")  # may not be averaged with the other one
    runs = run_dirs(tmp_path / "outputs")
    views = {}
    for name in NAMES:
        made = view(domain(name), [labels(run) for run in runs] if name == "vision" else [], "me", "p")
        views[name] = made._to_model().model_dump(mode="json", by_alias=True)
    assert set(views) == {"vision", "language", "atari", "humanoid"}
    for name, axis, metric in (
        ("vision", "epoch", "test/accuracy"), ("language", "iteration", "val/loss"),
        ("atari", "env_step", "eval/return"), ("humanoid", "env_step", "eval/return"),
    ):  # fmt: skip
        sent = views[name]
        assert (sent["entity"], sent["project"], sent["displayName"]) == ("me", "p", f"FIRE {name}")
        (shown,) = sent["spec"]["section"]["runSets"]
        assert [(f["key"]["name"], f["op"], f["value"]) for f in shown["filters"]["filters"]] == [
            ("tags", "IN", [name])
        ]
        assert [key["name"] for key in shown["grouping"]] == ["group", "settings.value", "variant.value"]
        sections = sent["spec"]["section"]["panelBankConfig"]["sections"]
        panels = [panel["config"] for section in sections for panel in section["panels"]]
        assert {panel["xAxis"] for panel in panels} == {axis}
        assert [metric] in [panel["metrics"] for panel in panels]
        assert all((panel["groupAgg"], panel["groupArea"]) == ("mean", "minmax") for panel in panels)
    found = {path: labels(path) for path in runs}
    assert {groups[0] for groups in found.values()} == {"vision-warm_start-cifar10-resnet18-smoke"}
    settings = [{groups[1] for path, groups in found.items() if method in path.name} for method in ("none", "fire")]
    assert [len(digests) for digests in settings] == [1, 2]
    assert settings[0] < settings[1]
    assert len({groups[2] for groups in found.values()}) == 2
    sent = unquote(json.dumps(views["vision"]))
    assert all(word in sent for groups in found.values() for word in groups)
    assert sent.count(METHODS["fire"].colour) == 2
    result = script("wandb_workspace", WANDB_ENTITY="")
    assert (result.returncode, result.stderr) == (1, "error: whose workspace? give --entity or set WANDB_ENTITY\n")
