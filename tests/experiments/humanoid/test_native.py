"""The environment against HumanoidBench's recorded episodes, and as a Gymnasium environment."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from experiments.common.errors import UserError
from experiments.humanoid import assets, envs
from experiments.humanoid.native import H1Env
from experiments.humanoid.tasks import TASKS, normalised, resolve, tolerance
from tests.conftest import REPOSITORY, needs_opengl
from tests.experiments.humanoid.golden import SAME_VERSION, episode, single_steps, whole_episode

# Of rewards and their terms, between MuJoCo 3.1.6 and later ones, within a step of control: at most .008 was seen.
ONE_STEP = 0.02


@pytest.mark.parametrize("task", TASKS)
def test_each_recorded_step(task: str, robot_dir: Path) -> None:
    steps = list(single_steps(task, assets.folder(robot_dir)))
    assert len(steps) == len(episode(task)["reward"])
    names = steps[0].keys() - {"observation"}
    assert names >= {"reward", "terminated", "small_control"}
    for name in names:
        worst, typical = max(step[name] for step in steps), np.median([step[name] for step in steps])
        assert worst < ONE_STEP, name
        assert typical < 2e-3, name


@pytest.mark.skipif(not SAME_VERSION, reason="needs MuJoCo 3.1.6, with which the episodes were recorded")
@pytest.mark.parametrize("task", TASKS)
def test_whole_episode_of_the_same_version(task: str, robot_dir: Path) -> None:
    for step in whole_episode(task, assets.folder(robot_dir)):
        assert max(step.values()) < 1e-9


@pytest.mark.slow
def test_whole_episodes_with_the_version_they_were_recorded_with(robot_dir: Path, tmp_path: Path) -> None:
    """In an environment of its own."""
    uv = Path(sys.executable).with_name("uv")
    command = [uv if uv.exists() else "uv", "venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv")]
    subprocess.run(command, check=True)
    packages = ("mujoco==3.1.6", "gymnasium", "numpy", "filelock", "tqdm")
    subprocess.run(
        [command[0], "pip", "install", "--quiet", *packages], check=True,
        env={**os.environ, "VIRTUAL_ENV": str(tmp_path / "venv")},
    )  # fmt: skip
    played = subprocess.run(
        [str(tmp_path / "venv/bin/python"), "-m", "tests.experiments.humanoid.golden", str(assets.folder(robot_dir))],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert played.returncode == 0, played.stdout + played.stderr
    assert "MuJoCo 3.1.6, recorded with 3.1.6" in played.stdout
    assert played.stdout.count("h1-") == len(TASKS)


def test_first_state_is_the_recorded_one(robot_dir: Path) -> None:
    """Whatever MuJoCo it is: the keyframe, and the same noise from the same seed."""
    for task in TASKS:
        env, seen = H1Env(task, assets.folder(robot_dir)), episode(task)
        observation, _ = env.reset(seed=0)
        np.testing.assert_allclose(observation, seen["initial_observation"], atol=1e-12)
        assert np.abs(env.reset()[0] - observation).max() > 1e-3  # the next episode begins elsewhere
        np.testing.assert_allclose(env.reset(seed=0)[0], observation, atol=0)


@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_checker(task: str, robot_dir: Path) -> None:
    env = gym.make(f"fire/{task}-v0", assets_dir=assets.folder(robot_dir))
    assert env.spec is not None
    assert env.spec.max_episode_steps == 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Observations have no bounds, which the checker deems worth a word.
        warnings.filterwarnings("ignore", message=".*(infinity|observation space|rendering).*")
        check_env(env.unwrapped, skip_render_check=True)
    assert env.observation_space.shape == ((64,) if "balance" in task else (51,))
    assert env.action_space.shape == (19,)
    env.reset(seed=1)
    _, reward, _, _, terms = env.step(np.zeros(19, dtype=np.float32))
    assert 0 < reward < 1
    assert all(0 <= value <= 1 for value in terms.values())
    env.close()


@needs_opengl
def test_pictures(robot_dir: Path) -> None:
    """The robot, before a lighter sky, moves as it falls."""
    player = envs.Player(envs.make("h1-walk", "native", robot_dir), 2)
    pictures = [picture for picture, _ in envs.episode(lambda states: torch.ones(len(states), 19), player, 0)]
    assert len(pictures) > 5
    assert all((picture.shape, picture.dtype) == ((360, 480, 3), np.uint8) for picture in pictures)
    assert pictures[0].std() > 10
    assert np.abs(pictures[-1].astype(int) - pictures[0]).mean() > 1


@pytest.mark.parametrize("task", ["h1-walk", "h1-balance_simple"])
def test_saved_state_goes_on_bit_identical(task: str, robot_dir: Path) -> None:
    """In the middle of an episode, in another environment, through its end and the next reset."""
    rng = np.random.default_rng(0)
    one, other = (envs.Player(envs.make(task, "native", robot_dir), 2) for _ in range(2))
    one.reset(3)
    actions = rng.uniform(-1, 1, (60, 19)).astype(np.float32)
    for action in actions[:5]:
        one.step(action)
    other.load_state_dict(one.state_dict())
    ends = 0
    for action in actions[5:]:
        a, b = one.step(action), other.step(action)
        assert np.array_equal(a.observation, b.observation)
        assert a[1:] == b[1:]
        if a.terminated:
            ends += 1
            assert np.array_equal(one.reset(), other.reset())
    assert ends > 0


def test_action_is_repeated_and_episodes_are_bounded(robot_dir: Path) -> None:
    player, single = (envs.Player(envs.make("h1-crawl", "native", robot_dir), repeat) for repeat in (2, 1))
    player.reset(0), single.reset(0)
    still = np.zeros(19, dtype=np.float32)
    outcome, first, second = player.step(still), single.step(still), single.step(still)
    assert player.taken == 2
    assert outcome.reward == pytest.approx(first.reward + second.reward, abs=1e-12)
    assert np.array_equal(outcome.observation, second.observation)
    player.taken = 998  # nothing ends an episode of crawling but its length
    outcome = player.step(still)
    assert (outcome.terminated, outcome.truncated, player.taken) == (False, True, 1000)


def test_fallen_robot_ends_an_episode_in_the_middle_of_an_action(robot_dir: Path) -> None:
    player = envs.Player(envs.make("h1-walk", "native", robot_dir), 1000)
    player.reset(0)
    outcome = player.step(np.ones(19, dtype=np.float32))
    assert outcome.terminated
    assert not outcome.truncated
    assert 10 < player.taken < 1000
    assert player.env.data.qpos[2] < 0.2


def test_simulation_that_is_not_finite_is_noticed(robot_dir: Path) -> None:
    player = envs.Player(envs.make("h1-walk", "native", robot_dir), 2)
    for name in ("qpos", "qvel", "ctrl"):
        player.reset(0)
        action = np.zeros(19, dtype=np.float32)
        if name == "ctrl":
            action[3] = np.nan
        else:
            getattr(player.env.data, name)[0] = np.inf
        with pytest.raises(FloatingPointError):
            player.step(action)


def test_tolerance() -> None:
    inf = float("inf")
    assert tolerance(2.0, 1.65, inf, 0.4) == 1
    assert tolerance(1.65 - 0.4, 1.65, inf, 0.4) == pytest.approx(0.1)  # the value at the margin
    assert tolerance(-3.0, 0, 0, 3) == pytest.approx(0.1)
    assert tolerance(0.0, 1, inf, 1, "linear", 0) == 0
    assert tolerance(0.25, 1, inf, 1, "linear", 0) == 0.25
    assert tolerance(1.5, -1, 1, 0) == 0


def test_names_and_scores() -> None:
    assert resolve("h1-walk-v0") == resolve("walk") == "h1-walk"
    with pytest.raises(UserError, match="task=h1-wlak is unknown; did you mean h1-walk"):
        resolve("h1-wlak")
    assert normalised("h1-walk", 700) == 1
    assert normalised("h1-walk", 2.4) == 0


def test_missing_models_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"fetch the models with: python -m scripts.prepare_data humanoid"):
        H1Env("h1-walk", tmp_path)
