"""The video of an episode."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

import fire
from experiments.common import checkpoint
from experiments.common.config import build_scope, data_folder
from experiments.common.runtime import Runtime
from experiments.common.seeding import derive
from experiments.humanoid import envs, models
from experiments.humanoid.learner import Learner
from experiments.humanoid.native import CAMERA, H1Env
from experiments.humanoid.rendering import Renderer
from experiments.rl import video

SIZE = (480, 360)


def record(learner: Learner, cfg: DictConfig, folder: Path) -> None:
    """Record an episode in a run's folder, a picture for each action, at the speed of life."""
    video.record(episode(learner.act, cfg), H1Env.metadata["render_fps"] / cfg.sac.action_repeat, folder)


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


def finished_learner(cfg: DictConfig, runtime: Runtime, method: fire.Method, run_dir: Path) -> Learner:
    """The networks that a finished run has left.

    Raises:
        UserError: their weights are missing or damaged.
    """
    weights = checkpoint.final_weights(run_dir)
    env = envs.make(cfg.task, cfg.env.backend, data_folder(cfg))
    (observation,), (action,) = env.observation_space.shape, env.action_space.shape
    agent = models.build(observation, action, cfg.budget, cfg.seed)
    method.restructure(agent, dict(agent.state_dict()), build_scope(cfg.model.scope))
    agent.load_state_dict(weights["agent"])
    learner = Learner(agent, observation, action, cfg, runtime)
    learner.normaliser.load_state_dict(weights["normaliser"])
    return learner
