"""Whole runs of the real robot through the command line, at the smoke scale."""

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from experiments.common import checkpoint
from experiments.common.config import compose_domain
from experiments.common.metric_log import read_rows
from experiments.humanoid import envs, models
from experiments.humanoid.config import HumanoidConfig
from fire import metrics as fire_metrics
from tests.conftest import Command, needs_opengl, numbers, run_dirs


def test_what_starts_again_at_a_reset(humanoid: Command, tmp_path: Path) -> None:
    """The networks of a full reset are fresh ones; the temperature has left its first value and, but for methods that
    do nothing here, starts again."""
    methods = ("none", "full_reset", "redo")
    status, printed = humanoid("-m", f"method={','.join(methods)}")
    assert status == 0, printed
    rows = {path.name.rsplit("-s", 1)[0]: numbers(path) for path in run_dirs(tmp_path / "outputs")}
    cfg = compose_domain("humanoid", HumanoidConfig, ["scale=smoke"])
    fresh, boundary = models.build(51, 19, cfg.budget, 0), rows["full_reset"][4]
    assert boundary["plasticity/dfi"] == pytest.approx(fire_metrics.isometry(fresh.critic)["dfi"])
    assert boundary["plasticity/actor_dfi"] == pytest.approx(fire_metrics.isometry(fresh.actor)["dfi"])
    assert {"plasticity/actor_srank", "plasticity/actor_dormant"} <= boundary.keys()
    assert {"train/actor_loss", "train/entropy"} <= rows["none"][-1].keys()
    temperature = {method: run[5]["train/temperature"] for method, run in rows.items()}
    moved = rows["none"][3]["train/temperature"]
    for method in ("none", "redo"):
        assert abs(temperature[method] / moved - 1) < abs(temperature[method] / 0.01 - 1)
    assert abs(temperature["full_reset"] / 0.01 - 1) < abs(moved / 0.01 - 1)


def test_transitions_in_the_buffer_are_those_of_the_simulation(humanoid: Command, tmp_path: Path) -> None:
    """The actions that lie in the midpoint's buffer, taken again, lead to what lies beside them; episodes end where the
    robot falls, and no transition crosses from one into the next."""
    status, printed = humanoid("until=phase0")
    assert status == 0, printed
    (midpoint,) = (tmp_path / "outputs").glob("phases/*")
    parts = [np.load(path) for path in sorted(midpoint.glob("segment-*.npz"))]
    frames, begins, actions, rewards, ends = (
        np.concatenate([part[name] for part in parts])[:, 0]
        for name in ("frames", "begins", "actions", "rewards", "ends")
    )
    data_dir = compose_domain("humanoid", HumanoidConfig, []).data_dir
    player = envs.Player(envs.make("h1-walk", "native", Path(data_dir).expanduser()), 2)
    assert begins[0]
    episodes = 0
    for i in range(len(frames) - 1):
        if begins[i]:
            observation = player.reset(envs.derive(0, "environment", 0) % 2**31 if i == 0 else None)
            np.testing.assert_array_equal(frames[i], observation.astype(np.float32))
        if begins[i + 1]:  # the last observation of an episode, from which nothing was done
            assert not actions[i].any()
            assert ends[i - 1]
            episodes += 1
            continue
        outcome = player.step(actions[i])
        np.testing.assert_array_equal(frames[i + 1], outcome.observation.astype(np.float32))
        assert rewards[i] == np.float32(outcome.reward)
        assert ends[i] == outcome.terminated
    assert episodes >= 3


@needs_opengl
@pytest.mark.slow
def test_video_of_an_episode(humanoid: Command, tmp_path: Path) -> None:
    """Beside the curve; of a finished run too."""
    status, printed = humanoid("method=plasticity_injection")
    assert status == 0, printed
    (run,) = run_dirs(tmp_path / "outputs")
    assert not (run / "video.mp4").exists()
    status, printed = humanoid("method=plasticity_injection", "record_video=true")
    assert status == 0, printed
    assert "done before" in printed
    assert f"wrote {run / 'video.mp4'}, an episode with return" in printed
    assert not list(run.glob(".*.tmp"))
    reader = imageio_ffmpeg.read_frames(str(run / "video.mp4"))
    meta = next(reader)
    assert (meta["source_size"], meta["fps"]) == ((480, 360), 25)
    frames = [np.frombuffer(frame, dtype=np.uint8).reshape(360, 480, 3) for frame in reader]
    assert len(frames) > 5
    assert frames[0].std() > 10
    assert any(np.abs(frame.astype(int) - frames[0]).mean() > 1 for frame in frames)  # something moves


def test_without_opengl_a_video_is_refused_before_training(
    humanoid: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.humanoid.domain.find_library", lambda _: None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    status, printed = humanoid("method=none", "record_video=true")
    assert status == 1
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: record_video=true needs EGL or OSMesa (on Debian: libegl1 and libopengl0, or libosmesa6), and neither "
        "is installed"
    ]
    assert not (tmp_path / "outputs" / "humanoid").exists()


def test_a_run_ends_without_video_where_nothing_can_be_drawn(
    humanoid: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no display\nand more")

    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr("mujoco.Renderer", broken)
    status, printed = humanoid("method=none", "record_video=true")
    assert status == 0, printed
    assert "warning: no video: no display\n" in printed
    assert not list((tmp_path / "outputs").rglob("video.mp4"))


@pytest.mark.parametrize("what", ["simulation", "evaluation", "loss"])
def test_not_finite(what: str, humanoid: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stops, names the step, and leaves a checkpoint from which it can go on."""
    arguments = ("method=none", "checkpoint_seconds=0", f"outputs_dir={tmp_path}")
    if what != "loss":
        step, calls = envs.Player.step, []

        def explode(player: envs.Player, action: np.ndarray) -> envs.Outcome:
            if len(calls) == (150 if what == "simulation" else 201):  # the first of the evaluation after 200 actions
                player.env.data.qvel[0] = np.inf
            calls.append(player)
            return step(player, action)

        monkeypatch.setattr(envs.Player, "step", explode)
        status, printed = humanoid(*arguments)
        at = 300 if what == "simulation" else 400
        assert f"error: the simulation has values that are not finite, at environment step {at} of phase 0" in printed
    else:
        status, printed = humanoid(*arguments, "optimizer.learning_rate=1e30")
        assert "the loss or gradient is not finite in phase 0, by step 10" in printed
    assert status == 1
    (shared,) = tmp_path.glob("phases/*")
    assert f"the last good checkpoint, if any, is in {shared}" in printed
    assert len(list(shared.glob("checkpoint-*.pt"))) == 2
    if what == "loss":  # also where nothing but the simulation has noticed
        status, printed = humanoid("method=none", f"outputs_dir={tmp_path / 'late'}", "optimizer.learning_rate=1e30")
        assert status == 1
        assert "the loss or gradient is not finite in phase 0, by step 10" in printed
    monkeypatch.undo()
    assert all(checkpoint.read(path) for path in shared.glob("checkpoint-*.pt"))
    if what == "simulation":
        assert read_rows(shared / "metrics.jsonl")[-1]["env_step"] == 300
