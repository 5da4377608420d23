"""The state of an agent's training, and what both algorithms do around a step: phases, metric rows, checkpoints.

A domain's `train.py` has the loop, and what one step is.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

import fire
from experiments.common.config import outputs_folder
from experiments.common.errors import UserError
from experiments.common.experiment import Experiment
from experiments.common.metric_log import Row
from experiments.common.progress import Progress
from experiments.common.runtime import Runtime
from experiments.common.seeding import generator
from experiments.common.workspace import Workspace
from experiments.rl.device_replay import DeviceReplay
from experiments.rl.learner import Learner
from experiments.rl.meter import Meter
from experiments.rl.replay import Batch, ReplayBuffer, Stored, place
from experiments.rl.video import record

PROBE_STATES = 512  # of the replay buffer, that the plasticity metrics look at


class Schedule:
    """What is due at which step, in plain numbers, since the loop asks at every step.

    Attributes:
        ends: the step at which each phase ends.
        stride: steps that are counted at once.
        batch_size: transitions of an update.
        most_updates: that come with one stride, at most.
    """

    def __init__(self, budget: DictConfig, stride: int, unit: int, ratio: float, starts: int, batch_size: int) -> None:
        """
        Args:
            budget: with `steps`, `log_every` and `eval_every`.
            stride, batch_size: as above.
            unit, ratio: how many updates (`ratio`) come with how many steps (`unit`), on average.
            starts: the step of the first update.
        """
        self.ends = [budget.steps[0], sum(budget.steps)]
        self.stride, self.batch_size, self.most_updates = stride, batch_size, int(stride // unit * ratio) + 1
        self._unit, self._ratio, self._starts = unit, ratio, starts
        self._log, self._eval = budget.log_every, budget.eval_every

    def learns(self, step: int) -> bool:
        return step >= self._starts

    def updates(self, step: int) -> int:
        """How many updates come with the stride that begins at `step`."""
        if not self.learns(step):
            return 0
        before, after = step // self._unit, (step + self.stride) // self._unit
        return int(after * self._ratio) - int(before * self._ratio)

    def logs(self, step: int) -> bool:
        return step % self._log == 0 or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        return step % self._eval == 0 or step in self.ends


class AgentTraining(Experiment):
    """The state of one run over its two phases.

    Attributes:
        plasticity_at_evaluations: whether plasticity is measured at every evaluation, or at the end of a phase alone.
        target_always_follows: whether the target network becomes a copy at the boundary even if nothing is reset.
        step: environment steps so far, as the domain counts them.
        entered: whether the phase has begun.
        buffer: the replay buffer.
        on_device: the same, if it lies on the device and steps are captured: then a step is two graphs and one copy
            each way.
        exploration, drawing: generators of random actions and of what is drawn from the buffer.
        meter: what has happened since the last metric row.
    """

    x_axis = "env_step"
    no_data = "it needs data to come, which an agent collects itself, after the boundary"
    no_optimizer = "it is an optimiser, which the paper has in vision alone; agents train with their own"
    plasticity_at_evaluations: ClassVar[bool]
    target_always_follows: ClassVar[bool] = False
    learner: Learner
    schedule: Schedule

    def __init__(
        self, cfg: DictConfig, runtime: Runtime, method: fire.Method, network: nn.Module,
        make_learner: Callable[[], Learner], stored: Stored, environments: int, capacity: int,
    ) -> None:  # fmt: skip
        """
        Args:
            network: with its initial weights, on the CPU.
            make_learner: builds the learner around it; called when the initial weights have been copied.
            stored: what the replay buffer keeps of a step.
            environments: how many are stepped together.
            capacity: of the replay buffer, in transitions.

        Raises:
            UserError: the buffer does not fit, or the scope does not fit the network or the method.
        """
        frames_on = place(stored, capacity, runtime.device)
        super().__init__(cfg, runtime, method, network)
        self.learner = make_learner()
        self.begin_during(0)
        self.learner.use(self.during)
        self.on_device: DeviceReplay | None = None
        if runtime.compile == "graphs" and frames_on == runtime.device:
            most = self.schedule.most_updates * self.schedule.batch_size
            others = self.learner.fields(most)
            self.on_device = DeviceReplay(stored, capacity, environments, runtime.device, most, others)
        self.buffer = self.on_device or ReplayBuffer(stored, capacity, environments, runtime.device, frames_on)
        self.exploration, self.drawing = generator(cfg.seed, "exploration"), generator(cfg.seed, "replay")
        self.step, self.entered = 0, False
        self.meter = Meter()
        self.outputs = outputs_folder(cfg)
        # The buffer of run and shared phase; weights, target and moments in six checkpoints.
        size = sum(tensor.numel() * tensor.element_size() for tensor in self.initial.values())
        self.disk_bytes = 2 * capacity * stored.bytes // stored.compression + 6 * 4 * size

    @abstractmethod
    def take_step(self) -> None:
        """One step of training: act, learn, store; moves `step` on by the schedule's stride."""

    def learn(self, count: int) -> None:
        """Updates on `count` transitions of what was stored before this step."""
        if self.on_device is None:
            batch = self.buffer.sample(count, self.drawing)
            self.learner.update(self.learner.given(batch, self.drawing))
        else:
            self.learner.update_from(self.on_device, count)

    @abstractmethod
    def environment_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the environments and of what is played in them."""

    @abstractmethod
    def load_environment_state(self, state: dict[str, Any]) -> None:
        """Continue from that part of a checkpoint."""

    def restart_environments(self) -> None:
        """Called when a phase begins, for environments that are started again then."""

    @abstractmethod
    def video(self) -> tuple[Iterable[tuple[np.ndarray, float]], float]:
        """An episode of the finished run, and pictures a second at the speed of life, as `rl.video.record` takes
        them."""

    def final_weights(self) -> dict[str, Any]:
        return self.learner.network.state_dict()

    def load_final_weights(self, weights: dict[str, Any]) -> None:
        """Take what `final_weights` of a finished run has left."""
        self.learner.network.load_state_dict(weights)

    def training_metrics(self, updated: bool) -> Row:
        """Further metrics of a row; `updated`: whether there have been updates since the last."""
        return {}

    def position(self) -> int:
        return self.step

    def train(self, workspace: Workspace, until_phase: int) -> None:
        """Train from the current position to the end of phase `until_phase - 1`."""
        try:
            for phase in range(self.phase, until_phase):
                self.train_phase(workspace, phase)
        except FloatingPointError as error:  # of the simulation, in training or in an evaluation
            self.means(workspace)  # if the loss is not finite either, that is the reason
            raise UserError(
                f"{error}, at environment step {self.step} of phase {self.phase}; the last good checkpoint, if any, is "
                f"in {workspace.path}"
            ) from error

    def after_reset(self) -> None:
        """The target network follows, if the method changes something here, and optimisers start again if they should.
        Episodes continue, and so do statistics of observations: they are of the task, not of the network."""
        if self.target_always_follows or self.was_reset:
            self.learner.follow()
        if self.cfg.optimizer_at_boundary == "reset":
            self.learner.new_optimizers()
        self.learner.use(self.during)

    def state_dict(self) -> dict[str, Any]:
        """What the replay buffer holds must have been written."""
        return {
            **self.learner.state_dict(),
            **self.environment_state(),
            "during": self.during_state(),
            "position": [self.phase, self.step, self.entered],
            "generators": [self.exploration.get_state(), self.drawing.get_state()],
            "window": self.meter.window,
            "replay": self.buffer.state_dict(self.outputs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.phase, self.step, self.entered = state["position"]
        if self.phase == 1 and self.entered:
            self.learner.restructure(self.method, self.initial, self.scope)
        self.load_during(state["during"])
        self.learner.use(self.during)
        self.learner.load_state_dict(state)
        for rng, value in zip((self.exploration, self.drawing), state["generators"], strict=True):
            rng.set_state(value)
        self.meter.window = dict(state["window"])
        self.buffer.load_state_dict(state["replay"], self.outputs)
        self.load_environment_state(state)

    def train_phase(self, workspace: Workspace, phase: int) -> None:
        """Begin a phase, with a reset if it is not the first, or continue it, and train it to its end."""
        if not self.entered:
            if phase > 0:
                self.cross_boundary(workspace.log.append)
            self.restart_environments()
            self.entered = True
        end, length = self.schedule.ends[phase], self.cfg.budget.steps[phase]
        self.meter.start_clock()
        with Progress(f"phase {phase}", length, length - end + self.step, "steps") as progress:
            while self.step < end:
                self.take_step()
                progress.advance(self.schedule.stride)
                self.finish_step(workspace, progress)
        self.phase, self.entered = phase + 1, False
        if self.phase < self.phases:
            self.buffer.write(workspace.path)  # the caller saves the state next
        elif self.cfg.record_video:
            record(*self.video(), workspace.path)

    def finish_step(self, workspace: Workspace, progress: Progress) -> None:
        """Log, evaluate and checkpoint where that is due."""
        last = self.step in self.schedule.ends
        if self.schedule.logs(self.step):
            means = self.means(workspace)  # first, because the speed includes the updates that it waits for
            self.learner.totals.zero_()
            row: Row = {"phase": self.phase, "env_step": self.step, **self.meter.row()}
            row |= means | self.training_metrics(bool(means)) | self.during.metrics()
            evaluates = self.schedule.evaluates(self.step)
            if evaluates:
                row |= self.evaluate()
            if last or (evaluates and self.plasticity_at_evaluations):
                row |= self.plasticity()
            workspace.log.append(row)
            names = {"return": "train/return", "eval": "eval/return", "loss": "train/loss"}
            progress.show(f"step {self.step:,}", **{short: row[name] for short, name in names.items() if name in row})
            self.meter.start_clock()
        if workspace.save_due() and not last:
            self.save(workspace)

    def means(self, workspace: Workspace) -> dict[str, float]:
        """Means over the updates since the last row, if there were any; waits for the device.

        Raises:
            UserError: one is not finite; such a state is never to be saved.
        """
        *sums, updates = self.learner.totals.tolist()
        if not all(map(math.isfinite, sums)):
            raise UserError(
                f"the loss or gradient is not finite in phase {self.phase}, by step {self.step}; the last good "
                f"checkpoint, if any, is in {workspace.path}"
            )
        names = self.learner.TOTALS[:-1] if updates else ()
        return {name: total / updates for name, total in zip(names, sums, strict=False)}

    def save(self, workspace: Workspace) -> None:
        """Checkpoint, and stop here if a signal has asked for it."""
        with self.meter.paused():
            self.means(workspace)
            with self.buffer.writing(workspace.path):
                workspace.save(self.state_dict())
            workspace.stop_if_asked()

    def probe(self, stream: str, count: int) -> tuple[Batch, torch.Generator]:
        """A fixed sample of the replay buffer as it is now, and the generator that drew it."""
        source = generator(self.cfg.seed, stream, self.step)
        return self.buffer.sample(count, source), source
