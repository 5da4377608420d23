"""High-replay-ratio DQN: the training loop.

Reproduces Figure 4(a) of the paper, section 4.3, on Asterix, Beam Rider and Demon Attack; final returns there on
Asterix: none 1271, shrink and perturb 1814, full reset 1846, plasticity injection 830, FIRE 2250 (5 seeds,
scale=paper). What a run is, and what is due when, is in `protocol`.

One step of all environments goes so: act with the network as it is, send the actions to the environments, learn from
what was stored before (on a GPU while they play), store what came of it. The lag of one step is always there, so
results do not depend on timing.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

import fire
from experiments.atari import envs, estimate, models, protocol
from experiments.atari.envs import STACK, STORED
from experiments.atari.learner import TOTALS, Learner
from experiments.atari.video import play
from experiments.common import boundary, checkpoint, config, replay, video
from experiments.common.device_replay import DeviceReplay
from experiments.common.errors import StopSignals, UserError
from experiments.common.job import END, carry_out
from experiments.common.meter import Meter
from experiments.common.metric_log import Row
from experiments.common.progress import Progress
from experiments.common.replay import Batch, ReplayBuffer
from experiments.common.seeding import generator, seed_everything
from experiments.common.workspace import Workspace

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

    def prepare() -> AtariTraining:
        training = AtariTraining(cfg, runtime, method)
        if cfg.scale == "paper":
            logger.info("%s", estimate.describe_cost(cfg, runtime))
        return training

    ended = carry_out(job, prepare, stop)
    if cfg.record_video and ended["status"] == "done before":
        video.record_once(
            lambda path: play_video(finished_learner(cfg, runtime, method, job.run_dir), cfg, path), job.run_dir
        )
    return {"run": job.name, **ended}


class AtariTraining:
    """The state of one run and the loop over its two phases.

    Environments cannot be saved. They are started afresh, from seeds of their own, every `restart_every` steps in every
    run; a checkpoint holds the actions since then, and whoever goes on from it has them played again. So a checkpoint
    can be taken between any two steps.
    """

    x_axis = "env_step"
    phases = 2
    branch, rewinds = END, False

    def __init__(self, cfg: DictConfig, runtime: config.Runtime, method: fire.Method) -> None:
        self.cfg, self.runtime, self.method = cfg, runtime, method
        self.outputs, self.schedule = Path(cfg.outputs_dir), protocol.Schedule(cfg)
        self.scope = config.build_scope(cfg.model.scope)
        count, budget = cfg.dqn.environments, cfg.budget
        capacity = min(budget.buffer, sum(budget.steps))
        frames_on = replay.place(STORED, capacity, runtime.device)
        seed_everything(cfg.seed)
        self.envs = envs.make(cfg.game, count)
        self.actions = int(self.envs.single_action_space.n)
        network = models.build(budget, self.actions, cfg.seed)
        boundary.check_scope(method, network, self.scope)
        self.initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        self.learner = Learner(network, cfg, runtime)
        # Where everything has room on the device, a step is two graphs and one copy each way.
        self.on_device: DeviceReplay | None = None
        if runtime.compile == "graphs" and frames_on == runtime.device:
            most = self.schedule.most_updates * self.schedule.batch_size
            self.on_device = DeviceReplay(STORED, capacity, count, runtime.device, most)
        self.buffer = self.on_device or ReplayBuffer(STORED, capacity, count, runtime.device, frames_on)
        self.no_actions = torch.zeros(count, dtype=torch.int64)
        self.exploration = generator(cfg.seed, "exploration")
        self.drawing = generator(cfg.seed, "replay")
        self.phase, self.step, self.entered = 0, 0, False
        self.observations: Tensor | None = None  # (environments, 4, 84, 84) uint8; None: to be played again
        self.played: list[Tensor] = []  # actions since the environments were started, at step `started`
        self.started = 0
        self.episodes = envs.Episodes(count)
        self.meter = Meter(self.learner.totals, TOTALS, losses=["loss"])
        # The frames of run and shared phase; weights, target and moments in six checkpoints.
        size = sum(tensor.numel() * tensor.element_size() for tensor in self.initial.values())
        self.disk_bytes = 2 * envs.bytes_on_disk(capacity) + 6 * 4 * size

    def state_dict(self) -> dict[str, Any]:
        """All a checkpoint needs; what the replay buffer holds must have been written."""
        return {
            **self.learner.state_dict(),
            "position": [self.phase, self.step, self.entered],
            "generators": [self.exploration.get_state(), self.drawing.get_state()],
            "played": torch.stack(self.played) if self.played else None,
            "started": self.started,
            "window": self.meter.state_dict(),
            "replay": self.buffer.state_dict(self.outputs),
        }

    def final_weights(self) -> dict[str, Any]:
        """Those of the Q-network."""
        return self.learner.online.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.phase, self.step, self.entered = state["position"]
        if self.phase == 1 and self.entered:
            self.learner.restructure(self.method, self.initial, self.scope)
        self.learner.load_state_dict(state)
        for rng, value in zip((self.exploration, self.drawing), state["generators"], strict=True):
            rng.set_state(value)
        self.played = [] if state["played"] is None else list(state["played"])
        self.started = state["started"]
        self.meter.load_state_dict(state["window"])
        self.observations = None
        self.buffer.load_state_dict(state["replay"], self.outputs)

    def train(self, workspace: Workspace, until_phase: int) -> None:
        """Train from the current position to the end of phase `until_phase - 1`."""
        for phase in range(self.phase, until_phase):
            end, length = self.schedule.ends[phase], self.cfg.budget.steps[phase]
            self.enter(workspace, phase)
            self.meter.start_clock()
            with Progress(f"phase {phase}", length, length - end + self.step, "steps") as progress:
                while self.step < end:
                    self.take_step()
                    progress.advance(self.schedule.environments)
                    self.finish_step(workspace, progress)
            self.phase, self.entered = phase + 1, False
        if self.phase < self.phases:
            self.buffer.write(workspace.path)  # for whoever saves the state next
        elif self.cfg.record_video:
            video.record(partial(play_video, self.learner, self.cfg), workspace.path)

    def enter(self, workspace: Workspace, phase: int) -> None:
        """Begin a phase, with a reset if it is not the first, or go on where a checkpoint was taken in it."""
        if not self.entered:
            if phase > 0:
                self.cross_boundary(workspace)
            self.restart_environments()
            self.entered = True
        elif self.observations is None:
            self.play_again()

    def cross_boundary(self, workspace: Workspace) -> None:
        """Reset the network and make the target network follow; Adam's moments stay, as the domain has it, except where
        a method brings new weights."""
        row: Row = {"phase": self.phase, "env_step": self.step}
        if before := self.sharpness():
            row["reset/sharpness_before"] = before["plasticity/sharpness"]
        row |= boundary.cross(self.method, self.learner.online, self.initial, self.scope)
        self.learner.follow()
        if self.cfg.optimizer_at_boundary == "reset":
            self.learner.new_optimizer()
        row |= self.evaluate() | self.plasticity() | self.sharpness()
        workspace.log.append(row)

    def restart_environments(self) -> None:
        """Start the environments afresh; the episodes that were going on are truncated, and count in no return."""
        self.started, self.played = self.step, []
        self.observations = self.first_observations()
        self.buffer.begin(self.observations[:, -1], True)

    def first_observations(self) -> Tensor:
        """What the environments show when they are started with the seeds of step `started`."""
        count = self.cfg.dqn.environments
        self.episodes = envs.Episodes(count)
        return torch.from_numpy(self.envs.reset(seed=envs.seeds(self.cfg.seed, "environment", self.started, count))[0])

    def play_again(self) -> None:
        """Bring the environments to where they were when the checkpoint was taken."""
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

    def take_step(self) -> None:
        """One step of all environments, and the updates that are due with it."""
        schedule, count = self.schedule, self.schedule.environments
        if self.step > self.started and schedule.restarts(self.step):
            self.restart_environments()
        epsilon, updates = schedule.epsilon(self.step), schedule.updates(self.step)
        greedy = self.greedy_actions(updates, epsilon)
        actions = envs.epsilon_greedy(greedy, self.actions, epsilon, self.exploration)
        self.envs.send(actions.numpy())
        # They play while a GPU learns; on a CPU both would only be in each other's way.
        came = self.envs.recv() if self.runtime.device == "cpu" else None
        if updates:
            self.learn(updates)
        stepped, rewards, terminated, truncated, _ = came or self.envs.recv()
        ended_before = torch.from_numpy(self.episodes.ended.copy())
        for _, total, length in self.episodes.step(rewards, terminated, truncated):
            self.meter.episode(total, length)
        self.observations = torch.from_numpy(stepped)
        self.buffer.complete(actions, torch.from_numpy(rewards), torch.from_numpy(terminated))
        self.buffer.begin(self.observations[:, -1], ended_before)
        self.played.append(actions.to(torch.uint8))
        self.step += count
        self.meter.advance(count, updates)
        if schedule.updates_target(self.step):
            self.learner.update_target()

    def greedy_actions(self, updates: int, epsilon: float) -> Tensor:
        """The actions of highest value, (environments,) int64. To a buffer on the device goes with the question what
        came of the last step, and what is drawn for `updates` after this one."""
        random = epsilon >= 1  # without the network where every action is random anyway
        if self.on_device is None:
            assert self.observations is not None
            return self.no_actions if random else self.learner.act(self.observations)
        if updates:
            self.on_device.draw(updates * self.schedule.batch_size, self.drawing)
        if not random:
            return self.learner.act_in(self.on_device)
        self.on_device.flush()
        return self.no_actions

    def learn(self, updates: int) -> None:
        """Updates on what was stored before this step."""
        count = updates * self.schedule.batch_size
        if self.on_device is None:
            self.learner.update(self.buffer.sample(count, self.drawing))
        else:
            self.learner.update_from(self.on_device, count)

    def finish_step(self, workspace: Workspace, progress: Progress) -> None:
        """Log, evaluate and checkpoint where that is due."""
        last = self.step in self.schedule.ends
        if self.schedule.logs(self.step):
            row: Row = {"phase": self.phase, "env_step": self.step, "train/epsilon": self.schedule.epsilon(self.step)}
            row |= self.meter.row(self.means(workspace))
            if self.schedule.evaluates(self.step):
                row |= self.evaluate()
            if last:
                row |= self.plasticity()
            workspace.log.append(row)
            names = {"return": "train/return", "eval": "eval/return", "loss": "train/loss"}
            shown = {short: row[name] for short, name in names.items() if name in row}
            progress.show(f"step {self.step:,}", **shown)
            self.meter.start_clock()
        if workspace.save_due() and not last:
            self.save(workspace)

    def means(self, workspace: Workspace) -> dict[str, float]:
        """Means over the updates since the last row; an error if the loss is not finite."""
        return self.meter.means(f"in phase {self.phase}, by step {self.step}", workspace.path)

    def save(self, workspace: Workspace) -> None:
        """Checkpoint, and stop here if a signal has asked for it."""
        with self.meter.paused():
            self.means(workspace)
            with self.buffer.writing(workspace.path):
                workspace.save(self.state_dict())
            workspace.stop_if_asked()

    def evaluate(self) -> dict[str, float]:
        """The return of the policy in environments of its own."""
        cfg = self.cfg
        steps, epsilon = cfg.budget.eval_steps, cfg.dqn.eval_epsilon
        return envs.evaluate(self.learner.act, cfg.game, cfg.dqn.environments, steps, epsilon, cfg.seed, self.step)

    def probe(self, stream: str, count: int) -> Batch:
        """A fixed sample of the replay buffer as it is at the boundary or the end of a phase."""
        return self.buffer.sample(count, generator(self.cfg.seed, stream, self.step))

    @torch.no_grad()
    def plasticity(self) -> dict[str, float | int]:
        """Plasticity of the network on a sample of states of the replay buffer."""
        states = self.probe("probe", PROBE_STATES).frames[:, :STACK]
        with fire.metrics.record_activations(self.learner.online) as activations:
            self.learner.online(states)
        return boundary.plasticity(self.learner.online, self.scope, activations[-1].values, activations)

    def sharpness(self) -> dict[str, float]:
        """Sharpness of the loss on a sample of the replay buffer; nothing where it is not asked for."""
        if self.cfg.sharpness == 0:
            return {}
        sample = self.probe("sharpness", self.cfg.sharpness)
        parts = list(sample.split(self.cfg.dqn.batch_size))
        # The last part may be smaller; every transition counts the same.
        weights = [len(part.actions) * len(parts) / len(sample.actions) for part in parts]
        losses = [partial(self.weighted_loss, part, weight) for part, weight in zip(parts, weights, strict=True)]
        return boundary.sharpness(self.learner.online, losses)

    def weighted_loss(self, batch: Batch, weight: float) -> Tensor:
        """`weight` times the mean loss of a batch."""
        return weight * self.learner.loss(batch)[0]

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """Final numbers of a run."""
        return protocol.summarise(rows, self.cfg.game)


def finished_learner(cfg: DictConfig, runtime: config.Runtime, method: fire.Method, run_dir: Path) -> Learner:
    """The Q-network that a finished run has left."""
    weights = checkpoint.final_weights(run_dir)
    network = models.build(cfg.budget, int(envs.make(cfg.game, 1).single_action_space.n), cfg.seed)
    method.restructure(network, dict(network.state_dict()), config.build_scope(cfg.model.scope))
    network.load_state_dict(weights)
    return Learner(network, cfg, runtime)


def play_video(learner: Learner, cfg: DictConfig, path: Path) -> float:
    """Play an episode and write its video; its return."""
    return play(learner.act, cfg.game, cfg.dqn.eval_epsilon, cfg.seed, path)
