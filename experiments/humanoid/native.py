"""HumanoidBench's H1 tasks as a Gymnasium environment on MuJoCo alone, any version from 3.1.6 on.

Over the original model files, with the original rewards, ends and resets; without a window system, JAX or dm_control.
Registered as `fire/h1-walk-v0` and so on.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

from experiments.common.fetch import default_data_dir
from experiments.humanoid import assets
from experiments.humanoid.tasks import MAX_STEPS, TASKS, Body

FRAME_SKIP = 10  # physics steps of 2 ms in a control step
RANDOMNESS = 0.01  # added to every position at a reset, uniformly, in both directions
CAMERA = "cam_default"
FLOOR = 0  # the geometry every model begins with


@lru_cache(maxsize=4)
def load_model(path: Path) -> mujoco.MjModel:
    """The model of a file; environments share it, since the simulation only reads it."""
    return mujoco.MjModel.from_xml_path(str(path))


class H1Env(gym.Env[np.ndarray, np.ndarray]):
    """One task.

    Actions are in [-1, 1]^19, mapped to each actuator's range (positions of the joints); observations are positions and
    velocities, (51,) float64, with a board (64,) or more. `info` holds the terms of the reward.

    Attributes:
        model, data: MuJoCo's.
    """

    def __init__(self, task: str = "h1-walk", assets_dir: str | Path | None = None) -> None:
        """
        Args:
            task: one of `tasks.TASKS`.
            assets_dir: where the model files are; None: in the user's data folder.
        """
        self.task = TASKS[task]
        folder = Path(assets_dir) if assets_dir else assets.folder(default_data_dir())
        path = folder / "envs" / f"h1_pos_{task.removeprefix('h1-')}.xml"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; fetch the models with: {assets.COMMAND}")
        self.model = load_model(path)
        self.data = mujoco.MjData(self.model)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (self.model.nu,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (self.model.nq + self.model.nv,), np.float64)
        # In float32, as HumanoidBench computes controls: a fall amplifies the difference within a second.
        self._low, self._high = self.model.actuator_ctrlrange.T.astype(np.float32)
        self._body = Body(
            head=self.data.site("head").xpos,
            torso=self.data.body("torso_link").xmat,
            velocity=self.data.sensor("pelvis_subtreelinvel").data,
            forces=self.data.actuator_force,
            imu=self.data.site("imu").xpos,
            orientation=self.data.body("pelvis").xquat,
        )
        if self.task.board:
            self._sphere = self.model.geom("pivot_sphere_collision").id
            self._board = self.model.geom("stand_board_collision").id

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The model's first keyframe with a little noise on every position."""
        super().reset(seed=seed)
        mujoco.mj_resetDataKeyframe(self.model, self.data, 0)
        mujoco.mj_forward(self.model, self.data)  # twice, since the solver's first guess comes from it
        self.data.qpos += self.np_random.uniform(-RANDOMNESS, RANDOMNESS, self.model.nq)
        mujoco.mj_normalizeQuat(self.model, self.data.qpos)  # as MuJoCo 3.1.6 does in the next line, later ones not
        mujoco.mj_forward(self.model, self.data)
        return self.observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """A control step, 20 ms."""
        action = np.asarray(action, dtype=np.float32)
        self.data.ctrl[:] = (action + 1) / 2 * (self._high - self._low) + self._low
        # HumanoidBench also computes forces inside bodies here, which nothing reads.
        mujoco.mj_step(self.model, self.data, nstep=FRAME_SKIP)
        reward, terms = self.task.reward(self._body)
        return self.observation(), reward, self.terminated(), False, terms

    def observation(self) -> np.ndarray:
        """Positions, then velocities."""
        return np.concatenate((self.data.qpos, self.data.qvel))

    def terminated(self) -> bool:
        """Whether the robot has fallen, or its board has."""
        if self.task.lowest is None:
            return False
        if self.data.qpos[2] < self.task.lowest:
            return True
        if not self.task.board:
            return False
        # The ball under the board may touch the floor and the board, and the floor only the ball.
        for pair in self.data.contact.geom.tolist():
            if self._sphere in pair and FLOOR not in pair and self._board not in pair:
                return True
            if FLOOR in pair and self._sphere not in pair:
                return True
        return False


for name in TASKS:
    gym.register(
        f"fire/{name}-v0", "experiments.humanoid.native:H1Env", kwargs={"task": name}, max_episode_steps=MAX_STEPS
    )
