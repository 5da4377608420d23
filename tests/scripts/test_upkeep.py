"""`scripts.clean` and `scripts.wandb_sync` on real run directories."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock

from experiments.common import checkpoint
from experiments.common.wandb_mirror import labels
from scripts.report.methods import METHODS
from tests.conftest import REPOSITORY, Command, numbers, run_dirs
from tests.experiments.common.test_wandb_mirror import records


def script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"scripts.{name}", *arguments],
        cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


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


def test_wandb_sync_rebuilds_a_run_from_its_metric_log(vision: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    vision("method=none")
    (directory,) = run_dirs(tmp_path / "outputs")
    result = script("wandb_sync", str(tmp_path / "outputs"), "--mode", "offline")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 of 1 runs mirrored" in result.stdout
    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    found = list(records(file))
    run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    assert run.display_name == "none-s0"
    assert sum(record.WhichOneof("record_type") == "history" for record in found) == len(numbers(directory))
    # Without a key nothing can be uploaded, and that is not called a success.
    result = script("wandb_sync", str(tmp_path), WANDB_API_KEY="", HOME=str(tmp_path))
    assert result.returncode == 1
    assert "error: stopped at " in result.stderr
    assert len(list(directory.glob("wandb/offline-run-*"))) == 1
    assert script("wandb_sync", str(REPOSITORY / "configs")).returncode == 1


def test_wandb_workspace_overlays_the_methods_of_each_domain(
    vision: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """The service cannot be asked, so what would be sent to it is looked at."""
    vision("-m", "method=none,fire")
    vision("method=fire", "budget.train_images=1000")  # may not be averaged with the other one
    outputs = str(tmp_path / "outputs")
    views = json.loads(script("wandb_workspace", outputs, "--json", "--entity", "me", "--project", "p").stdout)
    assert set(views) == {"vision", "language", "atari", "humanoid"}
    for name, axis, metric in (
        ("vision", "epoch", "test/accuracy"), ("language", "iteration", "val/loss"),
        ("atari", "env_step", "eval/return"), ("humanoid", "env_step", "eval/return"),
    ):  # fmt: skip
        view = views[name]
        assert (view["entity"], view["project"], view["displayName"]) == ("me", "p", f"FIRE {name}")
        (runs,) = view["spec"]["section"]["runSets"]
        assert [(f["key"]["name"], f["op"], f["value"]) for f in runs["filters"]["filters"]] == [("tags", "IN", [name])]
        assert [key["name"] for key in runs["grouping"]] == ["group", "settings.value", "variant.value"]
        sections = view["spec"]["section"]["panelBankConfig"]["sections"]
        panels = [panel["config"] for section in sections for panel in section["panels"]]
        assert {panel["xAxis"] for panel in panels} == {axis}
        assert [metric] in [panel["metrics"] for panel in panels]
        assert all((panel["groupAgg"], panel["groupArea"]) == ("mean", "minmax") for panel in panels)
    runs = {path: labels(path) for path in run_dirs(tmp_path / "outputs")}
    assert {groups[0] for groups in runs.values()} == {"vision-warm_start-cifar10-resnet18-smoke"}
    settings = [{groups[1] for path, groups in runs.items() if method in path.name} for method in ("none", "fire")]
    assert [len(digests) for digests in settings] == [1, 2]
    assert settings[0] < settings[1]
    assert len({groups[2] for groups in runs.values()}) == 2
    sent = unquote(json.dumps(views["vision"]))
    assert all(word in sent for groups in runs.values() for word in groups)
    assert sent.count(METHODS["fire"].colour) == 2
    result = script("wandb_workspace", WANDB_ENTITY="")
    assert (result.returncode, result.stderr) == (2, "error: whose workspace? give --entity or set WANDB_ENTITY\n")
