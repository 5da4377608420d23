"""kill -9, signals, and what remains: resumed runs end with the very same numbers."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import numbers, rows_so_far, run_dirs, slow, start, stopped_when, undisturbed

# Enough steps in each phase to be interrupted in; a checkpoint after every one of them.
SETTINGS = (
    "scale=smoke", "method=fire", "budget.train_images=1000", "budget.epochs=[6,4]", "budget.test_every=[2,2]",
    "wandb.mode=disabled", "threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def reference(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The numbers of the run that nothing disturbed."""
    return undisturbed("vision", tmp_path_factory.mktemp("reference"), *SETTINGS, f"data_dir={data_dir}")


def in_phase_0(outputs: Path) -> bool:
    return len(rows_so_far(outputs, "phases/*")) >= 2


def in_phase_1(outputs: Path) -> bool:
    return len(rows_so_far(outputs, "vision/*/*")) >= 8  # 6 epochs of phase 0, the boundary, one of phase 1


def writing_a_checkpoint(outputs: Path) -> bool:
    return in_phase_0(outputs) and bool(list(outputs.rglob(".checkpoint.*.tmp")))


@pytest.mark.parametrize("moment", [slow(in_phase_0), slow(in_phase_1), writing_a_checkpoint])
def test_kill_9_and_resume(
    moment: Callable[[Path], bool], reference: list[dict], data_dir: Path, tmp_path: Path
) -> None:
    arguments = [*SETTINGS, f"outputs_dir={tmp_path}", f"data_dir={data_dir}", "checkpoint_seconds=0"]
    status, printed = stopped_when("vision", moment, signal.SIGKILL, arguments, tmp_path)
    assert status == -signal.SIGKILL, printed
    if moment is writing_a_checkpoint:
        assert list(tmp_path.rglob(".checkpoint.*.tmp"))
    process = start("vision", *arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    (directory,) = run_dirs(tmp_path)
    assert numbers(directory) == reference
    assert not list(tmp_path.rglob(".checkpoint.*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dash", "parseval", "muon"])
def test_kill_9_and_resume_with_other_methods(method: str, data_dir: Path, tmp_path: Path) -> None:
    arguments = [*SETTINGS, f"method={method}", f"data_dir={data_dir}", "checkpoint_seconds=0"]
    arguments.remove("method=fire")
    whole = undisturbed("vision", tmp_path / "whole", *arguments)
    outputs = tmp_path / "killed"
    status, printed = stopped_when(
        "vision", in_phase_1, signal.SIGKILL, [*arguments, f"outputs_dir={outputs}"], outputs
    )
    assert status == -signal.SIGKILL, printed
    assert undisturbed("vision", outputs, *arguments) == whole


@pytest.mark.parametrize("how", [signal.SIGINT, slow(signal.SIGTERM), slow(signal.SIGUSR1)])
def test_signal_saves_and_says_how_to_go_on(how: int, reference: list[dict], data_dir: Path, tmp_path: Path) -> None:
    arguments = [*SETTINGS, f"outputs_dir={tmp_path}", f"data_dir={data_dir}"]
    status, printed = stopped_when("vision", in_phase_1, how, arguments, tmp_path)
    assert status == 128 + how
    last = printed.strip().splitlines()[-1]
    assert last.startswith(
        f"stopped by {signal.Signals(how).name}; to resume: python -m experiments.vision scale=smoke"
    )
    assert "Traceback" not in printed
    (directory,) = run_dirs(tmp_path)
    assert list(directory.glob("checkpoint-*.pt"))
    process = start("vision", *arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert numbers(directory) == reference


@pytest.mark.slow
def test_two_processes_train_the_shared_phase_once(data_dir: Path, tmp_path: Path) -> None:
    settings = [argument for argument in SETTINGS if not argument.startswith(("method", "budget.epochs"))]
    arguments = [*settings, "budget.epochs=[80,2]", f"outputs_dir={tmp_path}", f"data_dir={data_dir}"]
    processes = [start("vision", f"method={method}", *arguments) for method in ("none", "fire")]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert sum("phase 0 was trained before" in text for text in printed) == 1
    assert sum(f"which holds {tmp_path}" in text for text in printed) == 1
    rows = [[row for row in numbers(directory) if row["phase"] == 0] for directory in run_dirs(tmp_path)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 80
