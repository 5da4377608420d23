"""Bad input: one clear line, a non-zero exit, no traceback, no run directory."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.common import checkpoint
from tests.conftest import REPOSITORY, run_dirs, start

Vision = Callable[..., tuple[int, str]]


def test_from_a_shell_too(tmp_path: Path) -> None:
    process = start("vision", "method=nothing", f"outputs_dir={tmp_path}")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_cuda_absent(vision: Vision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, printed = vision("device=cuda")
    assert status == 1
    assert "device=cuda, but PyTorch sees no CUDA device here" in printed


def test_no_disk_space(vision: Vision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    status, printed = vision()
    assert status == 1
    assert "no disk space: " in printed
    assert not (tmp_path / "outputs" / "vision").exists()


def test_disk_fills_up_during_a_checkpoint(vision: Vision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experiments.common.checkpoint.os.fsync", full)
    status, printed = vision()
    assert status == 1
    assert "No space left on device" in printed
    assert "Traceback" not in printed
    assert not list((tmp_path / "outputs").rglob("*.tmp"))


def test_checkpoint_of_another_identity(vision: Vision, tmp_path: Path) -> None:
    vision("seed=0", "until=phase0")
    vision("seed=1", "until=phase0")
    one, other = sorted((tmp_path / "outputs" / "phases").iterdir())
    checkpoint.remove(one)
    for path in other.glob("checkpoint-*.pt"):
        shutil.copy(path, one)
    printed = [vision(f"seed={seed}")[1] for seed in (0, 1)]
    assert sum("is of another configuration" in text for text in printed) == 1
    assert len(run_dirs(tmp_path / "outputs")) == 1  # the refused one left none


def test_damaged_checkpoint_is_named(vision: Vision, tmp_path: Path) -> None:
    vision("until=phase0")
    (phase,) = (tmp_path / "outputs" / "phases").iterdir()
    for path in phase.glob("checkpoint-*.pt"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    status, printed = vision()
    assert status == 1
    assert "damaged checkpoint " in printed
    assert str(phase) in printed


def test_run_in_use_is_refused(vision: Vision, tmp_path: Path) -> None:
    from filelock import FileLock

    vision("phase_cache=false")
    (directory,) = run_dirs(tmp_path / "outputs")
    (directory / "done").unlink()
    with FileLock(directory / ".lock"):
        status, printed = vision("phase_cache=false")
    assert status == 1
    assert f"{directory} is in use by process " in printed


def test_full_disk_during_training_is_said_as_such(vision: Vision, tmp_path: Path) -> None:
    """On a real file system of 1 MB, where this machine lets us mount one."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        status, printed = vision(f"outputs_dir={small}", "budget.width=16")
        assert (status, "no disk space: " in printed) == (1, True)
        (small / "ballast").write_bytes(b"x" * 900_000)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda path: shutil.disk_usage(tmp_path))
            patch.setattr("experiments.common.run.check_disk", lambda job, experiment: None)
            status, printed = vision(f"outputs_dir={small}", "budget.width=16")
        assert status == 1
        assert "No space left on device" in printed or "cannot write a checkpoint" in printed
        assert "Traceback" not in printed
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_no_machine_paths_or_registry_hosts_in_the_tree() -> None:
    pattern = "|".join(["pypi\\." + "org", "python" + "hosted", "registry\\." + "npmjs", "deb\\." + "debian"])
    found = subprocess.run(
        ["git", "-C", str(REPOSITORY), "grep", "-lIE", pattern], capture_output=True, text=True, check=False
    )
    assert found.stdout == ""
