"""The Atari experiment against a plain loop.

Both loops train the same network with the same settings at replay ratio 1, on Asterix. The plain one is what one writes
first: a vector of Gymnasium's single environments with its wrappers, observations stacked in the replay buffer, batches
made by NumPy, an eager update in PyTorch's usual memory format.
"""

from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from omegaconf import DictConfig
from torch import nn

import fire
from experiments.atari.config import AtariConfig
from experiments.atari.envs import STICKY
from experiments.atari.train import AtariTraining
from experiments.common.config import compose_domain
from experiments.common.runtime import resolve_runtime
from scripts.benchmark.cases import Case, Loop, PlainBuffer, repeated

gym.register_envs(ale_py)

SETTINGS = [  # the epsilon is that of a run's later part; ALE repeats actions in both loops
    "scale=paper", "game=asterix", "method=none", "dqn.epsilon=[0.01,0.01]", "budget.buffer=40_000",
    "budget.learning_starts=2000", "env.sticky=frame",
]  # fmt: skip
MODES = {"environments in turn": "sync", "environments in processes": "async"}  # of Gymnasium's vectors
STEPS = {"cpu": 20, "cuda": 250}  # of all environments in a turn


def cases(device: str, synthetic: bool) -> list[Case]:
    """The paper's network with all loops."""
    cfg = compose_domain("atari", AtariConfig, [*SETTINGS, f"device={device}"])
    loops = {"ours": partial(ours, cfg)} | {f"plain, {name}": partial(plain, cfg, mode) for name, mode in MODES.items()}
    return [Case(f"the paper's network, {cfg.precision}", loops, "agent steps")]


def ours(cfg: DictConfig, _: ExitStack) -> Loop:
    """Steps as `python -m experiments.atari` takes them, once it has begun to learn."""
    training = AtariTraining(cfg, resolve_runtime(cfg, compile_on_cuda="graphs"), fire.build("none"))
    training.restart_environments()
    while training.step < cfg.budget.learning_starts + 100:
        training.take_step()
    return repeated(training.take_step, STEPS[cfg.device], cfg.dqn.environments)


def plain(cfg: DictConfig, mode: str, stack: ExitStack) -> Loop:
    """Steps as one writes them first."""
    loop = PlainLoop(cfg, mode)
    stack.callback(loop.envs.close)
    return repeated(loop.take_step, STEPS[cfg.device], cfg.dqn.environments)


class PlainLoop:
    """DQN as one writes it first."""

    def __init__(self, cfg: DictConfig, mode: str) -> None:
        self.cfg, self.device, self.step = cfg, cfg.device, 0
        screen = partial(AtariPreprocessing, noop_max=0, frame_skip=4, screen_size=84)
        stack = partial(FrameStackObservation, stack_size=4)
        settings: dict[str, Any] = {"wrappers": [screen, stack], "frameskip": 1, "repeat_action_probability": STICKY}
        self.envs = gym.make_vec("ALE/Asterix-v5", cfg.dqn.environments, mode, **settings)
        actions = int(self.envs.single_action_space.n)  # type: ignore[attr-defined]
        width, hidden = cfg.budget.width, cfg.budget.hidden
        self.q = nn.Sequential(  # of Mnih et al. 2015, in PyTorch's usual memory format
            nn.Conv2d(4, width, 8, stride=4), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(2 * width * 49, hidden), nn.ReLU(), nn.Linear(hidden, actions),
        ).to(self.device)  # fmt: skip
        self.target = deepcopy(self.q)
        self.optimizer = torch.optim.Adam(self.q.parameters(), cfg.optimizer.learning_rate, eps=cfg.optimizer.eps)
        state, number = np.zeros((4, 84, 84), np.uint8), np.float32(0)
        self.buffer = PlainBuffer(cfg.budget.buffer, state, np.int64(0), number, state, number)
        self.states = self.envs.reset(seed=0)[0]
        while self.buffer.added < cfg.budget.learning_starts:
            self.act(epsilon=1.0)

    def act(self, epsilon: float) -> None:
        """One step of all environments."""
        actions = self.envs.action_space.sample()
        if self.buffer.rng.random() >= epsilon:
            with torch.no_grad():
                actions = self.q(torch.as_tensor(self.states, device=self.device) / 255).argmax(1).cpu().numpy()
        next_states, rewards, terminated, _, _ = self.envs.step(actions)
        for transition in zip(self.states, actions, np.sign(rewards), next_states, terminated, strict=True):
            self.buffer.add(*transition)
        self.states = next_states

    def learn(self) -> None:
        """One update."""
        states, actions, rewards, next_states, ends = self.buffer.sample(self.cfg.dqn.batch_size, self.device)
        with torch.no_grad():
            td_targets = rewards + self.cfg.dqn.discount * (1 - ends) * self.target(next_states / 255).amax(1)
        loss = F.smooth_l1_loss(self.q(states / 255).gather(1, actions[:, None])[:, 0], td_targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        if self.step % self.cfg.budget.target_every == 0:
            self.target.load_state_dict(self.q.state_dict())

    def take_step(self) -> None:
        """One step of all environments, and an update for each."""
        self.act(self.cfg.dqn.epsilon[1])
        for _ in range(self.cfg.dqn.environments):
            self.learn()
