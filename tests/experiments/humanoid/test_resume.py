"""kill -9 and signals: resumed runs end with the very same numbers, though environments cannot be saved."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.common import checkpoint
from tests.conftest import numbers, rows_so_far, run_dirs, start, stopped_when, undisturbed

pytestmark = pytest.mark.slow
# Environments start afresh every 400 steps; a checkpoint comes at every moment in between.
SETTINGS = ("scale=smoke", "method=fire", "wandb.mode=disabled", "threads=1")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The numbers of the run that nothing disturbed."""
    return undisturbed("humanoid", tmp_path_factory.mktemp("reference"), *SETTINGS)


def in_phase_0(outputs: Path) -> bool:
    return len(rows_so_far(outputs, "phases/*")) >= 2


def in_phase_1(outputs: Path) -> bool:
    return len(rows_so_far(outputs, "humanoid/*/*")) >= 6  # 4 rows of phase 0, the boundary, one of phase 1


@pytest.mark.parametrize("moment", [in_phase_0, in_phase_1])
def test_kill_9_and_resume(moment: Callable[[Path], bool], reference: list[dict], tmp_path: Path) -> None:
    arguments = [*SETTINGS, f"outputs_dir={tmp_path}", "checkpoint_seconds=0.05"]
    status, printed = stopped_when("humanoid", moment, signal.SIGKILL, arguments, tmp_path)
    assert status == -signal.SIGKILL, printed
    process = start("humanoid", *arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert "going on with phase 0" in printed if moment is in_phase_0 else "resuming" in printed
    (directory,) = run_dirs(tmp_path)
    assert numbers(directory) == reference


def test_injection_resumes_too(tmp_path: Path) -> None:
    """After which the network has other modules; and with updates so rare that rows come between them."""
    arguments = [*SETTINGS[:1], *SETTINGS[2:], "method=plasticity_injection", "replay_ratio=0.02"]
    whole = undisturbed("humanoid", tmp_path / "whole", *arguments)
    often = [*arguments, "checkpoint_seconds=0.05"]
    stopping = [*often, f"outputs_dir={tmp_path / 'parts'}"]
    status, printed = stopped_when("humanoid", in_phase_1, signal.SIGKILL, stopping, tmp_path / "parts")
    assert status == -signal.SIGKILL, printed
    assert undisturbed("humanoid", tmp_path / "parts", *often) == whole


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_at_once(how: int, reference: list[dict], tmp_path: Path) -> None:
    arguments = [*SETTINGS, f"outputs_dir={tmp_path}"]
    status, printed = stopped_when("humanoid", in_phase_1, how, arguments, tmp_path)
    assert status == 128 + how
    assert printed.strip().splitlines()[-1].startswith(f"stopped by {signal.Signals(how).name}; to go on: python -m")
    (directory,) = run_dirs(tmp_path)
    (saved,) = directory.glob("checkpoint-*.pt")
    assert torch.load(saved, weights_only=True)["state"]["position"][1] >= 1000
    process = start("humanoid", *arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert numbers(directory) == reference


def test_old_segments_go_and_the_midpoints_stay(tmp_path: Path) -> None:
    """A buffer of 300 transitions goes round in each phase; what no checkpoint needs any more is deleted."""
    arguments = [*SETTINGS, f"outputs_dir={tmp_path}", "checkpoint_seconds=0", "budget.buffer=300"]
    status, printed = stopped_when("humanoid", in_phase_1, signal.SIGTERM, arguments, tmp_path)
    assert status == 128 + signal.SIGTERM, printed
    (directory,) = run_dirs(tmp_path)
    (midpoint,) = tmp_path.glob("phases/*")
    referred = set()
    for saved in [*directory.glob("checkpoint-*.pt"), *checkpoint.kept(midpoint).values()]:
        referred |= {tmp_path / name for name in torch.load(saved, weights_only=True)["state"]["replay"]["segments"]}
    assert {path for path in referred if path.exists()} == referred
    assert set(directory.glob("segment-*")) <= referred
    slots = sum(int(path.name.split("-")[2]) - int(path.name.split("-")[1]) for path in midpoint.glob("segment-*"))
    assert slots < 160  # of the 203 there were; 76 are needed
    # The run has all it needs: `scripts.clean --free` may take the midpoint from it.
    shutil.rmtree(tmp_path / "phases")
    process = start("humanoid", *arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert not (tmp_path / "phases").exists()
    assert not list(directory.glob("segment-*"))
