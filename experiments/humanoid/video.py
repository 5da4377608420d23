"""The video of an episode."""

from collections.abc import Iterator

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.common.config import data_folder
from experiments.common.seeding import derive
from experiments.humanoid import envs
from experiments.humanoid.native import CAMERA
from experiments.humanoid.rendering import Renderer

SIZE = (480, 360)


def episode(policy: envs.Policy, cfg: DictConfig) -> Iterator[tuple[np.ndarray, float]]:
    """Pictures and rewards of an episode without noise.

    Raises:
        OSError: nothing can be drawn here.
    """
    player = envs.Player(envs.make(cfg.task, cfg.env.backend, data_folder(cfg)), cfg.sac.action_repeat)
    renderer = Renderer(player.env.model, *SIZE)
    try:
        observation, ended = player.reset(derive(cfg.seed, "evaluation", 0, 0) % 2**31), False
        while not ended:
            picture = renderer.render(player.env.data, CAMERA)
            action = policy(torch.from_numpy(observation).float()[None])[0]
            observation, reward, terminated, truncated, _ = player.step(action.numpy())
            yield picture, reward
            ended = terminated or truncated
    finally:
        renderer.close()
