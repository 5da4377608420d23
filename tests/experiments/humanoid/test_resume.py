"""kill -9 and signals: resumed runs end with the very same numbers, in the middle of an episode too."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.common import checkpoint
from tests.conftest import numbers, rows_so_far, run_dirs, start, stopped_when, undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("robot_dir")]
SETTINGS = ("scale=smoke", "wandb.mode=disabled", "threads=1", "env.backend=native")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, robot_dir: Path) -> list[dict]:
    """The numbers of the run that nothing disturbed."""
    return undisturbed("humanoid", tmp_path_factory.mktemp("reference"), "method=fire", *SETTINGS)


def in_phase_0(outputs: Path) -> bool:
    return len(rows_so_far(outputs, "phases/*")) >= 2


def in_phase_1(outputs: Path) -> bool:
    return len(rows_so_far(outputs, "humanoid/*/*")) >= 6  # 4 rows of phase 0, the boundary, one of phase 1


@pytest.mark.parametrize("moment", [in_phase_0, in_phase_1])
def test_kill_9_and_resume(moment: Callable[[Path], bool], reference: list[dict], tmp_path: Path) -> None:
    arguments = ["method=fire", *SETTINGS, f"outputs_dir={tmp_path}", "checkpoint_seconds=0.05"]
    status, printed = stopped_when("humanoid", moment, signal.SIGKILL, arguments, tmp_path)
    assert status == -signal.SIGKILL, printed
    process = start("humanoid", *arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert "going on with phase 0" in printed if moment is in_phase_0 else "resuming" in printed
    (directory,) = run_dirs(tmp_path)
    assert numbers(directory) == reference


def test_injection_resumes_too(tmp_path: Path) -> None:
    """After which the networks have other modules; on the task whose episodes end by contacts."""
    arguments = [*SETTINGS, "method=plasticity_injection", "task=h1-balance_simple"]
    whole = undisturbed("humanoid", tmp_path / "whole", *arguments)
    often = [*arguments, "checkpoint_seconds=0.05"]
    stopping = [*often, f"outputs_dir={tmp_path / 'parts'}"]
    status, printed = stopped_when("humanoid", in_phase_1, signal.SIGKILL, stopping, tmp_path / "parts")
    assert status == -signal.SIGKILL, printed
    assert undisturbed("humanoid", tmp_path / "parts", *often) == whole


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_at_once(how: int, reference: list[dict], tmp_path: Path) -> None:
    arguments = ["method=fire", *SETTINGS, f"outputs_dir={tmp_path}"]
    status, printed = stopped_when("humanoid", in_phase_1, how, arguments, tmp_path)
    assert status == 128 + how
    assert printed.strip().splitlines()[-1].startswith(f"stopped by {signal.Signals(how).name}; to go on: python -m")
    (directory,) = run_dirs(tmp_path)
    (saved,) = directory.glob("checkpoint-*.pt")
    state = torch.load(saved, weights_only=True)["state"]
    assert state["position"][1] >= 500
    assert state["player"]["physics"].dtype == torch.float64
    # The run has all it needs: `scripts.clean --free` may take the midpoint from it.
    referred = {tmp_path / name for name in state["replay"]["segments"]}
    assert referred == set(directory.glob("segment-*"))
    assert all(checkpoint.intact(path) for path in referred)
    shutil.rmtree(tmp_path / "phases")
    process = start("humanoid", *arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert numbers(directory) == reference
