"""Recorded episodes of HumanoidBench's own package (MuJoCo 3.1.6), and ours beside them.

`python -m tests.experiments.humanoid.golden <folder of the models>` plays them under whatever MuJoCo is installed; it
needs NumPy, Gymnasium and MuJoCo alone.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from experiments.humanoid.native import H1Env
from experiments.humanoid.tasks import TASKS

RECORDED = np.load(Path(__file__).with_name("humanoid_golden.npz"), allow_pickle=False)
SAME_VERSION = str(RECORDED["mujoco_version"]) == mujoco.__version__


def episode(task: str) -> dict[str, np.ndarray]:
    """What was recorded of a task, by name."""
    prefix = f"{task}/seed0/"
    return {name.removeprefix(prefix): RECORDED[name] for name in RECORDED.files if name.startswith(prefix)}


def errors(env: H1Env, seen: dict[str, np.ndarray], i: int, stepped: tuple[Any, ...]) -> dict[str, float]:
    """Absolute differences of a step's outcome to the recorded one."""
    observation, reward, terminated, truncated, terms = stepped
    assert not truncated
    return {
        "observation": float(np.abs(observation - seen["observation"][i]).max()),
        "reward": abs(reward - seen["reward"][i]),
        "terminated": float(terminated != seen["terminated"][i]),
        **{name: abs(value - seen[f"info/{name}"][i]) for name, value in terms.items()},
    }


def whole_episode(task: str, assets_dir: Path) -> Iterator[dict[str, float]]:
    """Play the recorded actions from the recorded seed."""
    env, seen = H1Env(task, assets_dir), episode(task)
    observation, _ = env.reset(seed=0)
    yield {"observation": float(np.abs(observation - seen["initial_observation"]).max())}
    for i, action in enumerate(seen["action"]):
        yield errors(env, seen, i, env.step(action))


def single_steps(task: str, assets_dir: Path) -> Iterator[dict[str, float]]:
    """Play each recorded action from the recorded state before it."""
    env, seen = H1Env(task, assets_dir), episode(task)
    env.reset(seed=0)
    positions = np.vstack([seen["initial_qpos"], seen["qpos"]])
    velocities = np.vstack([seen["initial_qvel"], seen["qvel"]])
    for i, action in enumerate(seen["action"]):
        env.data.qpos[:], env.data.qvel[:] = positions[i], velocities[i]
        mujoco.mj_forward(env.model, env.data)
        yield errors(env, seen, i, env.step(action))


def main(assets_dir: Path) -> int:
    """Play all episodes; 1 unless every number is the recorded one to 1e-9."""
    worst = {task: max(max(step.values()) for step in whole_episode(task, assets_dir)) for task in TASKS}
    for task, error in worst.items():
        print(f"{task}: {error:.1e}")
    print(f"MuJoCo {mujoco.__version__}, recorded with {RECORDED['mujoco_version']}")
    return int(max(worst.values()) > 1e-9)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
