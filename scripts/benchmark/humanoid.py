"""The humanoid experiment against a plain loop, several processes at once, and the environment by itself.

Both loops train the same networks with the same settings on h1-walk. The plain one is what one writes first: one
environment stepped in between, two separate critics, NumPy arrays as the buffer, AdamW as it comes, everything through
backward(), `loss.item()` now and then.
"""

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.common import config
from experiments.common.errors import UserError
from experiments.common.fetch import default_data_dir
from experiments.humanoid import envs, models
from experiments.humanoid.config import HumanoidConfig
from experiments.humanoid.learner import draw
from experiments.humanoid.train import HumanoidTraining
from scripts.benchmark.plan import Case, Options
from scripts.benchmark.processes import measure, several
from scripts.benchmark.timing import Limit, alternate, rates, rates_table

CASES = {"the paper's networks": ["scale=paper"], "those of scale=laptop": ["scale=laptop"]}
# Environment steps of a turn: on CUDA some seconds for each.
STEPS = {
    "cpu": {"paper": {"ours": 20, "plain": 20}, "laptop": {"ours": 300, "plain": 300}},
    "cuda": {"paper": {"ours": 2000, "plain": 500}, "laptop": {"ours": 2000, "plain": 500}},
}
# Seconds of a case until its first turn and of a turn; on CUDA a guess.
EXPECTED = {"cpu": ((15.0, 6.0), (15.0, 7.0)), "cuda": ((19.0, 7.0), (19.0, 7.0))}
PLAYERS = {"ours": "native", "HumanoidBench's": "humanoid_bench"}
ENV_STEPS = 1000
FILL = 500  # random actions before the first update


def composed(overrides: list[str], device: str) -> DictConfig:
    """The configuration of a case."""
    small = [f"budget.random_actions={FILL}", "budget.buffer=50_000", "env.backend=native", "task=h1-walk"]
    return config.compose_domain("humanoid", HumanoidConfig, [*overrides, *small, f"device={device}", "method=none"])


def ours(cfg: DictConfig) -> HumanoidTraining:
    """A training that has begun to learn."""
    training = HumanoidTraining(cfg, config.resolve_runtime(cfg, compile_on_cuda="graphs"), fire.build("none"))
    advance(training, 2 * FILL + 20)
    return training


def advance(training: HumanoidTraining, steps: int) -> None:
    """`steps` environment steps."""
    for _ in range(steps // training.schedule.stride):
        training.take_action()


class Block(nn.Module):
    """A residual block of SimBa."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return x + self.layers(x)


def network(inputs: int, outputs: int, width: int, blocks: int) -> nn.Sequential:
    """An encoder and a head."""
    hidden = [Block(width) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(inputs, width), *hidden, nn.LayerNorm(width), nn.Linear(width, outputs))


class PlainLoop:
    """The loop as one writes it first."""

    def __init__(self, cfg: DictConfig, device: str) -> None:
        self.cfg, self.device = cfg, device
        self.player = envs.Player(envs.make("h1-walk", "native", default_data_dir()), cfg.sac.action_repeat)
        observation, action = 51, 19
        budget = cfg.budget
        self.actor = network(observation, 2 * action, budget.actor_width, budget.actor_blocks).to(device)
        self.critics = [
            network(observation + action, 1, budget.critic_width, budget.critic_blocks).to(device) for _ in range(2)
        ]
        self.targets = deepcopy(self.critics)
        self.log_temperature = nn.Parameter(torch.tensor(cfg.sac.temperature, device=device).log())
        both = [p for critic in self.critics for p in critic.parameters()]
        rate, decay = cfg.optimizer.learning_rate, cfg.optimizer.weight_decay
        self.actor_optimizer = torch.optim.AdamW(self.actor.parameters(), rate, weight_decay=decay)
        self.critic_optimizer = torch.optim.AdamW(both, rate, weight_decay=decay)
        self.temperature_optimizer = torch.optim.AdamW([self.log_temperature], rate, weight_decay=0)
        self.rng = np.random.default_rng(0)
        self.states = np.zeros((budget.buffer, observation), dtype=np.float32)
        self.next_states = np.zeros_like(self.states)
        self.actions = np.zeros((budget.buffer, action), dtype=np.float32)
        self.rewards, self.ends = np.zeros((2, budget.buffer), dtype=np.float32)
        self.filled = self.updates = 0
        self.mean, self.variance, self.count = np.zeros(observation), np.ones(observation), 1e-4
        self.observation = self.player.reset(0)
        while self.filled < FILL:
            self.act(self.rng.uniform(-1, 1, action).astype(np.float32))

    def normal(self, observations: np.ndarray) -> Tensor:
        """Normalised, on the device."""
        scaled = (observations - self.mean) / np.sqrt(self.variance + 1e-8)
        return torch.as_tensor(scaled.astype(np.float32), device=self.device)

    def policy(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Actions drawn and their log-probabilities."""
        mean, log_std = self.actor(states).chunk(2, 1)
        low, high = models.LOG_STD
        log_std = low + (high - low) / 2 * (1 + torch.tanh(log_std))
        return draw((mean, log_std), torch.randn_like(mean))

    def act(self, action: np.ndarray | None = None) -> None:
        """One action."""
        delta = self.observation - self.mean
        self.count += 1
        self.mean = self.mean + delta / self.count
        self.variance = self.variance + (delta * (self.observation - self.mean) - self.variance) / self.count
        if action is None:
            with torch.no_grad():
                action = self.policy(self.normal(self.observation[None]))[0][0].cpu().numpy()
        outcome = self.player.step(action)
        row = self.filled % len(self.states)
        self.states[row], self.next_states[row] = self.observation, outcome.observation
        self.actions[row], self.rewards[row], self.ends[row] = action, outcome.reward, outcome.terminated
        self.filled += 1
        ended = outcome.terminated or outcome.truncated
        self.observation = self.player.reset() if ended else outcome.observation

    def value(self, critics: list[nn.Sequential], states: Tensor, actions: Tensor) -> list[Tensor]:
        """Of each critic, (batch,)."""
        inputs = torch.cat((states, actions), 1)
        return [critic(inputs)[:, 0] for critic in critics]

    def learn(self) -> None:
        """One update."""
        rows = self.rng.integers(min(self.filled, len(self.states)), size=self.cfg.budget.batch_size)
        states, next_states = self.normal(self.states[rows]), self.normal(self.next_states[rows])
        actions, rewards, ends = (
            torch.as_tensor(array[rows], device=self.device) for array in (self.actions, self.rewards, self.ends)
        )
        drawn, log_probabilities = self.policy(states)
        temperature = self.log_temperature.exp().detach()
        loss = (temperature * log_probabilities - torch.min(*self.value(self.critics, states, drawn))).mean()
        self.actor_optimizer.zero_grad()
        loss.backward()
        self.actor_optimizer.step()
        target_entropy = self.cfg.sac.target_entropy * actions.shape[1]
        temperature_loss = self.log_temperature.exp() * (-log_probabilities.detach().mean() - target_entropy)
        self.temperature_optimizer.zero_grad()
        temperature_loss.backward()
        self.temperature_optimizer.step()
        with torch.no_grad():
            drawn, log_probabilities = self.policy(next_states)
            after = torch.min(*self.value(self.targets, next_states, drawn))
            after = after - self.log_temperature.exp() * log_probabilities
            goal = rewards + self.cfg.sac.discount * (1 - ends) * after
        error = sum(F.mse_loss(value, goal) for value in self.value(self.critics, states, actions))
        assert isinstance(error, Tensor)
        self.critic_optimizer.zero_grad()
        error.backward()
        self.critic_optimizer.step()
        with torch.no_grad():
            for target, critic in zip(self.targets, self.critics, strict=True):
                for there, here in zip(target.parameters(), critic.parameters(), strict=True):
                    there.mul_(1 - self.cfg.sac.tau).add_(here, alpha=self.cfg.sac.tau)
        self.updates += 1
        if self.updates % 100 == 0:
            error.item()

    def advance(self, steps: int) -> None:
        """`steps` environment steps."""
        for _ in range(steps // self.cfg.sac.action_repeat):
            self.act()
            for _ in range(int(self.cfg.sac.replay_ratio)):
                self.learn()


def cases(options: Options) -> list[Case]:
    """Both loops for both sizes, several processes of ours at once, the environment alone."""
    found = [
        Case(case, ("ours", "plain"), "ours", partial(_measure, options.device, case), *expected, extra=number > 0)
        for number, (case, expected) in enumerate(zip(CASES, EXPECTED[options.device], strict=False))
    ]
    together = several("scripts.benchmark.humanoid", options.device, "the paper's networks, several runs at once")
    alone = Case("the environment alone, random actions", tuple(PLAYERS), "ours", _environments, 2.0, 1.0)
    return [*found, together, alone]


def _measure(device: str, case: str, loops: Sequence[str], limit: Limit) -> pd.DataFrame:
    cfg = composed(CASES[case], device)
    training = ours(cfg)
    steps = {loop: STEPS[device][cfg.scale][loop] for loop in loops}
    contestants: dict[str, Callable[[], object]] = {"ours": partial(advance, training, steps["ours"])}
    if "plain" in loops:
        contestants["plain"] = partial(PlainLoop(cfg, device).advance, steps["plain"])
    return rates(f"{case}, {training.runtime.precision}", alternate(contestants, limit, device), steps)


def _environments(loops: Sequence[str], limit: Limit) -> pd.DataFrame:
    backends = {loop: PLAYERS[loop] for loop in loops}
    try:
        envs.resolve_backend("humanoid_bench")
    except UserError:
        if backends.pop("HumanoidBench's", None):
            print(f"{limit.case}: HumanoidBench's package cannot be imported, so ours alone", flush=True)
    contestants = {
        loop: partial(_play, envs.Player(envs.make("h1-walk", backend, default_data_dir()), 1))
        for loop, backend in backends.items()
    }
    return rates(limit.case, alternate(contestants, limit, "cpu"), dict.fromkeys(backends, ENV_STEPS))


def _play(player: envs.Player) -> None:
    rng = np.random.default_rng(0)
    player.reset(0)
    for _ in range(ENV_STEPS):
        outcome = player.step(rng.uniform(-1, 1, 19).astype(np.float32))
        if outcome.terminated or outcome.truncated:
            player.reset()


def measure_alone(device: str, threads: int, seconds: float) -> None:
    """One of several processes."""
    training = ours(composed([*CASES["the paper's networks"], f"threads={threads}"], device))

    def one() -> int:
        advance(training, training.schedule.stride)
        return training.schedule.stride

    measure(one, training.learner.totals.tolist, seconds)


def table(results: pd.DataFrame) -> str:
    """Markdown: a row for each loop."""
    return rates_table(results, "environment steps / s")


if __name__ == "__main__":
    measure_alone(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
