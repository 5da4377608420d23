"""The video of an episode."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

import fire
from experiments.atari import envs, models
from experiments.atari.learner import Learner
from experiments.common import checkpoint
from experiments.common.config import build_scope
from experiments.common.runtime import Runtime
from experiments.common.seeding import generator
from experiments.rl import video

HEIGHT, WIDTH = 210, 160
FRAMES_PER_SECOND = 60 // envs.FRAME_SKIP  # the speed of play
LONGEST = 9000  # steps, ten minutes of play


def record(learner: Learner, cfg: DictConfig, folder: Path) -> None:
    """Record an episode in a run's folder."""
    video.record(episode(learner.act, cfg), FRAMES_PER_SECOND, folder)


def episode(policy: envs.Policy, cfg: DictConfig) -> Iterator[tuple[np.ndarray, float]]:
    """Pictures and rewards of an episode, or of its first ten minutes.

    A second environment in colour and full size plays along: same seed, same actions, same game.
    """
    env = envs.make(cfg.game, 1)
    shown = envs.make(cfg.game, 1, grayscale=False, stack_num=1, img_height=HEIGHT, img_width=WIDTH)
    start, rng = envs.seeds(cfg.seed, "evaluation", 0, 1), generator(cfg.seed, "evaluation", 0, 1)
    observations, colours = env.reset(seed=start)[0], shown.reset(seed=start)[0]
    for _ in range(LONGEST):
        picture, greedy = colours[0, 0].copy(), policy(torch.from_numpy(observations))
        actions = envs.epsilon_greedy(greedy, env.single_action_space.n, cfg.dqn.eval_epsilon, rng).numpy()
        observations, rewards, terminated, truncated, _ = env.step(actions)
        colours = shown.step(actions)[0]
        yield picture, float(rewards[0])
        if terminated[0] | truncated[0]:
            break


def finished_learner(cfg: DictConfig, runtime: Runtime, method: fire.Method, run_dir: Path) -> Learner:
    """The Q-network that a finished run has left.

    Raises:
        UserError: its weights are missing or damaged.
    """
    weights = checkpoint.final_weights(run_dir)
    network = models.build(cfg.budget, int(envs.make(cfg.game, 1).single_action_space.n), cfg.seed)
    method.restructure(network, dict(network.state_dict()), build_scope(cfg.model.scope))
    network.load_state_dict(weights)
    return Learner(network, cfg, runtime)
