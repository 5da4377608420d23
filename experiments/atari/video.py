"""The video of an episode."""

from collections.abc import Iterator

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.atari import envs
from experiments.common.seeding import generator

HEIGHT, WIDTH = 210, 160
LONGEST = 9000  # steps, ten minutes of play


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
