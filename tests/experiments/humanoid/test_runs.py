"""Whole runs of the real robot through the command line, at the smoke scale."""

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from experiments.common import checkpoint
from experiments.common.config import compose_domain
from experiments.common.metric_log import read_rows
from experiments.humanoid import envs, models
from experiments.humanoid.config import HumanoidConfig
from fire import metrics as fire_metrics
from tests.conftest import Command, needs_opengl, numbers, run_dirs

METHODS = ("none", "shrink_perturb", "full_reset", "fire", "plasticity_injection")


def test_five_methods_go_on_from_one_midpoint(humanoid: Command, tmp_path: Path) -> None:
    sweep = ("--multirun", f"method={','.join(METHODS)}")
    status, printed = humanoid(*sweep)
    assert status == 0, printed
    outputs = tmp_path / "outputs"
    (midpoint,) = outputs.glob("phases/*")
    segments = {path: path.stat().st_mtime_ns for path in midpoint.glob("segment-*.npz")}
    assert segments
    assert printed.count("phase 0 was trained before") == 4
    assert printed.count("Too short to rank methods") == 5
    assert "native environment on MuJoCo" in printed
    directories = {directory.name.rsplit("-s", 1)[0]: directory for directory in run_dirs(outputs)}
    assert set(directories) == set(METHODS)
    rows = {method: numbers(directory) for method, directory in directories.items()}
    before = [row for row in rows["none"] if row["phase"] == 0]
    boundaries = {}
    for method, run in rows.items():
        assert [row for row in run if row["phase"] == 0] == before
        assert [row["env_step"] for row in run] == [100, 200, 300, 400, 400, 500, 600, 700, 800]
        boundaries[method] = run[4]
        assert {"eval/return", "plasticity/dormant", "plasticity/actor_srank", "reset/dfi_after"} <= run[4].keys()
        assert {"eval/return", "plasticity/dfi", "plasticity/actor_dfi", "train/loss", "train/actor_loss"} <= run[
            -1
        ].keys()
        assert {"train/temperature", "train/entropy", "train/q", "plasticity/grad_norm"} <= run[-1].keys()
        assert [path.name for path in directories[method].glob("*.pt")] == [
            path.name for path in directories[method].glob("kept-final-*.pt")
        ]
        assert not list(directories[method].glob("segment-*"))
    assert boundaries["none"]["reset/sfe"] == boundaries["plasticity_injection"]["reset/sfe"] == 0
    # Nothing that the policy does has changed: the same episodes are played.
    for method in ("none", "plasticity_injection"):
        assert boundaries[method]["eval/return"] == rows["none"][3]["eval/return"]
    assert boundaries["fire"]["reset/dfi_after"] < 1 < boundaries["shrink_perturb"]["reset/dfi_after"]
    cfg = compose_domain("humanoid", HumanoidConfig, ["scale=smoke"])
    fresh = models.build(51, 19, cfg.budget, 0)
    assert boundaries["full_reset"]["plasticity/dfi"] == pytest.approx(fire_metrics.isometry(fresh.critic)["dfi"])
    assert boundaries["full_reset"]["plasticity/actor_dfi"] == pytest.approx(fire_metrics.isometry(fresh.actor)["dfi"])
    assert len({run[-1]["train/loss"] for run in rows.values()}) == 5
    # The temperature has left its first value and, but for `none`, begun anew.
    temperature = {method: run[5]["train/temperature"] for method, run in rows.items()}
    moved = rows["none"][3]["train/temperature"]
    assert abs(temperature["none"] / moved - 1) < abs(temperature["none"] / 0.01 - 1)
    for method in METHODS[1:]:
        assert abs(temperature[method] / 0.01 - 1) < abs(moved / 0.01 - 1)

    status, printed = humanoid(*sweep)
    assert status == 0
    assert printed.count("done before: ") == 5
    assert {path: path.stat().st_mtime_ns for path in midpoint.glob("segment-*.npz")} == segments


def test_branched_equals_uninterrupted(humanoid: Command, tmp_path: Path) -> None:
    for cached in ("true", "false"):
        # The phase cache is filled first, so that the run starts from what lies on disk.
        for until in ("phase0", "end") if cached == "true" else ("end",):
            status, printed = humanoid(
                "method=plasticity_injection", f"phase_cache={cached}", f"until={until}", "task=h1-balance_simple",
                f"outputs_dir={tmp_path / cached}",
            )  # fmt: skip
            assert status == 0, printed
    (branched,), (whole,) = run_dirs(tmp_path / "true"), run_dirs(tmp_path / "false")
    assert branched.name == whole.name
    assert numbers(branched) == numbers(whole)


@pytest.mark.slow
def test_how_often_a_checkpoint_is_taken_changes_nothing(humanoid: Command, tmp_path: Path) -> None:
    for seconds in ("0", "1000"):
        status, printed = humanoid(
            "method=shrink_perturb", f"checkpoint_seconds={seconds}", f"outputs_dir={tmp_path / seconds}"
        )
        assert status == 0, printed
    (often,), (never,) = run_dirs(tmp_path / "0"), run_dirs(tmp_path / "1000")
    assert numbers(often) == numbers(never)
    one, other = checkpoint.final_weights(often)["agent"], checkpoint.final_weights(never)["agent"]
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


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


def test_without_opengl_a_run_ends_without_video(
    humanoid: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda _: None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    status, printed = humanoid("method=none", "record_video=true")
    assert status == 0, printed
    assert "warning: no video: no offscreen OpenGL: neither EGL nor OSMesa is installed" in printed
    assert not list((tmp_path / "outputs").rglob("video.mp4"))


def test_sharpness_is_measured_and_changes_nothing_else(humanoid: Command, tmp_path: Path) -> None:
    status, printed = humanoid("method=fire", "sharpness=48")
    assert status == 0, printed
    status, printed = humanoid("method=fire")
    assert status == 0, printed
    assert "phase 0 was trained before" in printed
    measured = {"reset/sharpness_before", "plasticity/sharpness", "plasticity/sharpness_error"}
    fire, plain = sorted(
        map(numbers, run_dirs(tmp_path / "outputs")), key=lambda run: "plasticity/sharpness" not in run[4]
    )
    assert measured <= fire[4].keys()
    assert fire[4]["plasticity/sharpness"] > 0
    assert [{key: value for key, value in row.items() if key not in measured} for row in fire] == plain


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
        assert "the loss is not finite in phase 0, by environment step 10" in printed
    assert status == 1
    (shared,) = tmp_path.glob("phases/*")
    assert f"the last good checkpoint, if any, is in {shared}" in printed
    assert len(list(shared.glob("checkpoint-*.pt"))) == 2
    if what == "loss":  # also where nothing but the simulation has noticed
        status, printed = humanoid("method=none", f"outputs_dir={tmp_path / 'late'}", "optimizer.learning_rate=1e30")
        assert status == 1
        assert "the loss is not finite in phase 0, by environment step 10" in printed
    monkeypatch.undo()
    assert all(checkpoint.read(path) for path in shared.glob("checkpoint-*.pt"))
    if what == "simulation":
        assert read_rows(shared / "metrics.jsonl")[-1]["env_step"] == 300
