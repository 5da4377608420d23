"""How far observations are from the authors', who resize colours and take the grey last (docs/atari.md)."""

import cv2
import numpy as np
import pytest
from ale_py import ALEInterface, roms

from experiments.atari import envs

GAMES = ("asterix", "beam_rider", "demon_attack")
STEPS = 250  # of each game, a thousand frames


def shrunk(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, envs.FRAME, interpolation=cv2.INTER_AREA)


def observed(game: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What random actions show, (steps, 84, 84) each: here, by ALE's steps one by one, and by the authors' order."""
    env = envs.make(game, 1, "agent_step")  # nothing is random, so that a second emulator plays the same game
    env.reset(seed=np.array([0]))
    emulator = ALEInterface()
    emulator.setFloat("repeat_action_probability", 0)
    emulator.loadROM(roms.get_rom_path(game))
    emulator.reset_game()
    actions, rng = emulator.getMinimalActionSet(), np.random.default_rng(0)
    ours, like_ours, theirs = [], [], []
    for _ in range(STEPS):
        action, greys, colours = int(rng.integers(len(actions))), [], []
        for _ in range(envs.FRAME_SKIP):
            emulator.act(actions[action])
            greys.append(emulator.getScreenGrayscale())
            colours.append(emulator.getScreenRGB())
        observation, _, terminated, *_ = env.step(np.array([action]))
        assert not terminated
        ours.append(observation[0, -1].copy())
        like_ours.append(shrunk(np.maximum(*greys[-2:])))
        theirs.append(cv2.cvtColor(shrunk(np.maximum(*colours[-2:])), cv2.COLOR_RGB2GRAY))
    return np.stack(ours), np.stack(like_ours), np.stack(theirs)


def test_observations_are_close_to_the_authors() -> None:
    """ALE takes the grey first: the numbers of docs/atari.md."""
    ours, like_ours, theirs = (np.concatenate(parts).astype(int) for parts in zip(*map(observed, GAMES), strict=True))
    assert len(np.unique(ours.reshape(len(ours), -1), axis=0)) > 600  # the games move
    assert ours.shape == (len(GAMES) * STEPS, *envs.FRAME)
    order = np.abs(ours - like_ours)
    assert order.max() <= 1
    assert order.mean() < 1e-4  # so what is measured next is the order
    difference = np.abs(ours - theirs)
    assert difference.mean() == pytest.approx(0.021, abs=0.001)
    assert (difference > 0).mean() == pytest.approx(0.02, abs=0.001)
    assert (difference > 1).mean() == pytest.approx(1 / 2500, rel=0.1)
    assert difference.max() == 17
