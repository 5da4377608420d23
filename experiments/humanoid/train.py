"""SimBa-SAC on HumanoidBench: the training loop.

Reproduces Figure 4(b) of the paper, section 4.3, on h1-walk, h1-balance_simple and h1-run; returns there at a million
environment steps on h1-walk: none 594, shrink and perturb 774, full reset 702, plasticity injection 353, FIRE 709
(5 seeds, scale=paper). What a run is, and what is due when, is in `protocol`.

One action goes so: choose it with the networks as they are, let the simulation take it in a thread of its own, learn
meanwhile from what was stored before, store what came of it. The lag of one action is always there, so results do not
depend on timing.
"""

import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

import fire
from experiments.common import boundary, checkpoint, config, replay, video
from experiments.common.device_replay import DeviceReplay
from experiments.common.errors import StopSignals, UserError
from experiments.common.job import END, carry_out
from experiments.common.meter import Meter
from experiments.common.metric_log import Row
from experiments.common.progress import Progress
from experiments.common.replay import Batch, ReplayBuffer, Stored
from experiments.common.seeding import derive, generator, seed_everything
from experiments.common.workspace import Workspace
from experiments.humanoid import envs, estimate, models, protocol
from experiments.humanoid.learner import TOTALS, Learner
from experiments.humanoid.video import play

logger = logging.getLogger("fire")

PROBE_STATES = 512  # of the replay buffer, that the plasticity metrics look at


def run(cfg: DictConfig, stop: StopSignals) -> dict[str, Any]:
    """One run from its composed configuration: validate everything, then train what is missing."""
    protocol.check(cfg)
    method = config.build_method(cfg)
    cfg.optimizer_at_boundary = config.optimizer_at_boundary(cfg)
    runtime = config.resolve_runtime(cfg, compile_on_cuda="graphs")
    job = protocol.describe(cfg, runtime)
    protocol.announce(cfg, runtime)

    def prepare() -> HumanoidTraining:
        training = HumanoidTraining(cfg, runtime, method)
        if cfg.scale == "paper":
            logger.info("%s", estimate.describe_cost(cfg, runtime, training.disk_bytes))
        return training

    ended = carry_out(job, prepare, stop)
    if cfg.record_video and ended["status"] == "done before":
        video.record_once(
            lambda path: play(finished_learner(cfg, runtime, method, job.run_dir).act, cfg, path), job.run_dir
        )
    return {"run": job.name, **ended}


def stored(env: Any) -> Stored:
    """What the replay buffer keeps of a step in an environment."""
    return Stored(env.observation_space.shape, torch.float32, 1, env.action_space.shape, torch.float32)


class HumanoidTraining:
    """The state of one run and the loop over its two phases."""

    x_axis = "env_step"
    phases = 2
    branch, rewinds = END, False

    def __init__(self, cfg: DictConfig, runtime: config.Runtime, method: fire.Method) -> None:
        self.cfg, self.runtime, self.method = cfg, runtime, method
        self.outputs, self.schedule = Path(cfg.outputs_dir), protocol.Schedule(cfg)
        self.scope = config.build_scope(cfg.model.scope)
        budget, data_dir = cfg.budget, config.data_folder(cfg)
        self.player, *self.evaluators = (
            envs.Player(envs.make(cfg.task, cfg.env.backend, data_dir), cfg.sac.action_repeat)
            for _ in range(1 + budget.eval_episodes)
        )
        kept = stored(self.player.env)
        # An action stores one observation, two where it ends an episode.
        capacity = min(budget.buffer, 2 * sum(budget.steps) // cfg.sac.action_repeat)
        on = replay.place(kept, capacity, runtime.device)
        seed_everything(cfg.seed)
        self.actions = kept.action[0]
        # Where everything has room on the device, an action is two graphs and one copy each way.
        self.on_device: DeviceReplay | None = None
        if runtime.compile == "graphs" and on == runtime.device:
            most = self.schedule.most_updates * budget.batch_size
            others = Learner.fields(kept.frame[0], self.actions, most)
            self.on_device = DeviceReplay(kept, capacity, 1, runtime.device, most, others)
        self.buffer = self.on_device or ReplayBuffer(kept, capacity, 1, runtime.device, on)
        agent = models.build(kept.frame[0], self.actions, budget, cfg.seed)
        boundary.check_scope(method, agent, self.scope)
        self.initial = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
        self.learner = Learner(agent, kept.frame[0], self.actions, cfg, runtime)
        if self.on_device is not None:
            self.learner.normaliser.travel_in(self.on_device.parcel)
        self.exploration = generator(cfg.seed, "exploration")
        self.drawing = generator(cfg.seed, "replay")
        self.physics = ThreadPoolExecutor(1)
        self.pool = ThreadPoolExecutor(min(budget.eval_episodes, os.cpu_count() or 1))
        self.phase, self.step, self.entered = 0, 0, False
        self.observation: Tensor | None = None  # (observation,) float32; None: before the first episode
        self.episode_return = 0.0  # of the episode that is going on
        self.meter = Meter(self.learner.totals, TOTALS, losses=["loss", "actor_loss"])
        # The buffer of run and shared phase; weights, target and moments in six checkpoints.
        size = sum(tensor.numel() * tensor.element_size() for tensor in self.initial.values())
        self.disk_bytes = 2 * capacity * kept.bytes + 6 * 4 * size

    def state_dict(self) -> dict[str, Any]:
        """All a checkpoint needs; what the replay buffer holds must have been written."""
        return {
            **self.learner.state_dict(),
            "position": [self.phase, self.step, self.entered],
            "generators": [self.exploration.get_state(), self.drawing.get_state()],
            "player": self.player.state_dict(),
            "observation": self.observation,
            "episode_return": self.episode_return,
            "window": self.meter.state_dict(),
            "replay": self.buffer.state_dict(self.outputs),
        }

    def final_weights(self) -> dict[str, Any]:
        """Those of actor and critics, and the observations' statistics, without which they are of no use."""
        return {"agent": self.learner.agent.state_dict(), "normaliser": self.learner.normaliser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.phase, self.step, self.entered = state["position"]
        if self.phase == 1 and self.entered:
            self.learner.restructure(self.method, self.initial, self.scope)
        self.learner.load_state_dict(state)
        for rng, value in zip((self.exploration, self.drawing), state["generators"], strict=True):
            rng.set_state(value)
        self.player.load_state_dict(state["player"])
        self.observation, self.episode_return = state["observation"], state["episode_return"]
        self.meter.load_state_dict(state["window"])
        self.buffer.load_state_dict(state["replay"], self.outputs)

    def train(self, workspace: Workspace, until_phase: int) -> None:
        """Train from the current position to the end of phase `until_phase - 1`."""
        for phase in range(self.phase, until_phase):
            with self.finite(workspace):
                self.train_phase(workspace, phase)
            self.phase, self.entered = phase + 1, False
        if self.phase < self.phases:
            self.buffer.write(workspace.path)  # for whoever saves the state next
        elif self.cfg.record_video:
            video.record(partial(play, self.learner.act, self.cfg), workspace.path)

    def train_phase(self, workspace: Workspace, phase: int) -> None:
        """Begin a phase, with a reset if it is not the first, or go on in it, to its end."""
        end, length = self.schedule.ends[phase], self.cfg.budget.steps[phase]
        if not self.entered:
            if phase > 0:
                self.cross_boundary(workspace)
            self.entered = True
        self.meter.start_clock()
        with Progress(f"phase {phase}", length, length - end + self.step, "steps") as progress:
            while self.step < end:
                self.take_action()
                progress.advance(self.schedule.repeat)
                self.finish_step(workspace, progress)

    @contextmanager
    def finite(self, workspace: Workspace) -> Iterator[None]:
        """Say where the simulation has come to values that are not finite, in training or in an evaluation."""
        try:
            yield
        except FloatingPointError as error:
            self.means(workspace)  # if the loss is not finite either, that is the reason
            raise UserError(
                f"{error}, at environment step {self.step} of phase {self.phase}; the last good checkpoint, if any, is "
                f"in {workspace.path}"
            ) from error

    def cross_boundary(self, workspace: Workspace) -> None:
        """Reset actor and critics, make the target critics follow, and begin optimisers and temperature anew. The
        episode goes on, and so do the observations' statistics: they are of the task, not of the network."""
        row: Row = {"phase": self.phase, "env_step": self.step}
        if before := self.sharpness():
            row["reset/sharpness_before"] = before["plasticity/sharpness"]
        row |= boundary.cross(self.method, self.learner.agent, self.initial, self.scope)
        if self.method.method_name != "none":
            self.learner.follow()
        if self.cfg.optimizer_at_boundary == "reset":
            self.learner.begin_anew()
        row |= self.evaluate() | self.plasticity() | self.sharpness()
        workspace.log.append(row)

    def begin_episode(self, seed: int | None = None) -> None:
        """Reset the environment and store its first observation."""
        self.observation = torch.from_numpy(self.player.reset(seed)).float()
        self.episode_return = 0.0
        self.buffer.begin(self.observation[None], True)

    def choose_action(self, count: int) -> Tensor:
        """The next action, (action,): at random at first, then drawn from the policy. To a buffer on the device goes
        with the question what came of the last one, and what is drawn for updates on `count` transitions."""
        assert self.observation is not None
        self.learner.normaliser.update(self.observation)
        if self.schedule.explores(self.step):
            action = 2 * torch.rand(self.actions, generator=self.exploration) - 1
            if self.on_device is not None:
                self.on_device.flush()
            return action
        if self.on_device is None:
            noise = torch.randn((1, self.actions), generator=self.exploration)
            return self.learner.act(self.observation[None], noise)[0]
        if count:
            self.on_device.draw(count, self.drawing)
        self.learner.pack(self.on_device.parcel, count, self.exploration, self.drawing)
        return self.learner.act_in(self.on_device)[0]

    def take_action(self) -> None:
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
        self.step += self.schedule.repeat
        self.meter.advance(self.schedule.repeat, updates)

    def learn(self, count: int) -> None:
        """Updates on `count` transitions of what was stored before this action."""
        if self.on_device is None:
            self.learner.update(self.buffer.sample(count, self.drawing), self.learner.noise(count, self.drawing))
        else:
            self.learner.update_from(self.on_device, count)

    def finish_step(self, workspace: Workspace, progress: Progress) -> None:
        """Log, evaluate and checkpoint where that is due."""
        if self.schedule.logs(self.step):
            row: Row = {"phase": self.phase, "env_step": self.step, **self.meter.row(self.means(workspace))}
            if "train/loss" in row:
                row["train/temperature"] = math.exp(self.learner.log_temperature.item())
            if self.schedule.evaluates(self.step):
                row |= self.evaluate() | self.plasticity()
            workspace.log.append(row)
            names = {"return": "train/return", "eval": "eval/return", "loss": "train/loss"}
            shown = {short: row[name] for short, name in names.items() if name in row}
            progress.show(f"step {self.step:,}", **shown)
            self.meter.start_clock()
        if workspace.save_due() and self.step not in self.schedule.ends:
            self.save(workspace)

    def means(self, workspace: Workspace) -> dict[str, float]:
        """Means over the updates since the last row; an error if a loss is not finite."""
        return self.meter.means(f"in phase {self.phase}, by environment step {self.step}", workspace.path)

    def save(self, workspace: Workspace) -> None:
        """Checkpoint, and stop here if a signal has asked for it."""
        with self.meter.paused():
            self.means(workspace)
            with self.buffer.writing(workspace.path):
                workspace.save(self.state_dict())
            workspace.stop_if_asked()

    def evaluate(self) -> dict[str, float]:
        """The return of the policy without noise, in environments of its own."""
        return envs.evaluate(self.learner.act, self.evaluators, self.pool, self.cfg.seed, self.step)

    def probe(self, stream: str, count: int) -> tuple[Batch, Tensor]:
        """A fixed sample of the replay buffer as it is now, and noise for it."""
        source = generator(self.cfg.seed, stream, self.step)
        return self.buffer.sample(count, source), self.learner.noise(count, source)

    @torch.no_grad()
    def plasticity(self) -> dict[str, float | int]:
        """Plasticity of the critics and, as `actor_...`, of the actor on a sample of states of the replay buffer."""
        agent = self.learner.agent
        batch, _ = self.probe("probe", PROBE_STATES)
        states = self.learner.normaliser(batch.frames[:, 0])
        with fire.metrics.record_activations(agent.actor) as activations:
            features = agent.actor.encoder(states)
        of_actor = boundary.plasticity(agent.actor, self.scope, features, activations)
        with fire.metrics.record_activations(agent.critic) as activations:
            features = torch.cat(agent.critic.features(states, batch.actions).unbind(), 1)
        each = [member for stack in activations for member in stack.values.unbind()]
        row = boundary.plasticity(agent.critic, self.scope, features, each)
        row |= {name.replace("plasticity/", "plasticity/actor_"): value for name, value in of_actor.items()}
        return row

    def sharpness(self) -> dict[str, float]:
        """Sharpness of the critics' loss on a sample of the replay buffer; nothing where it is not asked for."""
        if self.cfg.sharpness == 0:
            return {}
        batch, noise = self.probe("sharpness", self.cfg.sharpness)
        return boundary.sharpness(self.learner.agent.critic, [partial(self.learner.critics_loss, batch, noise)])

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """Final numbers of a run."""
        return protocol.summarise(rows, self.cfg.task)


def finished_learner(cfg: DictConfig, runtime: config.Runtime, method: fire.Method, run_dir: Path) -> Learner:
    """The networks that a finished run has left."""
    weights = checkpoint.final_weights(run_dir)
    env = envs.make(cfg.task, cfg.env.backend, config.data_folder(cfg))
    kept = stored(env)
    agent = models.build(kept.frame[0], kept.action[0], cfg.budget, cfg.seed)
    learner = Learner(agent, kept.frame[0], kept.action[0], cfg, runtime)
    learner.restructure(method, dict(agent.state_dict()), config.build_scope(cfg.model.scope))
    learner.agent.load_state_dict(weights["agent"])
    learner.normaliser.load_state_dict(weights["normaliser"])
    return learner
