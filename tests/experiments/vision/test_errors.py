"""Bad input: one clear line, a non-zero exit, no traceback, no run directory."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.common import checkpoint
from tests.conftest import REPOSITORY, run_dirs, start

Vision = Callable[..., tuple[int, str]]

CASES = {
    "method=dash": "Could not find 'method/dash' Available options in 'method': fire fire_exact",
    "benchmark=foo": "Could not find 'benchmark/foo' Available options in 'benchmark': continual warm_start",
    "method=plasticity_injection": "plasticity_injection needs a scope whose `inject` names",
    "scale=huge": "Could not find 'scale/huge' Available options in 'scale': laptop paper smoke",
    "experiment=fig4a_asterix": "Could not find 'experiment/fig4a_asterix'",
    "model=vgg": "Could not find 'model/vgg' Available options in 'model': resnet18",
    "sede=1": "unknown key 'sede'; did you mean 'seed'?",
    "+sede=1": "unknown key 'sede'; did you mean 'seed'?",
    "method.stepz=3": "unknown key 'method.stepz'; did you mean 'method.steps'?",
    "budget.hight=3": "unknown key 'budget.hight'",
    "seed=abc": "Value 'abc' of type 'str' could not be converted to Integer",
    "seed=-1": "seed=-1 must lie in [0, 4294967295]",
    "seed": "missing EQUAL",
    "method.steps=0": "method=fire: steps must be a whole number of at least 1",
    "method.solver=muon": "unknown solver 'muon'; valid: newton_schulz, polar_express, svd",
    "model.scope.include=[tail]": "include pattern 'tail' matches no module with weights; there are: stem.0",
    "model.scope.reset=[tail]": "reset pattern 'tail' matches no module",
    "precision=fp8": "precision=fp8 is unknown; valid: fp32, tf32, bf16",
    "precision=tf32": "precision=tf32 needs CUDA",
    "precision=BF16": "precision=BF16 is unknown; valid: fp32, tf32, bf16",
    "optimizer_at_boundary=RESET": "optimizer_at_boundary=RESET is unknown; valid: keep, reset",
    "compile=maybe": "compile=maybe is unknown; valid: auto, true, false",
    "benchmark.fractions=[0.1,2.0]": "benchmark.fractions=[0.1, 2.0] must lie in (0, 1]",
    "optimizer.clip_norm=-1": "optimizer.clip_norm=-1.0 must be positive",
    "optimizer.learning_rate=-1": "optimizer.learning_rate=-1.0 must be positive",
    "optimizer.warmup_fraction=5": "optimizer.warmup_fraction=5.0 must lie in [0, 1]",
    "model.scope.include=[]": "include is empty",
    "optimizer_at_boundary=drop": "valid: keep, reset",
    "budget.train_images=50001": "budget.train_images=50001 is more than the 50000 that cifar10 has",
    "budget.width=5000": "budget.width=5000 must lie in [1, 4096]",
    "benchmark.order=size": "benchmark.order=size is unknown; valid: images, classes",
    "wandb.mode=on": "wandb.mode=on is unknown; valid: auto, online, offline, disabled",
    "budget.epochs=[5]": "budget.epochs=[5] must be 2 numbers, one a phase",
    "budget.batch_size=0": "budget.batch_size=0 must be at least 1",
    "benchmark.fractions=[0.5,0.1]": "must rise within (0, 1]",
    "data=mnist": "Could not find 'data/mnist' Available options in 'data': cifar10",
    "data.name=mnist": "data.name=mnist is unknown; valid: cifar10",
    "model.name=vgg": "model.name=vgg is unknown; valid: resnet18",
    "method=l2_init": "method=l2_init needs a value: method.coefficient=...",
    "method.name=redo": "method.name=redo is not the name of the chosen file, method=fire",
    "method.kind=redo": "method.kind=redo cannot be set; choose a method with method=...",
    "benchmark.name=../x": "benchmark.name=../x is not the name of the chosen file, benchmark=warm_start",
    "model.scope.units={}": "model.scope.units={} would change nothing",
    "method=none,fire": "several values for one key make a sweep, which needs -m before all else",
    "benchmark.methods_from=2 method=redo": "method.first_phase=2 lies beyond the run's 2 phases",
    "until=phase9": "until=phase9 is unknown; valid: end, phase0",
}


@pytest.mark.parametrize("argument", CASES)
def test_bad_argument(vision: Vision, tmp_path: Path, argument: str) -> None:
    status, printed = vision("device=cpu", *argument.split())
    assert status != 0
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert CASES[argument] in errors[0]
    assert "Traceback" not in printed
    assert not (tmp_path / "outputs" / "vision").exists()
    assert not (tmp_path / "outputs" / "phases").exists()


def test_from_a_shell_too(tmp_path: Path) -> None:
    process = start("vision", "method=dash", f"outputs_dir={tmp_path}")
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
