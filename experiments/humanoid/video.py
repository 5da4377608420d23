"""The video of an episode."""

from collections.abc import Iterator

import mujoco
import numpy as np
import torch
from omegaconf import DictConfig

from experiments.common.config import data_folder
from experiments.common.seeding import derive
from experiments.humanoid import envs
from experiments.humanoid.native import CAMERA

WIDTH, HEIGHT = 480, 360


def episode(policy: envs.Policy, cfg: DictConfig) -> Iterator[tuple[np.ndarray, float]]:
    """Pictures and rewards of an episode without noise."""
    player = envs.Player(envs.make(cfg.task, cfg.env.backend, data_folder(cfg)), cfg.sac.action_repeat)
    model = player.env.model
    model.vis.global_.offwidth, model.vis.global_.offheight = WIDTH, HEIGHT
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        # Shadows as fine as these models ask for are nearly all of the time where no GPU draws.
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        observation, ended = player.reset(derive(cfg.seed, "evaluation", 0, 0) % 2**31), False
        while not ended:
            renderer.update_scene(player.env.data, CAMERA)
            picture = renderer.render()
            action = policy(torch.from_numpy(observation).float()[None])[0]
            observation, reward, terminated, truncated, _ = player.step(action.numpy())
            yield picture, reward
            ended = terminated or truncated
