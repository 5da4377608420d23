"""The humanoid experiment against a plain loop.

Both loops train networks of the same sizes with the same settings on h1-walk. The plain one is what one writes first:
one environment stepped in between, two separate critics, NumPy arrays as the buffer, AdamW as it comes.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.wrappers.utils import RunningMeanStd
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fire
from experiments.common.config import compose_domain, data_folder
from experiments.common.runtime import resolve_runtime
from experiments.humanoid import envs, models
from experiments.humanoid.config import HumanoidConfig
from experiments.humanoid.learner import draw
from experiments.humanoid.train import HumanoidTraining
from scripts.benchmark.cases import Case, Loop, PlainBuffer, repeated

SCALES = {"the paper's networks": "scale=paper", "those of scale=laptop": "scale=laptop"}
ACTIONS = {"cpu": 25, "cuda": 500}  # in a turn
SETTINGS = ["method=none", "task=h1-walk", "env.backend=native", "budget.random_actions=500", "budget.buffer=50_000"]
OBSERVATION, ACTION = 51, 19


def cases(device: str, synthetic: bool) -> list[Case]:
    """Both loops for both sizes."""
    found = []
    for name, scale in SCALES.items():
        cfg = compose_domain("humanoid", HumanoidConfig, [scale, *SETTINGS, f"device={device}"])
        loops = {"ours": partial(ours, cfg), "plain": partial(plain, cfg)}
        found.append(Case(f"{name}, {cfg.precision}", loops, "environment steps"))
    return found


def ours(cfg: DictConfig, _: ExitStack) -> Loop:
    """Steps as `python -m experiments.humanoid` takes them, once it has begun to learn."""
    training = HumanoidTraining(cfg, resolve_runtime(cfg, compile_on_cuda="graphs"), fire.build("none"))
    while training.step < cfg.sac.action_repeat * (cfg.budget.random_actions + 10):
        training.take_step()
    return repeated(training.take_step, ACTIONS[cfg.device], cfg.sac.action_repeat)


def plain(cfg: DictConfig, _: ExitStack) -> Loop:
    """Steps as one writes them first."""
    return repeated(PlainLoop(cfg).take_action, ACTIONS[cfg.device], cfg.sac.action_repeat)


class PlainLoop:
    """SAC as one writes it first."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.device, budget = cfg, cfg.device, cfg.budget
        self.player = envs.Player(envs.make("h1-walk", "native", data_folder(cfg)), cfg.sac.action_repeat)
        self.actor = models.Actor(OBSERVATION, ACTION, budget.actor_width, budget.actor_blocks).to(self.device)
        width, blocks = budget.critic_width, budget.critic_blocks
        self.critics = nn.ModuleList(
            nn.Sequential(models.Encoder(1, OBSERVATION + ACTION, width, blocks), nn.Linear(width, 1)) for _ in range(2)
        ).to(self.device)
        self.target = AveragedModel(self.critics, multi_avg_fn=get_ema_multi_avg_fn(1 - cfg.sac.tau))
        self.log_temperature = nn.Parameter(torch.tensor(cfg.sac.temperature, device=self.device).log())
        rate, decay = cfg.optimizer.learning_rate, cfg.optimizer.weight_decay
        self.actor_optimizer = torch.optim.AdamW(self.actor.parameters(), rate, weight_decay=decay)
        self.critic_optimizer = torch.optim.AdamW(self.critics.parameters(), rate, weight_decay=decay)
        self.temperature_optimizer = torch.optim.AdamW([self.log_temperature], rate, weight_decay=0)
        self.moments = RunningMeanStd(shape=(OBSERVATION,))
        state, action, number = np.zeros(OBSERVATION, np.float32), np.zeros(ACTION, np.float32), np.float32(0)
        self.buffer = PlainBuffer(budget.buffer, state, action, number, state, number)
        self.state = self.player.reset(0)
        while self.buffer.added < budget.random_actions:
            self.act(self.buffer.rng.uniform(-1, 1, ACTION).astype(np.float32))

    def normal(self, states: Tensor) -> Tensor:
        """Normalised states."""
        mean, variance = (torch.as_tensor(m, device=self.device) for m in (self.moments.mean, self.moments.var))
        return ((states - mean) / (variance + 1e-8).sqrt()).float()

    def policy(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Actions drawn and their log-probabilities."""
        mean, log_std = self.actor(states)
        return draw((mean, log_std), torch.randn_like(mean))

    def act(self, action: np.ndarray | None = None) -> None:
        """One action, the policy's if none is given."""
        self.moments.update(self.state[None])
        if action is None:
            with torch.no_grad():
                state = torch.as_tensor(self.state[None], device=self.device)
                action = self.policy(self.normal(state))[0][0].cpu().numpy()
        outcome = self.player.step(action)
        self.buffer.add(self.state, action, outcome.reward, outcome.observation, outcome.terminated)
        ended = outcome.terminated or outcome.truncated
        self.state = self.player.reset() if ended else outcome.observation

    def learn(self) -> None:
        """One update."""
        sac = self.cfg.sac
        states, actions, rewards, next_states, ends = self.buffer.sample(self.cfg.budget.batch_size, self.device)
        states, next_states = self.normal(states), self.normal(next_states)
        drawn, log_probabilities = self.policy(states)
        temperature = self.log_temperature.exp().detach()
        step(self.actor_optimizer, (temperature * log_probabilities - lower(self.critics, states, drawn)).mean())
        entropy_gap = -log_probabilities.detach().mean() - sac.target_entropy * ACTION
        step(self.temperature_optimizer, self.log_temperature.exp() * entropy_gap)
        with torch.no_grad():
            drawn, log_probabilities = self.policy(next_states)
            after = lower(self.target.module.children(), next_states, drawn) - temperature * log_probabilities
            td_targets = rewards + sac.discount * (1 - ends) * after
        inputs = torch.cat((states, actions), 1)
        first, second = (F.mse_loss(critic(inputs)[:, 0], td_targets) for critic in self.critics)
        step(self.critic_optimizer, first + second)
        self.target.update_parameters(self.critics)

    def take_action(self) -> None:
        """One action, and the updates that are due with it."""
        self.act()
        for _ in range(int(self.cfg.sac.replay_ratio)):
            self.learn()


def lower(critics: Iterable[nn.Module], states: Tensor, actions: Tensor) -> Tensor:
    """The lower of both values, (batch,)."""
    inputs = torch.cat((states, actions), 1)
    return torch.min(*(critic(inputs)[:, 0] for critic in critics))


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimiser."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
