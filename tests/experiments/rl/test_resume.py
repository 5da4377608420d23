"""kill -9 and signals: resumed runs end with the very same numbers, though Atari's environments cannot be saved and the
humanoid is in the middle of an episode."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.common import checkpoint
from tests.conftest import numbers, rows_so_far, run_dirs, start, stopped_when, undisturbed
from tests.experiments.rl.conftest import AGENTS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("robot_dir")]
SETTINGS = ("scale=smoke", "wandb.mode=disabled", "threads=1", "device=cpu")
METHOD = {  # of the humanoid one that acts during training
    "atari": ("method=fire", "env.sticky=agent_step"),
    "humanoid": ("method=redo", "method.period=20", "method.tau=0.3", "env.backend=native"),
}  # fmt: skip


@pytest.fixture(scope="module", params=AGENTS)
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, robot_dir: Path
) -> tuple[str, list[dict]]:
    """A domain, and the numbers of its run that nothing disturbed."""
    domain = request.param
    return domain, undisturbed(domain, tmp_path_factory.mktemp("reference"), *METHOD[domain], *SETTINGS)


def in_phase_0(domain: str) -> Callable[[Path], bool]:
    return lambda outputs: len(rows_so_far(outputs, "phases/*")) >= 2


def in_phase_1(domain: str) -> Callable[[Path], bool]:
    return lambda outputs: len(rows_so_far(outputs, f"{domain}/*/*")) >= 6  # 4 of phase 0, the boundary, one of phase 1


@pytest.mark.parametrize("moment", [in_phase_0, in_phase_1])
def test_kill_9_and_resume(
    moment: Callable[[str], Callable[[Path], bool]], reference: tuple[str, list[dict]], tmp_path: Path
) -> None:
    domain, expected = reference
    arguments = [*METHOD[domain], *SETTINGS, f"outputs_dir={tmp_path}", "checkpoint_seconds=0.05"]
    status, printed = stopped_when(domain, moment(domain), signal.SIGKILL, arguments, tmp_path)
    assert status == -signal.SIGKILL, printed
    process = start(domain, *arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert "resuming phase 0" in printed if moment is in_phase_0 else "resuming" in printed
    (directory,) = run_dirs(tmp_path)
    assert numbers(directory) == expected


@pytest.mark.parametrize("domain", AGENTS)
def test_injection_resumes_too(domain: str, tmp_path: Path) -> None:
    """After which the networks have other modules. In Atari with updates so rare that rows come between them, in the
    humanoid on the task whose episodes end by contacts."""
    special = {"atari": ["replay_ratio=0.02"], "humanoid": ["task=h1-balance_simple", "env.backend=native"]}
    arguments = [*SETTINGS, "method=plasticity_injection", *special[domain]]
    whole = undisturbed(domain, tmp_path / "whole", *arguments)
    often = [*arguments, "checkpoint_seconds=0.05"]
    stopping = [*often, f"outputs_dir={tmp_path / 'parts'}"]
    status, printed = stopped_when(domain, in_phase_1(domain), signal.SIGKILL, stopping, tmp_path / "parts")
    assert status == -signal.SIGKILL, printed
    assert undisturbed(domain, tmp_path / "parts", *often) == whole


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_at_once(how: int, reference: tuple[str, list[dict]], tmp_path: Path) -> None:
    domain, expected = reference
    arguments = [*METHOD[domain], *SETTINGS, f"outputs_dir={tmp_path}"]
    status, printed = stopped_when(domain, in_phase_1(domain), how, arguments, tmp_path)
    assert status == 128 + how
    assert printed.strip().splitlines()[-1].startswith(f"stopped by {signal.Signals(how).name}; to resume: python -m")
    (directory,) = run_dirs(tmp_path)
    (saved,) = directory.glob("checkpoint-*.pt")
    state = torch.load(saved, weights_only=True)["state"]
    assert state["position"][1] >= {"atari": 500, "humanoid": 500}[domain]
    # The run has all it needs: `scripts.clean --free` may take the midpoint from it.
    referred = {tmp_path / name for name in state["replay"]["segments"]}
    assert referred == set(directory.glob("segment-*"))
    assert all(checkpoint.intact(path) for path in referred)
    shutil.rmtree(tmp_path / "phases")
    process = start(domain, *arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert numbers(directory) == expected


def test_old_segments_go_and_the_midpoints_stay(tmp_path: Path) -> None:
    """A buffer of 150 transitions goes round in each phase; what no checkpoint needs any more is deleted."""
    arguments = ["method=fire", *SETTINGS, f"outputs_dir={tmp_path}", "checkpoint_seconds=0", "budget.buffer=150"]
    status, printed = stopped_when("atari", in_phase_1("atari"), signal.SIGTERM, arguments, tmp_path)
    assert status == 128 + signal.SIGTERM, printed
    (directory,) = run_dirs(tmp_path)
    (midpoint,) = tmp_path.glob("phases/*")
    referred = set()
    for saved in [*directory.glob("checkpoint-*.pt"), *checkpoint.kept(midpoint).values()]:
        referred |= {tmp_path / name for name in torch.load(saved, weights_only=True)["state"]["replay"]["segments"]}
    assert {path for path in referred if path.exists()} == referred
    assert set(directory.glob("segment-*")) <= referred
    slots = sum(int(path.name.split("-")[2]) - int(path.name.split("-")[1]) for path in midpoint.glob("segment-*"))
    assert slots < 80  # of the 103 there were; 39 are needed
    process = start("atari", *arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert not list(directory.glob("segment-*"))
