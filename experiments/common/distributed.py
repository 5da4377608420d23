"""Several processes that train one run together, started by `torchrun`: one leads, the others follow.

The leader, rank 0, owns the run's directory, the log and the decisions; the followers build the same experiment and
repeat what it does. Decisions travel over a group of their own on the CPU, so that asking never waits for a GPU.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from experiments.common.errors import Interrupted, StopSignals, UserError
from experiments.common.job import Experiment
from experiments.common.metric_log import Row
from experiments.common.workspace import Workspace


class Team:
    """The processes of a run; a single one is a team too.

    Attributes:
        rank, size: this process's number and how many there are.
    """

    def __init__(self, device: str) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        self._control: Any = None
        if self.size == 1:
            return
        if device == "cuda":
            here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", self.size)), torch.cuda.device_count()
            if here > gpus:
                raise UserError(f"{here} processes on a machine with {gpus} GPUs; one each is needed")
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        if not dist.is_initialized():  # once for all jobs of a sweep
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        # A follower may wait as long as the leader does for a phase 0 that another job trains.
        self._control = dist.new_group(backend="gloo", timeout=timedelta(days=30))

    @property
    def leads(self) -> bool:
        """Whether this process is the leader."""
        return self.rank == 0

    def agree(self, value: Any = None) -> Any:
        """The leader's `value`, in every process."""
        if self.size == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0, group=self._control)
        return shared[0]

    def lead(self, action: Callable[[], Any]) -> None:
        """Let the leader act; if that fails, every process raises.

        Raises:
            UserError: what the leader's action raised.
        """
        problem = None
        if self.leads:
            try:
                action()
            except UserError as error:
                problem = error
        if message := self.agree(str(problem) if problem else None):
            raise problem or UserError(message)

    def every(self, action: Callable[[], Any]) -> Any:
        """What `action` returns; every process performs it, and if it fails in one, every process raises.

        Raises:
            UserError: what the action raised in the first process that failed.
        """
        result, problem = None, None
        try:
            result = action()
        except UserError as error:
            problem = error
        if self.size > 1:
            messages: list[str | None] = [None] * self.size
            dist.all_gather_object(messages, str(problem) if problem else None, group=self._control)
            if any(messages):
                raise problem or UserError(next(message for message in messages if message))
        elif problem:
            raise problem
        return result

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `values` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def copy_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the leader's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def parallel(self, model: nn.Module, call: Callable[..., Any]) -> Any:
        """What is called in training instead of `call`, which runs `model`: the same with averaged gradients."""
        if self.size == 1:
            return call
        device = next(model.parameters()).device
        return DistributedDataParallel(call, device_ids=[device.index] if device.type == "cuda" else None)


class Leader:
    """The leader's experiment, which tells the followers what to do before doing it itself."""

    def __init__(self, inner: Experiment, team: Team) -> None:
        self._inner, self._team = inner, team

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a checkpoint in every process."""
        self._team.agree(("load", state))
        self._inner.load_state_dict(state)

    def train(self, workspace: Workspace, until_phase: int) -> None:
        """Train in every process."""
        self._team.agree(("train", until_phase))
        self._inner.train(workspace, until_phase)


class _NoLog:
    def append(self, row: Row) -> None:
        """Followers log nothing."""


class Elsewhere:
    """A follower's workspace: the leader has the real one."""

    log = _NoLog()
    path = "the leader's directory"

    signal = None

    def save_due(self) -> bool:
        """The leader decides."""
        return False


def together(
    team: Team, prepare: Callable[[], Experiment], lead: Callable[[Callable[[], Experiment]], dict[str, Any]],
    stop: StopSignals,
) -> dict[str, Any]:  # fmt: skip
    """Run one job in all processes of a team: the leader by `lead`, which is given what prepares the experiment.

    An error that nobody foresaw is not passed on: the process that met it ends, and torchrun ends the others.
    """
    if team.size == 1:
        return lead(prepare)
    if not team.leads:
        with stop.deferred():
            return _follow(team, prepare)

    def prepare_all() -> Experiment:
        team.agree(("prepare", None))
        return Leader(prepare(), team)

    try:
        ended = lead(prepare_all)
    except Interrupted as interrupted:
        team.agree(("end", interrupted.exit_status - 128))
        raise
    except UserError:
        team.agree(("end", None))
        raise
    team.agree(("end", None))
    return ended


def _follow(team: Team, prepare: Callable[[], Experiment]) -> dict[str, Any]:
    experiment: Any = None
    while True:
        order, argument = team.agree()
        if order == "end":
            if argument is not None:
                raise Interrupted(argument)
            return {"status": "followed"}
        with suppress(UserError, Interrupted):  # which the leader meets too, and reports
            if order == "prepare":
                experiment = prepare()
            elif order == "load":
                experiment.load_state_dict(argument)
            elif order == "train":
                experiment.train(Elsewhere(), argument)
