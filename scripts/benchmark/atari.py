"""The Atari experiment against a plain loop, and several processes at once.

Both loops train the same network with the same settings at replay ratio 1, on Asterix. The plain one is what one writes
first: a vector of Gymnasium's single environments with its wrappers, observations stacked in the replay buffer, batches
made by NumPy, an eager update of a contiguous network, `loss.item()` now and then.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial

import ale_py
import gymnasium as gym
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from omegaconf import DictConfig
from torch import nn

import fire
from experiments.atari import models
from experiments.atari.config import AtariConfig
from experiments.atari.envs import STICKY
from experiments.atari.train import AtariTraining
from experiments.common import config
from scripts.benchmark.plan import Case, Options
from scripts.benchmark.processes import measure, several
from scripts.benchmark.timing import Limit, alternate, rates, rates_table

gym.register_envs(ale_py)

CASES = {
    "the paper's network": ["scale=paper"],
    "a quarter of it": ["scale=paper", "budget.width=16", "budget.hidden=128"],
}
VECTORS = {"environments in turn": gym.vector.SyncVectorEnv, "environments in processes": gym.vector.AsyncVectorEnv}
# Agent steps of a turn: on CUDA a second or two for each.
STEPS = {"cpu": {"ours": 80, "plain": 80}, "cuda": {"ours": 2000, "plain": 500}}
# Seconds of a case until its first turn and of a turn. CUDA: ours as an H200 took; the plain loops are a guess.
EXPECTED = {"cpu": (60.0, 5.0), "cuda": (21.0, 6.0)}
FILL = 2000  # transitions in the buffer before the first update


def composed(overrides: list[str], device: str) -> DictConfig:
    """The configuration of a case: the epsilon of the run's later part, from the start."""
    small = ["budget.buffer=40_000", f"budget.learning_starts={FILL}", "dqn.epsilon=[0.01,0.01]", "game=asterix"]
    return config.compose_domain("atari", AtariConfig, [*overrides, *small, f"device={device}", "method=none"])


def ours(cfg: DictConfig) -> AtariTraining:
    """A training that has begun to learn."""
    training = AtariTraining(cfg, config.resolve_runtime(cfg, compile_on_cuda="graphs"), fire.build("none"))
    training.restart_environments()
    while training.step < FILL + 100:
        training.take_step()
    return training


def advance(training: AtariTraining, steps: int) -> None:
    """`steps` agent steps."""
    for _ in range(steps // training.schedule.stride):
        training.take_step()


class PlainLoop:
    """The loop as one writes it first."""

    def __init__(self, cfg: DictConfig, vector: Callable[..., gym.vector.VectorEnv], device: str) -> None:
        self.cfg, self.device, self.count = cfg, device, cfg.dqn.environments
        self.envs = vector([partial(single_environment, cfg.game)] * self.count)
        actions = int(self.envs.single_action_space.n)  # type: ignore[attr-defined]
        self.q: nn.Module = PlainNetwork(models.build(cfg.budget, actions, seed=0)).to(device)
        self.target: nn.Module = PlainNetwork(models.build(cfg.budget, actions, seed=0)).to(device)
        self.optimizer = torch.optim.Adam(self.q.parameters(), cfg.optimizer.learning_rate, eps=cfg.optimizer.eps)
        self.rng = np.random.default_rng(0)
        shape = (cfg.budget.buffer // self.count, self.count)
        self.states = np.zeros((*shape, 4, 84, 84), dtype=np.uint8)
        self.next_states = np.zeros_like(self.states)
        self.actions, self.rewards = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        self.ends = np.zeros(shape, dtype=np.float32)
        self.filled = self.step = 0
        self.observations = self.envs.reset(seed=0)[0]
        while self.filled < FILL // self.count:
            self.act(1.0)

    def act(self, epsilon: float) -> None:
        """One step of all environments."""
        if self.rng.random() < epsilon:
            actions = self.envs.action_space.sample()
        else:
            actions = self.q(torch.as_tensor(self.observations, device=self.device)).argmax(1).cpu().numpy()
        following, rewards, terminated, _, _ = self.envs.step(actions)
        row = self.filled % len(self.states)
        self.states[row], self.next_states[row] = self.observations, following
        self.actions[row], self.rewards[row], self.ends[row] = actions, np.sign(rewards), terminated
        self.filled, self.observations = self.filled + 1, following

    def learn(self) -> None:
        """One update."""
        size = self.cfg.dqn.batch_size
        rows = (
            self.rng.integers(min(self.filled, len(self.states)), size=size),
            self.rng.integers(self.count, size=size),
        )
        states, next_states, actions, rewards, ends = (
            torch.as_tensor(array[rows], device=self.device)
            for array in (self.states, self.next_states, self.actions, self.rewards, self.ends)
        )
        with torch.no_grad():
            goal = rewards + self.cfg.dqn.discount * (1 - ends) * self.target(next_states).max(1).values
        loss = F.smooth_l1_loss(self.q(states).gather(1, actions[:, None])[:, 0], goal)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.step % 100 == 0:
            loss.item()

    def advance(self, steps: int) -> None:
        """`steps` agent steps, with an update each."""
        for _ in range(steps // self.count):
            self.act(self.cfg.dqn.epsilon[1])
            for _ in range(self.count):
                self.step += 1
                self.learn()
                if self.step % self.cfg.budget.target_every == 0:
                    self.target.load_state_dict(self.q.state_dict())


class PlainNetwork(nn.Module):
    """The same layers, in PyTorch's usual memory format and with its usual ReLU."""

    def __init__(self, network: models.QNetwork) -> None:
        super().__init__()
        self.layers = nn.Sequential(network.convolutions, network.head).to(memory_format=torch.contiguous_format)
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False

    def forward(self, states: torch.Tensor) -> torch.Tensor:  # (batch, 4, 84, 84) uint8 -> (batch, actions)
        return self.layers(states / 255.0)


def single_environment(game: str) -> gym.Env:
    """Gymnasium's environment of a game with the wrappers that make it DQN's."""
    name = "".join(word.capitalize() for word in game.split("_"))
    env = gym.make(f"ALE/{name}-v5", frameskip=1, repeat_action_probability=STICKY)
    return FrameStackObservation(AtariPreprocessing(env, noop_max=0, frame_skip=4, screen_size=84), 4)


def cases(options: Options) -> list[Case]:
    """Both networks with all loops, then several processes of ours at once."""
    loops = ("ours", *(f"plain, {name}" for name in VECTORS))
    found = [
        Case(case, loops, "ours", partial(_measure, options.device, case), *EXPECTED[options.device], extra=number > 0)
        for number, case in enumerate(CASES)
    ]
    return [*found, several("scripts.benchmark.atari", options.device, "the paper's network, several runs at once")]


def _measure(device: str, case: str, loops: Sequence[str], limit: Limit) -> pd.DataFrame:
    cfg = composed(CASES[case], device)
    training = ours(cfg)
    steps = {loop: STEPS[device]["ours" if loop == "ours" else "plain"] for loop in loops}
    contestants: dict[str, Callable[[], object]] = {"ours": partial(advance, training, steps["ours"])}
    for name, vector in VECTORS.items():
        loop = f"plain, {name}"
        if loop in loops:
            contestants[loop] = partial(PlainLoop(cfg, vector, device).advance, steps[loop])
    times = alternate(contestants, limit, device)
    return rates(f"{case}, {training.runtime.precision}", times, steps)


def measure_alone(device: str, threads: int, seconds: float) -> None:
    """One of several processes."""
    training = ours(composed([*CASES["the paper's network"], f"threads={threads}"], device))

    def advance() -> int:
        training.take_step()
        return training.schedule.stride

    measure(advance, training.learner.totals.tolist, seconds)


def table(results: pd.DataFrame) -> str:
    """Markdown: a row for each loop."""
    return rates_table(results, "agent steps / s, each with an update")


if __name__ == "__main__":
    measure_alone(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
