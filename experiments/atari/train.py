"""High-replay-ratio DQN: the training loop.

Reproduces Figure 4(a) of the paper, section 4.3, on Asterix, Beam Rider and Demon Attack; final returns there on
Asterix: none 1271, shrink and perturb 1814, full reset 1846, plasticity injection 830, FIRE 2250 (5 seeds,
scale=paper).

One step of all environments: act with the network as it is, send the actions to the environments, learn from what was
stored before (on a GPU while they play), store what came of the actions. The lag of one step is always there, so
results do not depend on timing.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.atari import envs, games, models
from experiments.atari.envs import STACK, STORED
from experiments.atari.learner import Learner
from experiments.common import plasticity
from experiments.common.errors import UserError
from experiments.common.memory import check_network
from experiments.common.metric_log import Row
from experiments.common.runtime import Runtime
from experiments.common.seeding import generator, seed_everything
from experiments.rl import training
from experiments.rl.training import PROBE_STATES, AgentTraining


class Schedule(training.Schedule):
    """Steps are agent steps, of all environments together; a stride is one of each."""

    def __init__(self, cfg: DictConfig) -> None:
        budget, dqn = cfg.budget, cfg.dqn
        super().__init__(budget, dqn.environments, 1, cfg.replay_ratio, budget.learning_starts, dqn.batch_size)
        self._epsilon, self._decay = tuple(dqn.epsilon), dqn.exploration_fraction * sum(budget.steps)
        self._decay_starts = dqn.epsilon_decay_starts
        self._target, self.restart_every = budget.target_every, budget.restart_every

    def epsilon(self, step: int) -> float:
        first, last = self._epsilon
        if step < self._decay_starts:
            return first
        return first + (last - first) * min((step - self._decay_starts) / self._decay, 1.0) if self._decay else last

    def updates_target(self, step: int) -> bool:
        return self.learns(step) and step % self._target == 0


class AtariTraining(AgentTraining):
    """The state of one run and the loop over its two phases.

    Environments cannot be saved. They are started again, with seeds of that step, every `restart_every` steps in every
    run; a checkpoint holds the actions played since then, which are played again when a run continues from it. So a
    checkpoint can be taken between any two steps.
    """

    plasticity_at_evaluations = False
    target_always_follows = True
    learner: Learner
    schedule: Schedule

    def __init__(self, cfg: DictConfig, runtime: Runtime, method: fire.Method) -> None:
        self.schedule, count = Schedule(cfg), cfg.dqn.environments
        seed_everything(cfg.seed)
        self.envs = envs.make(cfg.game, count, cfg.env.sticky)
        self.actions = int(self.envs.single_action_space.n)
        budget, states = cfg.budget, (cfg.dqn.batch_size, STACK, *envs.FRAME)
        check_network(
            lambda: models.QNetwork(budget.width, budget.hidden, self.actions),
            lambda net: net(torch.empty(states, dtype=torch.uint8)),
            runtime,
        )
        network = models.build(budget, self.actions, cfg.seed)
        capacity = min(cfg.budget.buffer, sum(cfg.budget.steps))
        super().__init__(cfg, runtime, method, network, lambda: Learner(network, cfg, runtime), STORED, count, capacity)
        self.no_actions = torch.zeros(count, dtype=torch.int64)
        self.observations: Tensor | None = None  # (environments, 4, 84, 84) uint8; None: before the run begins
        self.sticky_steps = envs.StickySteps(cfg.env.sticky, count, generator(cfg.seed, "sticky"))
        self.played: list[Tensor] = []  # actions since the environments were started, at step `started`
        self.started = 0
        self.episodes = envs.Episodes(count)

    def take_step(self) -> None:
        """One step of all environments, and the updates that are due with it."""
        schedule, count = self.schedule, self.schedule.stride
        if self.step > self.started and self.step % schedule.restart_every == 0:
            self.restart_environments()
        epsilon, updates = schedule.epsilon(self.step), schedule.updates(self.step)
        greedy = self.greedy_actions(updates, epsilon)
        actions = envs.epsilon_greedy(greedy, self.actions, epsilon, self.exploration)
        ended_before = torch.from_numpy(self.episodes.ended.copy())
        played = self.sticky_steps.play(actions, ended_before)
        self.envs.send(played.numpy())
        # They play while a GPU learns; on a CPU both would only be in each other's way.
        came = self.envs.recv() if self.runtime.device == "cpu" else None
        if updates:
            self.learn(updates * schedule.batch_size)
        stepped, rewards, terminated, truncated, _ = came or self.envs.recv()
        for _, total, length in self.episodes.step(rewards, terminated, truncated):
            self.meter.episode(total, length)
        self.observations = torch.from_numpy(stepped)
        # The chosen actions are stored: that others are played is, to the agent, chance in the environment.
        self.buffer.complete(actions, torch.from_numpy(rewards), torch.from_numpy(terminated))
        self.buffer.begin(self.observations[:, -1], ended_before)
        self.played.append(played.to(torch.uint8))
        self.step += count
        self.meter.advance(count, updates)
        if schedule.updates_target(self.step):
            self.learner.update_target()

    def greedy_actions(self, updates: int, epsilon: float) -> Tensor:
        """The actions of highest value, (environments,) int64. To a buffer on the device this sends what came of the
        last step, and what is drawn for `updates` after this one."""
        random = epsilon >= 1  # the network is not needed where every action is random anyway
        if self.on_device is None:
            assert self.observations is not None
            return self.no_actions if random else self.learner.act(self.observations)
        if updates:
            self.on_device.draw(updates * self.schedule.batch_size, self.drawing)
        if not random:
            return self.learner.act_in(self.on_device)
        self.on_device.flush()
        return self.no_actions

    def restart_environments(self) -> None:
        """Start the environments with the seeds of this step; the episodes that were played are truncated, and count in
        no return."""
        self.started, self.played = self.step, []
        self.observations = self.first_observations()
        self.sticky_steps.start()
        self.buffer.begin(self.observations[:, -1], True)

    def first_observations(self) -> Tensor:
        """What the environments show when they are started with the seeds of step `started`."""
        count = self.cfg.dqn.environments
        self.episodes = envs.Episodes(count)
        return torch.from_numpy(self.envs.reset(seed=envs.seeds(self.cfg.seed, "environment", self.started, count))[0])

    def environment_state(self) -> dict[str, Any]:
        played = torch.stack(self.played) if self.played else None
        return {"played": played, "started": self.started, "sticky_steps": self.sticky_steps.state_dict()}

    def load_environment_state(self, state: dict[str, Any]) -> None:
        """Bring the environments to where they were when the checkpoint was taken. Before a phase begins that is not
        needed: it starts them again."""
        self.played = [] if state["played"] is None else list(state["played"])
        self.started = state["started"]
        self.sticky_steps.load_state_dict(state["sticky_steps"])
        if not self.entered:
            return
        observations = self.first_observations()
        for actions in self.played:
            stepped, rewards, terminated, truncated, _ = self.envs.step(actions.long().numpy())
            self.episodes.step(rewards, terminated, truncated)
            observations = torch.from_numpy(stepped)
        self.observations = observations
        if not torch.equal(observations[:, -1], self.buffer.newest().cpu()):
            raise UserError(
                f"game={self.cfg.game}: the actions since step {self.started} lead elsewhere than before; the "
                "checkpoint is of another version of the environment"
            )

    def video(self) -> tuple[Iterable[tuple[np.ndarray, float]], float]:
        cfg = self.cfg
        shown = envs.episode(self.learner.act, cfg.game, cfg.dqn.eval_epsilon, cfg.seed, cfg.env.sticky)
        return shown, 60 / envs.FRAME_SKIP

    def training_metrics(self, updated: bool) -> Row:
        return {"train/epsilon": self.schedule.epsilon(self.step)}

    def evaluate(self) -> dict[str, float]:
        cfg = self.cfg
        count, steps, epsilon = cfg.dqn.environments, cfg.budget.eval_steps, cfg.dqn.eval_epsilon
        return envs.evaluate(self.learner.act, cfg.game, count, steps, epsilon, cfg.seed, self.step, cfg.env.sticky)

    @torch.no_grad()
    def plasticity(self) -> dict[str, float | int]:
        """Plasticity of the network on a sample of states of the replay buffer."""
        batch, _ = self.probe("probe", PROBE_STATES)
        with fire.metrics.record_activations(self.network) as activations:
            self.network(batch.frames[:, :STACK])
        return plasticity.of_network(self.network, self.scope, activations[-1].values, activations)

    def sharpness_parts(self) -> tuple[nn.Module, Callable[[Any], Tensor], Sequence[Any]]:
        batch, _ = self.probe("sharpness", self.cfg.sharpness)
        return self.network, self.learner.loss, list(batch.split(self.cfg.dqn.batch_size))

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """Final training and evaluation returns, and the mean over the rows of phase 1."""
        after = [row["train/return"] for row in rows if row["phase"] == 1 and row.get("train/return") is not None]
        evaluated = [row["eval/return"] for row in rows if "eval/return" in row]
        normalised = games.human_normalised(self.cfg.game, evaluated[-1])
        human = "" if normalised is None else f", {normalised:.1%} of the way from random to human"
        return {
            "final": after[-1] if after else None,
            "final_eval": evaluated[-1],
            "final_eval_human_normalised": normalised,
            "mean_of_last_phase": sum(after) / len(after) if after else None,
            "result": f"return {evaluated[-1]:,.0f}{human}",
        }
