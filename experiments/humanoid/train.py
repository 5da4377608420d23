"""SimBa-SAC on HumanoidBench: the training loop.

Reproduces Figure 4(b) of the paper, section 4.3, on h1-walk, h1-balance_simple and h1-run; returns there at a million
environment steps on h1-walk: none 594, shrink and perturb 774, full reset 702, plasticity injection 353, FIRE 709
(5 seeds, scale=paper).

One action: choose it with the networks as they are, let the simulation take it in another thread, learn meanwhile from
what was stored before, store what came of it. The lag of one action is always there, so results do not depend on
timing.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.common import plasticity
from experiments.common.config import data_folder
from experiments.common.memory import check_network
from experiments.common.metric_log import Row
from experiments.common.runtime import Runtime
from experiments.common.seeding import derive, seed_everything
from experiments.humanoid import envs, models, tasks
from experiments.humanoid.learner import Learner
from experiments.rl.replay import Stored
from experiments.rl.training import PROBE_STATES, AgentTraining, Schedule

OF_ACTOR = {  # the keys of the actor's plasticity metrics
    "plasticity/dfi": "plasticity/actor_dfi",
    "plasticity/dfi_normalised": "plasticity/actor_dfi_normalised",
    "plasticity/dfi_raw": "plasticity/actor_dfi_raw",
    "plasticity/anisotropy": "plasticity/actor_anisotropy",
    "plasticity/effective_rank": "plasticity/actor_effective_rank",
    "plasticity/stable_rank": "plasticity/actor_stable_rank",
    "plasticity/srank": "plasticity/actor_srank",
    "plasticity/dormant": "plasticity/actor_dormant",
    "plasticity/weight_norm": "plasticity/actor_weight_norm",
}


def schedule_of(cfg: DictConfig) -> Schedule:
    """What is due when. An action counts as `action_repeat` steps, also where it ends an episode earlier, as in SimBa's
    code."""
    repeat, budget = cfg.sac.action_repeat, cfg.budget
    return Schedule(budget, repeat, repeat, cfg.sac.replay_ratio, budget.random_actions * repeat, budget.batch_size)


class HumanoidTraining(AgentTraining):
    """The state of one run and the loop over its two phases."""

    plasticity_at_evaluations = True
    learner: Learner

    def __init__(self, cfg: DictConfig, runtime: Runtime, method: fire.Method) -> None:
        budget, repeat = cfg.budget, cfg.sac.action_repeat
        self.schedule = schedule_of(cfg)
        self.player, *self.evaluators = (
            envs.Player(envs.make(cfg.task, cfg.env.backend, data_folder(cfg)), repeat)
            for _ in range(1 + budget.eval_episodes)
        )
        env = self.player.env
        stored = Stored(env.observation_space.shape, torch.float32, 1, env.action_space.shape, torch.float32)
        observation, self.actions = stored.frame[0], stored.action[0]
        seed_everything(cfg.seed)
        widths, size = (observation, self.actions), budget.batch_size
        check_network(
            lambda: models.Agent(*widths, budget),
            lambda agent: agent.critic(*(torch.empty(size, width) for width in widths)),
            runtime,
        )
        agent = models.build(observation, self.actions, budget, cfg.seed)
        # An action stores one observation, two where it ends an episode.
        capacity = min(budget.buffer, 2 * sum(budget.steps) // repeat)
        super().__init__(
            cfg, runtime, method, agent, lambda: Learner(agent, observation, self.actions, cfg, runtime), stored, 1,
            capacity,
        )  # fmt: skip
        if self.on_device is not None:
            self.learner.normaliser.travel_in(self.on_device.parcel)
        self.physics = ThreadPoolExecutor(1)
        self.pool = ThreadPoolExecutor(min(budget.eval_episodes, os.cpu_count() or 1))
        self.observation: Tensor | None = None  # (observation,) float32; None: before the first episode
        self.episode_return = 0.0  # of the present episode

    def take_step(self) -> None:
        """One action, and the updates that are due with it."""
        if self.observation is None:
            self.begin_episode(derive(self.cfg.seed, "environment", 0) % 2**31)
        updates = self.schedule.updates(self.step)
        count = updates * self.schedule.batch_size
        action = self.choose_action(count)
        coming = self.physics.submit(self.player.step, action.numpy())
        if count:
            self.learn(count)
        outcome = coming.result()
        self.buffer.complete(action[None], outcome.reward, outcome.terminated)
        self.observation = torch.from_numpy(outcome.observation).float()
        self.buffer.begin(self.observation[None], False)
        self.episode_return += outcome.reward
        if outcome.terminated or outcome.truncated:
            self.meter.episode(self.episode_return, self.player.taken)
            self.begin_episode()
        self.step += self.schedule.stride
        self.meter.advance(self.schedule.stride, updates)

    def begin_episode(self, seed: int | None = None) -> None:
        """Reset the environment and store its first observation."""
        self.observation = torch.from_numpy(self.player.reset(seed)).float()
        self.episode_return = 0.0
        self.buffer.begin(self.observation[None], True)

    def choose_action(self, count: int) -> Tensor:
        """The next action, (action,): at random at first, then drawn from the policy. To a buffer on the device this
        sends what came of the last one, and what is drawn for updates on `count` transitions."""
        assert self.observation is not None
        self.learner.normaliser.update(self.observation)
        if not self.schedule.learns(self.step):
            action = 2 * torch.rand(self.actions, generator=self.exploration) - 1
            if self.on_device is not None:
                self.on_device.flush()
            return action
        if self.on_device is None:
            noise, device = torch.randn((1, self.actions), generator=self.exploration), self.runtime.device
            return self.learner.policy(self.observation[None].to(device), noise.to(device)).cpu()[0]
        if count:
            self.on_device.draw(count, self.drawing)
        self.learner.pack(self.on_device.parcel, count, self.exploration, self.drawing)
        return self.learner.act_in(self.on_device)[0]

    def environment_state(self) -> dict[str, Any]:
        return {
            "player": self.player.state_dict(),
            "observation": self.observation,
            "episode_return": self.episode_return,
        }

    def load_environment_state(self, state: dict[str, Any]) -> None:
        self.player.load_state_dict(state["player"])
        self.observation, self.episode_return = state["observation"], state["episode_return"]

    def final_weights(self) -> dict[str, Any]:
        """Those of actor and critics, and the observations' statistics, without which they are of no use."""
        return {"agent": self.learner.network.state_dict(), "normaliser": self.learner.normaliser.state_dict()}

    def load_final_weights(self, weights: dict[str, Any]) -> None:
        self.learner.network.load_state_dict(weights["agent"])
        self.learner.normaliser.load_state_dict(weights["normaliser"])

    def video(self) -> tuple[Iterable[tuple[np.ndarray, float]], float]:
        rate = 1 / (envs.STEP_SECONDS * self.cfg.sac.action_repeat)  # a picture for each action
        return envs.episode(self.learner.act, self.player, self.cfg.seed), rate

    def training_metrics(self, updated: bool) -> Row:
        return {"train/temperature": math.exp(self.learner.log_temperature.item())} if updated else {}

    def evaluate(self) -> dict[str, float]:
        return envs.evaluate(self.learner.act, self.evaluators, self.pool, self.cfg.seed, self.step)

    @torch.no_grad()
    def plasticity(self) -> dict[str, float | int]:
        """Plasticity of the critics and, as `actor_...`, of the actor on a sample of states of the replay buffer."""
        actor, critic = self.learner.network.actor, self.learner.network.critic
        batch, _ = self.probe("probe", PROBE_STATES)
        states = self.learner.normaliser(batch.frames[:, 0])
        with fire.metrics.record_activations(actor) as activations:
            features = actor.encoder(states)
        of_actor = plasticity.of_network(actor, self.scope, features, activations)
        with fire.metrics.record_activations(critic) as stacked:
            features = torch.cat(critic.features(states, batch.actions).unbind(), 1)
        members = [fire.Activation(each.name, values, -1) for each in stacked for values in each.values.unbind()]
        row = plasticity.of_network(critic, self.scope, features, members)
        return row | {OF_ACTOR[name]: value for name, value in of_actor.items()}

    def sharpness_parts(self) -> tuple[nn.Module, Callable[[Any], Tensor], Sequence[Any]]:
        batch, source = self.probe("sharpness", self.cfg.sharpness)
        return self.learner.network.critic, self.learner.critics_loss, [self.learner.given(batch, source)]

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """Final evaluation and training returns, and the mean of the evaluations after the boundary."""
        evaluated = [row["eval/return"] for row in rows if "eval/return" in row]
        after = [row["eval/return"] for row in rows if row["phase"] == 1 and "eval/return" in row]
        trained = [row["train/return"] for row in rows if row.get("train/return") is not None]
        normalised = tasks.normalised(self.cfg.task, evaluated[-1])
        success = "" if normalised is None else f", {normalised:.1%} of the way from random to success"
        return {
            "final": evaluated[-1],
            "final_success_normalised": normalised,
            "final_train": trained[-1] if trained else None,
            "mean_of_last_phase": sum(after) / len(after),
            "result": f"return {evaluated[-1]:,.1f}{success}",
        }
