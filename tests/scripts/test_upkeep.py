"""`scripts.clean` and `scripts.wandb_sync` on real run directories."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from experiments.common import checkpoint
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
