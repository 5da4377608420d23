"""What the learners of all agents share: how their steps are executed, optimisers, target networks, checkpoints.

With compile=graphs, acting and updating are CUDA graphs, and where the replay buffer lies on the device a training step
is two graphs and one copy each way.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import fire
from experiments.common.cuda_graphs import UpdateGraphs
from experiments.common.runtime import Runtime
from experiments.rl import transfers
from experiments.rl.device_replay import DeviceReplay
from experiments.rl.replay import Batch
from experiments.rl.transfers import Field


def compiled(function: Callable[..., Any], runtime: Runtime) -> Callable[..., Any]:
    """A plain function as it is called in training: a method that a learner keeps would keep the learner, and its
    graphs, alive after their use."""
    return torch.compile(function) if runtime.compile == "true" else function


class Learner(ABC):
    """Everything that an update changes. A subclass ends its constructor with `new_optimizers()`.

    Attributes:
        TOTALS: the metrics that are summed over updates since the last row; the last is `updates`, their number.
        network: what acts and learns, and what methods change.
        target: the copy of it, or of a part, that the values of next states come from.
        optimizers: of the network, and of what else is learned.
        totals: the sums, float64, kept on the device so that no update waits for them.
    """

    TOTALS: ClassVar[tuple[str, ...]]
    optimizers: list[torch.optim.Optimizer]

    def __init__(self, network: nn.Module, runtime: Runtime, batch_size: int) -> None:
        """
        Args:
            network: with its initial weights; it is moved to the device.
            runtime: how to compute.
            batch_size: transitions of one step of the optimisers.
        """
        self.runtime, self.batch_size = runtime, batch_size
        self.network = network.to(runtime.device)
        self.target = deepcopy(self.source_of_target()).requires_grad_(False)
        self.totals = torch.zeros(len(self.TOTALS), dtype=torch.float64, device=runtime.device)
        self.during = fire.During()
        self._captured = runtime.compile == "graphs"
        self._graphs = UpdateGraphs()
        # Where graphs read observations, by their shape, and where the actions of training come back to.
        self._inputs: dict[tuple[int, ...], Tensor] = {}
        self._reply: Tensor | None = None

    @abstractmethod
    def source_of_target(self) -> nn.Module:
        """What `target` is a copy of."""

    @abstractmethod
    def make_optimizers(self, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
        """Optimisers with empty moments for the parameters that learn; `options` are those of fused and captured
        steps."""

    @abstractmethod
    def _update(self, given: Sequence[Tensor]) -> None:
        """A step of the optimisers for every `batch_size` transitions given. It neither waits for the device nor draws
        random numbers."""

    @abstractmethod
    def policy(self, observations: Tensor) -> Tensor:
        """The actions without exploration, on the device."""

    @abstractmethod
    def _act_in(self, buffer: DeviceReplay) -> Tensor:
        """Store what came in the buffer's parcel; the actions of training in the newest states, on the device."""

    @abstractmethod
    def _changed(self) -> list[Tensor]:
        """What `_update` changes besides the optimisers' moments, `totals` and what the method measures."""

    def fields(self, most: int) -> dict[str, Field]:
        """What travels in the parcel of a buffer on the device besides what the buffer needs, with updates on at most
        `most` transitions."""
        return {}

    def given(self, batch: Batch, generator: torch.Generator) -> Sequence[Tensor]:
        """What `update` is given of a batch; random numbers are drawn by a CPU generator."""
        return batch

    def _drawn(self, buffer: DeviceReplay, count: int) -> Sequence[Tensor]:
        """What `_update` is given, from a buffer on the device."""
        return buffer.drawn(count)

    def use(self, during: fire.During) -> None:
        """Let a method act during training from now on."""
        self.during = during
        self._graphs.forget()

    def new_optimizers(self) -> None:
        self.optimizers = self.make_optimizers({"fused": True, "capturable": self._captured})
        self._graphs.forget()

    def update(self, given: Sequence[Tensor]) -> None:
        """A step of the optimisers for every `batch_size` transitions; does not wait for the device.

        Args:
            given: tensors with the transitions in their first dimension.
        """
        if self._captured:
            self._graphs.run(self._update, given, self._all_changed, self.optimizers)
        else:
            self._update(given)
        self._after_steps(len(given[0]))

    def update_from(self, buffer: DeviceReplay, count: int) -> None:
        """`update` on the `count` transitions drawn in a buffer on the device, as one graph."""
        update = ("update", count)
        self._graphs.play(update, lambda: self._update(self._drawn(buffer, count)), self._all_changed, self.optimizers)
        self._after_steps(count)

    def _all_changed(self) -> list[Tensor]:
        return [*self._changed(), self.totals, *self.during.measured()]

    def _after_steps(self, transitions: int) -> None:
        """Let the method act after the steps of an update. They may be one graph, so it acts after the last of them, as
        often as there were steps: what it does every n steps keeps its period and comes a few steps late at most."""
        for _ in range(-(-transitions // self.batch_size)):
            self.during.after_step(*self.optimizers)

    def act(self, observations: Tensor) -> Tensor:
        """The actions without exploration, (batch, ...) on the CPU; waits for the device.

        Args:
            observations: (batch, ...), on the CPU.
        """
        device, shape = self.runtime.device, tuple(observations.shape)
        if not self._captured:
            return self.policy(observations.to(device, non_blocking=True)).cpu()
        if shape not in self._inputs:
            self._inputs[shape] = torch.empty_like(observations, device=device)
        there = self._inputs[shape]
        there.copy_(observations)
        return self._graphs.play(("act", *shape), lambda: self.policy(there)).to("cpu", copy=True)

    def act_in(self, buffer: DeviceReplay) -> Tensor:
        """The actions of training in the newest states of a buffer on the device: one copy there, one graph, one copy
        back, one wait. The next call overwrites what this one returned."""
        buffer.send()
        actions = self._graphs.play("act", lambda: self._act_in(buffer))
        if self._reply is None:
            self._reply = torch.empty(actions.shape, dtype=actions.dtype, pin_memory=actions.is_cuda)
        transfers.copy(self._reply, actions)
        if actions.is_cuda:
            torch.cuda.current_stream().synchronize()
        return self._reply

    def restructure(self, method: fire.Method, initial: Mapping[str, Tensor], scope: fire.Scope) -> None:
        """Give all networks the modules they have after the method's reset, and the optimisers their parameters."""
        method.restructure(self.network, initial, scope)
        self.follow()
        self.new_optimizers()

    def follow(self) -> None:
        """Make the target network a copy again; the reset may have given the network new modules."""
        source = self.source_of_target()
        if self.target.state_dict().keys() == source.state_dict().keys():
            self.target.load_state_dict(source.state_dict())
        else:
            self.target = deepcopy(source).requires_grad_(False)
            self._graphs.forget()

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.network.state_dict(),
            "target": self.target.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "totals": self.totals,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of networks with the same modules."""
        self.network.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.totals.copy_(state["totals"])
        self._graphs.forget()
