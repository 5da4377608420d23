"""The video of an episode."""

import os
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch

from experiments.atari import envs
from experiments.common.seeding import generator

HEIGHT, WIDTH = 210, 160
FRAMES_PER_SECOND = 60 // envs.FRAME_SKIP  # as it is played
LONGEST = 9000  # steps, ten minutes of play


def record(policy: envs.Policy, game: str, epsilon: float, seed: int, path: Path) -> float:
    """Play an episode, or its first ten minutes, and write it to `path` (MP4, H.264); its return.

    A second environment in colour and full size plays along: same seed, same actions, same game.
    """
    env = envs.make(game, 1)
    shown = envs.make(game, 1, grayscale=False, stack_num=1, img_height=HEIGHT, img_width=WIDTH)
    start, rng = envs.seeds(seed, "evaluation", 0, 1), generator(seed, "evaluation", 0, 1)
    observations, colours = env.reset(seed=start)[0], shown.reset(seed=start)[0]
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp")
    writer = imageio_ffmpeg.write_frames(
        str(temporary), (WIDTH, HEIGHT), fps=FRAMES_PER_SECOND, macro_block_size=2, ffmpeg_log_level="error",
        output_params=["-f", "mp4"],
    )  # fmt: skip
    writer.send(None)
    total, steps, ended = 0.0, 0, False
    while not ended and steps < LONGEST:
        writer.send(np.ascontiguousarray(colours[0, 0]))
        greedy = policy(torch.from_numpy(observations))
        actions = envs.epsilon_greedy(greedy, env.single_action_space.n, epsilon, rng).numpy()
        observations, rewards, terminated, truncated, _ = env.step(actions)
        colours = shown.step(actions)[0]
        total += float(rewards[0])
        steps += 1
        ended = bool(terminated[0] | truncated[0])
    writer.close()
    temporary.replace(path)
    return total
