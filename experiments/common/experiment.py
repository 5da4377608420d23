"""The state of a run, and the boundary between two phases.

    phase 0 --boundary--> phase 1 --boundary--> ...

A domain's training loop is in its `train.py`. What all domains do alike at a boundary is in `cross_boundary`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.common import plasticity
from experiments.common.config import build_scope
from experiments.common.errors import UserError
from experiments.common.metric_log import Row
from experiments.common.runtime import Runtime
from experiments.common.seeding import derive
from experiments.common.workspace import Workspace

logger = logging.getLogger("fire")
END = "end"  # the branch point at the end of phase 0


class Experiment(ABC):
    """What a domain implements.

    Attributes:
        x_axis: the key of its rows that counts training from the run's start.
        phases: how many there are.
        phase: the one that the state is in.
        during: what the method does during training in this phase.
        was_reset: whether the method has changed the network at the last boundary.
        initial: the network's first weights, which resets go back to: a function of the seed, in no checkpoint.
        branch: the kept checkpoint of phase 0 that the methods continue from. If it is END, the end of the phase, it is
            kept by the caller; any other the domain keeps itself, and trains phase 0 no further than it must.
        rewinds: whether phase 0 may have to be trained beyond the branch point, to know that it is one.
        disk_bytes: what its checkpoints take at most, roughly, in the run and in the shared phase.
        alone: whether one process trains the run. Of several, none may leave while the others wait for it.
        at_once: context in which a signal ends the run at once, back at its last checkpoint.
        no_data: why a method cannot have batches of the data to come; empty where `upcoming` gives them.
        no_optimizer: why a method cannot bring its own optimiser; empty where the loop trains by `optimizer_for`.
    """

    x_axis: ClassVar[str]
    no_data: ClassVar[str] = "it needs batches of the data to come, which this domain does not give"
    no_optimizer: ClassVar[str] = "it is an optimiser, and this domain trains with its own"
    phases: int = 2
    branch: str = END
    rewinds: bool = False
    disk_bytes: int
    alone: bool = True
    at_once: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init__(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, network: nn.Module) -> None:
        """`network`: with its initial weights, on the CPU.

        Raises:
            UserError: a scope that does not fit the network or the method.
        """
        self.cfg, self.runtime, self.method, self.network = cfg, runtime, method, network
        for needed, why in ((method.needs_data, self.no_data), (method.has_optimizer, self.no_optimizer)):
            if needed and why:
                raise UserError(f"method={cfg.method.name}: {why}")
        try:
            self.scope = build_scope(cfg.model.scope)
            method.check(network, self.scope)
        except (TypeError, ValueError) as error:
            raise UserError(f"model.scope: {error}") from error
        if isinstance(method, fire.TrainingMethod) and method.first_phase >= self.phases:
            raise UserError(f"method.first_phase={method.first_phase} lies beyond the run's {self.phases} phases")
        self.initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        self.phase = self._phase_of_during = 0
        self.during = fire.During()
        self.was_reset = False

    @abstractmethod
    def position(self) -> int:
        """The value of `x_axis` now."""

    @abstractmethod
    def train(self, workspace: Workspace, until_phase: int) -> None:
        """Train from the current state to the end of phase `until_phase - 1`, of phase 0 to where `branch` is settled,
        saving into the workspace."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything `load_state_dict` needs."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""

    def final_weights(self) -> dict[str, Any] | None:
        """What a finished run leaves behind, if anything."""
        return None

    @abstractmethod
    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """The final numbers of a run from its metric rows; `result` is the one in words."""

    @abstractmethod
    def after_reset(self) -> None:
        """What follows a reset of the network: optimisers, as `optimizer_at_boundary` says, and target networks; the
        training loop uses `during` from here on."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """The metrics of an evaluation."""

    @abstractmethod
    def plasticity(self) -> dict[str, float | int]:
        """The plasticity metrics of the network."""

    @abstractmethod
    def sharpness_parts(self) -> tuple[nn.Module, Callable[[Any], Tensor], Sequence[Any]]:
        """A module, its loss without autocast, and fixed batches, of the phase that begins, of `sharpness` samples in
        all."""

    def upcoming(self) -> tuple[Iterable[Any], Callable[[Any], Tensor]]:
        """All data of the phase that begins, once, in batches, for a method that needs them, and their loss without
        autocast. A domain that implements it sets `no_data` to an empty text."""
        raise UserError(f"method={self.cfg.method.name}: {self.no_data}")

    def optimizer_for(self, plain: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """What trains in the phase of `during`: `plain`, new, or in its place what the method brings."""
        if not self.method.acts_in(self._phase_of_during):
            return plain
        return self.method.optimizer(plain, self.network, self.scope)

    def sharpness(self) -> dict[str, float]:
        """The sharpness of the loss on fixed samples; nothing where it is not asked for."""
        return plasticity.sharpness(*self.sharpness_parts()) if self.cfg.sharpness else {}

    def cross_boundary(self, append: Callable[[Row], None]) -> None:
        """Reset the network before phase `self.phase`, and log what that did.

        Args:
            append: writes the row.

        Raises:
            UserError: a pattern of the scope that matches nothing, or a weight that is not finite.
        """
        with self.at_once():  # many steps, or sharpness on many samples, may take hours
            append(self._reset())

    def _reset(self) -> Row:
        row: Row = {"phase": self.phase, self.x_axis: self.position()}
        if before := self.sharpness():
            row["reset/sharpness_before"] = before["plasticity/sharpness"]
        try:
            data, loss = self.upcoming() if self.method.needs_data else (None, None)
            report = self.method.reset(self.network, self.initial, self.scope, data, loss)
        except ValueError as error:
            raise UserError(f"method={self.cfg.method.name}: {error}") from error
        if report.touched:
            logger.info(
                "reset %s: SFE %.4g, DfI %.4g -> %.4g, %d tensors, %.2f s",
                self.cfg.method.name, report.sfe, report.dfi_before, report.dfi_after, report.touched, report.seconds,
            )  # fmt: skip
        else:
            when = ", it acts during training" if self.method.acts_in(self.phase) else ""
            logger.info("reset %s: no weight changed%s", self.cfg.method.name, when)
        self.was_reset = report.touched > 0 or self.method.resets_optimizer
        row |= plasticity.of_reset(report)
        self.begin_during(self.phase)
        self.after_reset()
        return row | self.evaluate() | self.plasticity() | self.sharpness()

    def begin_during(self, phase: int) -> None:
        """Make what the method does during training in `phase`."""
        self.during.close()
        self.during, self._phase_of_during = fire.During(), phase
        if self.method.acts_in(phase):
            seed = derive(self.cfg.seed, "method", phase)
            self.during = self.method.during(self.network, self.initial, self.scope, seed)
        if self.during.measured() and self.runtime.compile != "false":
            torch.compiler.reset()  # what was compiled before has no hooks

    def during_state(self) -> list[Any]:
        """The method's part of a checkpoint."""
        return [self._phase_of_during, self.during.state_dict()]

    def load_during(self, state: list[Any]) -> None:
        """Continue from that part. A checkpoint at a phase's end, which methods continue from, is of that phase."""
        phase, content = state
        self.begin_during(phase)
        self.during.load_state_dict(content)


def with_penalty(loss: Tensor, during: fire.During) -> Tensor:
    """The loss that a training step descends."""
    penalty = during.penalty()
    return loss if penalty is None else loss + penalty
