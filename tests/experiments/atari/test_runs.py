"""Whole runs of a real game through the command line, at the smoke scale."""

from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

import fire
from experiments.atari import models
from experiments.atari.config import AtariConfig
from experiments.common import checkpoint
from experiments.common.config import compose_domain
from fire import metrics as fire_metrics
from tests.conftest import numbers, run_dirs

Atari = Callable[..., tuple[int, str]]
METHODS = ("none", "shrink_perturb", "full_reset", "fire", "plasticity_injection")


def test_five_methods_go_on_from_one_midpoint(atari: Atari, tmp_path: Path) -> None:
    sweep = ("--multirun", f"method={','.join(METHODS)}")
    status, printed = atari(*sweep)
    assert status == 0, printed
    outputs = tmp_path / "outputs"
    (midpoint,) = outputs.glob("phases/*")
    segments = {path: path.stat().st_mtime_ns for path in midpoint.glob("segment-*.npz")}
    assert segments
    assert printed.count("phase 0 was trained before") == 4
    assert printed.count("Too short to rank methods") == 5
    directories = {directory.name.rsplit("-s", 1)[0]: directory for directory in run_dirs(outputs)}
    assert set(directories) == set(METHODS)
    rows = {method: numbers(directory) for method, directory in directories.items()}
    before = [row for row in rows["none"] if row["phase"] == 0]
    boundaries = {}
    for method, run in rows.items():
        assert [row for row in run if row["phase"] == 0] == before
        assert [row["env_step"] for row in run] == [200, 400, 600, 800, 800, 1000, 1200, 1400, 1600]
        boundaries[method] = run[4]
        assert {"eval/return", "plasticity/dormant", "reset/dfi_after"} <= run[4].keys()
        assert {"eval/return", "plasticity/dfi", "train/loss", "train/q", "plasticity/grad_norm"} <= run[-1].keys()
        assert [path.name for path in directories[method].glob("*.pt")] == [
            path.name for path in directories[method].glob("kept-final-*.pt")
        ]
        assert not list(directories[method].glob("segment-*"))
    assert boundaries["none"]["reset/sfe"] == boundaries["plasticity_injection"]["reset/sfe"] == 0
    # Nothing that the network says has changed: the same games are played.
    for method in ("none", "plasticity_injection"):
        assert boundaries[method]["eval/return"] == rows["none"][3]["eval/return"]
    assert boundaries["fire"]["reset/dfi_after"] < boundaries["shrink_perturb"]["reset/dfi_after"]
    cfg = compose_domain("atari", AtariConfig, ["scale=smoke"])
    fresh = fire_metrics.isometry(models.build(cfg.budget, 9, 0))["dfi"]
    assert boundaries["full_reset"]["plasticity/dfi"] == pytest.approx(fresh, rel=1e-5)
    assert len({run[-1]["train/loss"] for run in rows.values()}) == 5
    assert rows["none"][-1]["train/epsilon"] == pytest.approx(0.01)

    status, printed = atari(*sweep)
    assert status == 0
    assert printed.count("done before: ") == 5
    assert {path: path.stat().st_mtime_ns for path in midpoint.glob("segment-*.npz")} == segments


def test_branched_equals_uninterrupted(atari: Atari, tmp_path: Path) -> None:
    for cached in ("true", "false"):
        # The phase cache is filled first, so that the run starts from what lies on disk.
        for until in ("phase0", "end") if cached == "true" else ("end",):
            status, printed = atari(
                "method=plasticity_injection", f"phase_cache={cached}", f"until={until}",
                f"outputs_dir={tmp_path / cached}",
            )  # fmt: skip
            assert status == 0, printed
    (branched,), (whole,) = run_dirs(tmp_path / "true"), run_dirs(tmp_path / "false")
    assert branched.name == whole.name
    assert numbers(branched) == numbers(whole)


@pytest.mark.slow
def test_how_often_a_checkpoint_is_taken_changes_nothing(atari: Atari, tmp_path: Path) -> None:
    for seconds in ("0", "1000"):
        status, printed = atari(
            "method=shrink_perturb", f"checkpoint_seconds={seconds}", f"outputs_dir={tmp_path / seconds}"
        )
        assert status == 0, printed
    (often,), (never,) = run_dirs(tmp_path / "0"), run_dirs(tmp_path / "1000")
    assert numbers(often) == numbers(never)
    weights = [checkpoint.read(checkpoint.kept(run)["final"])["state"]["model"] for run in (often, never)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.slow
def test_video_of_an_episode(atari: Atari, tmp_path: Path) -> None:
    """Beside the curve; of a finished run too."""
    status, printed = atari("method=plasticity_injection")
    assert status == 0, printed
    (run,) = run_dirs(tmp_path / "outputs")
    assert not (run / "video.mp4").exists()
    status, printed = atari("method=plasticity_injection", "record_video=true")
    assert status == 0, printed
    assert "done before" in printed
    assert f"wrote {run / 'video.mp4'}, an episode with return" in printed
    assert not list(run.glob(".*.tmp"))
    reader = imageio_ffmpeg.read_frames(str(run / "video.mp4"))
    meta = next(reader)
    assert meta["source_size"] == (160, 210)
    assert meta["fps"] == 15
    frames = [np.frombuffer(frame, dtype=np.uint8).reshape(210, 160, 3) for frame in reader]
    assert len(frames) > 50
    assert any(np.abs(frame.astype(int) - frames[0]).mean() > 1 for frame in frames)  # something moves
    assert np.ptp(frames[20].reshape(-1, 3), axis=1).max() > 50  # in colour


@pytest.mark.slow
def test_injection_goes_where_the_pattern_says() -> None:
    """A pattern that fits a head and what lies in it injects the head alone."""
    cfg = compose_domain("atari", AtariConfig, ["scale=smoke"])
    for pattern in ("head", "head*"):
        network, initial = (models.build(cfg.budget, 9, 0) for _ in range(2))
        fire.build("plasticity_injection").reset(network, initial.state_dict(), fire.Scope(inject=[pattern]))
        assert isinstance(network.head, fire.InjectedHead)
        assert len(list(network.parameters())) == 6 + 3 * 4


def test_sharpness_is_measured_and_changes_nothing_else(atari: Atari, tmp_path: Path) -> None:
    status, printed = atari("--multirun", "method=plasticity_injection,fire", "sharpness=48")
    assert status == 0, printed
    status, printed = atari("method=fire")
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
