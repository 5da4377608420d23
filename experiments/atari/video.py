"""The video of an episode."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from experiments.atari import envs
from experiments.common import video
from experiments.common.seeding import generator

HEIGHT, WIDTH = 210, 160
FRAMES_PER_SECOND = 60 // envs.FRAME_SKIP  # as it is played
LONGEST = 9000  # steps, ten minutes of play


def play(policy: envs.Policy, game: str, epsilon: float, seed: int, path: Path) -> float:
    """Play an episode, or its first ten minutes, and write it to `path`; its return.

    A second environment in colour and full size plays along: same seed, same actions, same game.
    """
    rewards_so_far: list[float] = []

    def frames() -> Iterator[np.ndarray]:
        env = envs.make(game, 1)
        shown = envs.make(game, 1, grayscale=False, stack_num=1, img_height=HEIGHT, img_width=WIDTH)
        start, rng = envs.seeds(seed, "evaluation", 0, 1), generator(seed, "evaluation", 0, 1)
        observations, colours = env.reset(seed=start)[0], shown.reset(seed=start)[0]
        ended = False
        while not ended and len(rewards_so_far) < LONGEST:
            yield colours[0, 0]
            greedy = policy(torch.from_numpy(observations))
            actions = envs.epsilon_greedy(greedy, env.single_action_space.n, epsilon, rng).numpy()
            observations, rewards, terminated, truncated, _ = env.step(actions)
            colours = shown.step(actions)[0]
            rewards_so_far.append(float(rewards[0]))
            ended = bool(terminated[0] | truncated[0])

    video.write(path, frames(), (WIDTH, HEIGHT), FRAMES_PER_SECOND)
    return sum(rewards_so_far)
