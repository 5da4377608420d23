"""Whole runs through the command line, at the smoke scale, and what goes wrong in them."""

from pathlib import Path

import pytest
import torch

from experiments.common import checkpoint
from experiments.common.config import build_method, compose_domain
from experiments.common.errors import UserError
from experiments.common.runtime import Runtime
from experiments.domains import domain as domain_of
from experiments.rl import replay
from tests.conftest import Command, numbers, run_dirs
from tests.experiments.rl.captured import METHODS
from tests.experiments.rl.conftest import atari_is_slow


@atari_is_slow
def test_five_methods_continue_from_one_midpoint(command: Command, tmp_path: Path) -> None:
    sweep = ("--multirun", f"method={','.join(METHODS)}")
    status, printed = command(*sweep)
    assert status == 0, printed
    (midpoint,) = (tmp_path / "outputs").glob("phases/*")
    segments = {path: path.stat().st_mtime_ns for path in midpoint.glob("segment-*.npz")}
    assert segments
    assert printed.count("phase 0 was trained before") == 4
    directories = {directory.name.rsplit("-s", 1)[0]: directory for directory in run_dirs(tmp_path / "outputs")}
    assert set(directories) == set(METHODS)
    rows = {method: numbers(directory) for method, directory in directories.items()}
    boundaries = {method: run[4] for method, run in rows.items()}
    step = rows["none"][0]["env_step"]
    for method, run in rows.items():
        assert run[:4] == rows["none"][:4]
        assert [row["phase"] for row in run] == [0] * 4 + [1] * 5
        assert [row["env_step"] for row in run] == [i * step for i in (1, 2, 3, 4, 4, 5, 6, 7, 8)]
        assert {"eval/return", "plasticity/dormant", "reset/dfi_after"} <= run[4].keys()
        assert {"eval/return", "plasticity/dfi", "train/loss", "train/q", "plasticity/grad_norm"} <= run[-1].keys()
        assert [path.name for path in directories[method].glob("*.pt")] == [
            path.name for path in directories[method].glob("kept-final-*.pt")
        ]
        assert not list(directories[method].glob("segment-*"))
    assert boundaries["none"]["reset/sfe"] == boundaries["plasticity_injection"]["reset/sfe"] == 0
    # Neither network has changed its output: the same episodes are played.
    for method in ("none", "plasticity_injection"):
        assert boundaries[method]["eval/return"] == rows["none"][3]["eval/return"]
    assert boundaries["fire"]["reset/dfi_after"] < boundaries["shrink_perturb"]["reset/dfi_after"]
    assert len({run[-1]["train/loss"] for run in rows.values()}) == 5

    status, printed = command(*sweep)
    assert status == 0
    assert printed.count("done before: ") == 5
    assert {path: path.stat().st_mtime_ns for path in midpoint.glob("segment-*.npz")} == segments


@atari_is_slow
@pytest.mark.parametrize("method", ["plasticity_injection", "redo"])
def test_branched_equals_uninterrupted(method: str, command: Command, tmp_path: Path) -> None:
    settings = ["method.period=20", "method.tau=0.3"] if method == "redo" else []
    for cached in ("true", "false"):
        # The phase cache is filled first, so that the run starts from what lies on disk.
        for until in ("phase0", "end") if cached == "true" else ("end",):
            status, printed = command(
                f"method={method}", *settings, f"phase_cache={cached}", f"until={until}",
                f"outputs_dir={tmp_path / cached}",
            )  # fmt: skip
            assert status == 0, printed
    (branched,), (whole,) = run_dirs(tmp_path / "true"), run_dirs(tmp_path / "false")
    assert branched.name == whole.name
    assert numbers(branched) == numbers(whole)
    if method == "redo":
        assert sum(row.get("method/units_reset", 0) for row in numbers(whole)) > 0


@pytest.mark.slow
def test_how_often_a_checkpoint_is_taken_changes_nothing(command: Command, tmp_path: Path) -> None:
    for seconds in ("0", "1000"):
        status, printed = command(
            "method=shrink_perturb", f"checkpoint_seconds={seconds}", f"outputs_dir={tmp_path / seconds}"
        )
        assert status == 0, printed
    (often,), (never,) = run_dirs(tmp_path / "0"), run_dirs(tmp_path / "1000")
    assert numbers(often) == numbers(never)
    one, other = (checkpoint.final_weights(run) for run in (often, never))
    one, other = one.get("agent", one), other.get("agent", other)
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@atari_is_slow
def test_sharpness_is_measured_and_changes_nothing_else(command: Command, tmp_path: Path) -> None:
    status, printed = command("--multirun", "method=plasticity_injection,fire", "sharpness=48")
    assert status == 0, printed
    status, printed = command("method=fire")
    assert status == 0, printed
    assert "phase 0 was trained before" in printed
    measured = {"reset/sharpness_before", "plasticity/sharpness", "plasticity/sharpness_error"}
    injected, fire, plain = sorted(map(numbers, run_dirs(tmp_path / "outputs")), key=lambda run: (
        "reset/sharpness_before" not in run[4], run[4]["reset/sfe"]
    ))  # fmt: skip
    assert measured <= injected[4].keys()
    assert measured <= fire[4].keys()
    assert [{key: value for key, value in row.items() if key not in measured} for row in fire] == plain
    # The head that is added has as much curvature as it had; the one that is frozen does not count.
    assert injected[4]["plasticity/sharpness"] > 0


@atari_is_slow
def test_midpoint_of_another_identity(command: Command, tmp_path: Path) -> None:
    """A midpoint that was put in the place of another."""
    for seed in (0, 1):
        status, printed = command("until=phase0", f"seed={seed}", f"outputs_dir={tmp_path / str(seed)}")
        assert status == 0, printed
    (own,), (other,) = (list((tmp_path / str(seed)).glob("phases/*/kept-end-*.pt")) for seed in (0, 1))
    own.unlink()
    (own.parent / other.name).write_bytes(other.read_bytes())
    status, printed = command("method=fire", f"outputs_dir={tmp_path / '0'}")
    assert status == 1
    assert "is of another configuration" in printed
    assert not run_dirs(tmp_path / "0")


def test_buffer_larger_than_memory(
    name: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, said = {"atari": (3 << 30, "7.06 GB, but this machine has 3.22 GB"),
                  "humanoid": ((1 << 30) + 10_000_000, "0.29 GB, but this machine has 1.08 GB")}[name]  # fmt: skip
    monkeypatch.setattr(replay, "available", lambda _: left)
    status, printed = command("scale=paper", "method=none")
    assert status == 1
    assert f"replay buffer of 1,000,000 transitions (budget.buffer) takes {said}" in printed
    assert "lower budget.buffer to at most " in printed
    assert not (tmp_path / "outputs" / name).exists()


def test_a_method_that_needs_units_says_so_before_training(name: str) -> None:
    cfg = compose_domain(name, domain_of(name).schema, ["scale=smoke", "method=redo"])
    if name == "humanoid":
        cfg.env.backend = "native"
    cfg.model.scope.units = {}
    with pytest.raises(UserError, match=r"^model.scope: redo needs a scope whose `units` names the network's layers"):
        domain_of(name).experiment(cfg, Runtime("cpu", "fp32", "false", 1), build_method(cfg), None)
