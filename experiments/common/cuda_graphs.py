"""What a learner does at every step, as captured CUDA graphs: acting, and updates."""

import gc
from collections.abc import Callable, Hashable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3  # updates before a capture, so that all workspaces are allocated


class UpdateGraphs:
    """The graphs of a learner, by a key.

    A graph reads and writes the memory it was captured with: forget them when parameters, or the optimisers' moments,
    come to lie elsewhere.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, tuple[Callable[[], None], Any]] = {}

    def forget(self) -> None:
        """Capture again when an update, or anything else, is next needed."""
        self._graphs.clear()

    # The update is given every time: one that is kept here would keep its learner alive, in a circle.
    def run(
        self,
        update: Callable[[Sequence[Tensor]], None],
        given: Sequence[Tensor],
        changed: Callable[[], Sequence[Tensor]],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Do an update.

        Args:
            update: it, a function of the tensors given that neither waits for the device nor draws random numbers.
            given: tensors with one first dimension; there is a graph for each size of it.
            changed: what the update changes besides the optimisers' moments; called for a capture alone.
            optimizers: capturable ones, whose steps are part of it.
        """
        size = len(given[0])
        if size not in self._graphs:
            inputs = [tensor.clone() for tensor in given]
            self._graphs[size] = _capture(lambda: update(inputs), changed(), optimizers), inputs
        replay, inputs = self._graphs[size]
        for there, new in zip(inputs, given, strict=True):
            there.copy_(new, non_blocking=True)
        replay()

    def play(
        self,
        key: Hashable,
        function: Callable[[], Any],
        changed: Callable[[], Sequence[Tensor]] = list,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> Any:
        """Do what reads its input where it always lies.

        Args:
            key: of the graph.
            function: as the update of `run`, but of no argument; called for a capture alone, several times, which must
                change nothing that once would not, except what is named next.
            changed, optimizers: as of `run`.

        Returns:
            What `function` returned when it was captured; its tensors lie in one place and are written again every
            time.
        """
        if key not in self._graphs:
            returned: list[Any] = []
            replay = _capture(lambda: returned.append(function()), changed(), optimizers)
            self._graphs[key] = replay, returned[-1]
        replay, result = self._graphs[key]
        replay()
        return result


def _capture(
    update: Callable[[], None], changed: Sequence[Tensor], optimizers: Sequence[torch.optim.Optimizer]
) -> Callable[[], None]:
    """What replays the update, captured as one graph. What the warm-up has changed is put back, in place."""
    # Detached: a clone that autograd knows would tie the parameters' gradients to the stream of now.
    before = [tensor.detach().clone() for tensor in changed]
    moments = [deepcopy(optimizer.state_dict()["state"]) for optimizer in optimizers]
    warm_up(update)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)  # so that the gradients are of the graph's own memory
    replay = record(update)
    with torch.no_grad():
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
        for optimizer, kept in zip(optimizers, moments, strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for index, parameter in enumerate(parameters):
                for key, tensor in optimizer.state[parameter].items():
                    tensor.copy_(kept[index][key]) if index in kept else tensor.zero_()
    return replay


def warm_up(update: Callable[[], None]) -> None:
    """Run the update on another stream, as a capture demands, until all workspaces are allocated."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            update()
    torch.cuda.current_stream().wait_stream(stream)


def record(update: Callable[[], None]) -> Callable[[], None]:
    """Capture the update; what replays it."""
    gc.collect()  # a graph that is collected in the middle of another's capture would spoil it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    return graph.replay
