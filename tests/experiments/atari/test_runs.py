"""Whole runs of a real game through the command line, at the smoke scale."""

from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

import fire
from experiments.atari import models
from experiments.atari.config import AtariConfig
from experiments.common.config import compose_domain
from fire import metrics as fire_metrics
from tests.conftest import numbers, run_dirs

Atari = Callable[..., tuple[int, str]]


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


def test_a_full_reset_is_a_fresh_network_and_exploration_ends(atari: Atari, tmp_path: Path) -> None:
    status, printed = atari("method=full_reset")
    assert status == 0, printed
    (run,) = map(numbers, run_dirs(tmp_path / "outputs"))
    cfg = compose_domain("atari", AtariConfig, ["scale=smoke"])
    fresh = fire_metrics.isometry(models.build(cfg.budget, 9, 0))["dfi"]
    assert run[4]["plasticity/dfi"] == pytest.approx(fresh, rel=1e-5)
    assert run[-1]["train/epsilon"] == pytest.approx(0.01)
