"""Several processes that train one run together, started by `torchrun`.

The main process, rank 0, owns the run's directory, the log and every decision. The others build the same experiment and
repeat each call of its `train` and `load_state_dict`.
"""

import atexit
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.common.domain import Prepare
from experiments.common.errors import Interrupted, StopSignals, UserError, default_signals

logger = logging.getLogger("fire")


class ProcessGroup:
    """The processes of a run, which may be a single one.

    Attributes:
        rank, world_size: this process's number and how many there are.
        is_main_process: whether this is rank 0.
    """

    def __init__(self, device: str) -> None:
        """
        Raises:
            UserError: there are more processes than GPUs.
        """
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        self.is_main_process = self.rank == 0
        self._control: Any = None
        if self.world_size == 1:
            return
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise UserError(f"WORLD_SIZE={self.world_size}, but {name} is not set; start the processes by torchrun")
        if self.rank >= self.world_size:
            raise UserError(f"RANK={self.rank} must be below WORLD_SIZE={self.world_size}")
        if device == "cuda":
            local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size)), torch.cuda.device_count()
            if local > gpus:
                raise UserError(f"{local} processes on a machine with {gpus} GPUs; one each is needed")
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        if not dist.is_initialized():  # once for all jobs of a sweep
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            logger.info("process %d of %d waits for the others at %s", self.rank, self.world_size, place)
            try:
                with default_signals():  # Python sees none while it waits
                    dist.init_process_group("nccl" if device == "cuda" else "gloo")
            except (RuntimeError, ValueError) as error:
                raise UserError(f"the processes cannot meet at {place}: {str(error).splitlines()[0]}") from error
            atexit.register(dist.destroy_process_group)  # whose threads may else abort the process when it ends
        # Decisions have a group on the CPU, so that they never wait for a GPU. Its timeout is long because the main
        # process may wait for a phase 0 that another job trains.
        self._control = dist.new_group(backend="gloo", timeout=timedelta(days=30))

    def broadcast(self, value: Any = None) -> Any:
        """The main process's `value`, in every process."""
        if self.world_size == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0, group=self._control)
        return shared[0]

    def on_main_process(self, action: Callable[[], Any]) -> Any:
        """Perform `action` in the main process; every process returns its result.

        Raises:
            UserError: what the action raised, in every process.
        """
        result, error = self.broadcast(_attempt(action) if self.is_main_process else None)
        if error is not None:
            raise error
        return result

    def on_every_process(self, action: Callable[[], Any]) -> Any:
        """Perform `action` in every process; each returns its own result.

        Raises:
            UserError: what the action raised, in every process, also where it succeeded.
        """
        result, error = _attempt(action)
        errors = [error] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(errors, error, group=self._control)
        if any(errors):
            raise error or next(filter(None, errors))
        return result

    def sum_(self, tensor: Tensor) -> None:
        """Add up the values of all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def mean_(self, tensor: Tensor) -> None:
        """Average the values of all processes, in place."""
        self.sum_(tensor)
        tensor /= self.world_size

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the main process's values, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def announce(self, method: str, *arguments: Any) -> None:
        """In the main process: make the others call this method of their experiment, too."""
        if self.is_main_process:
            self.broadcast((method, arguments))

    def carry_out(
        self, prepare: Prepare, carry_out: Callable[[Prepare], dict[str, Any]], stop: StopSignals
    ) -> dict[str, Any]:
        """Run one job in all processes: the main process by `carry_out`, the others by what it announces.

        An unexpected error ends the process that met it, and then torchrun ends the others.
        """
        if self.world_size == 1:
            return carry_out(prepare)
        try:
            if self.is_main_process:
                return self._lead(prepare, carry_out)
            with stop.deferred():
                return self._repeat(prepare)
        except (UserError, Interrupted):
            raise
        except BaseException:
            atexit.unregister(dist.destroy_process_group)  # it might wait for the others
            raise

    def _lead(self, prepare: Prepare, carry_out: Callable[[Prepare], dict[str, Any]]) -> dict[str, Any]:
        """The main process's part."""

        def prepare_everywhere() -> Any:
            self.announce("prepare")
            return prepare()

        try:
            ended = carry_out(prepare_everywhere)
        except (UserError, Interrupted) as stopped:
            self.announce("end", getattr(stopped, "signum", None))
            raise
        self.announce("end", None)
        return ended

    def _repeat(self, prepare: Prepare) -> dict[str, Any]:
        """Call what the main process announces, until the job ends."""
        experiment: Any = None
        while True:
            method, arguments = self.broadcast()
            if method == "end":
                if arguments[0] is not None:
                    raise Interrupted(arguments[0])
                return {"status": "done in another process"}
            with suppress(UserError, Interrupted):  # the main process meets and reports them, too
                if method == "prepare":
                    experiment = prepare()
                else:
                    getattr(experiment, method)(*arguments)


def _attempt(action: Callable[[], Any]) -> tuple[Any, UserError | None]:
    """The result of `action`, or the UserError it raised."""
    try:
        return action(), None
    except UserError as error:
        return None, error
