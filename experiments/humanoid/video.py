"""The video of an episode."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.common import config, video
from experiments.common.seeding import derive
from experiments.humanoid import envs
from experiments.humanoid.native import CAMERA, H1Env
from experiments.humanoid.rendering import Renderer

SIZE = (480, 360)
FRAMES_PER_SECOND = H1Env.metadata["render_fps"]


def play(policy: envs.Policy, cfg: DictConfig, path: Path) -> float:
    """Play an episode without noise and write it to `path`, a picture an action, at the speed of life; its return.

    Raises:
        OSError: nothing can be drawn here.
    """
    repeat, returns = cfg.sac.action_repeat, [0.0]
    player = envs.Player(envs.make(cfg.task, cfg.env.backend, config.data_folder(cfg)), repeat)
    renderer = Renderer(player.env.model, *SIZE)

    def frames() -> Iterator[np.ndarray]:
        observation, ended = player.reset(derive(cfg.seed, "evaluation", 0, 0) % 2**31), False
        while not ended:
            yield renderer.render(player.env.data, CAMERA)
            action = policy(torch.from_numpy(observation).float()[None])[0]
            observation, reward, terminated, truncated, _ = player.step(action.numpy())
            returns[0] += reward
            ended = terminated or truncated

    try:
        video.write(path, frames(), SIZE, FRAMES_PER_SECOND / repeat)
    finally:
        renderer.close()
    return returns[0]
