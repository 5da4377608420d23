"""Graphs on the CPU, where a tape stands in for a CUDA graph."""

import pytest
import torch
from torch import Tensor

from experiments.common.cuda_graphs import UpdateGraphs
from tests.tape import Tape, launches


def test_tape_repeats_operations_on_their_memory(taped: list[Tape]) -> None:
    weight, rate = torch.ones(3), 1.0

    def update(given: list[Tensor]) -> None:
        weight.add_(given[0] * 2, alpha=rate)

    graphs = UpdateGraphs()
    graphs.run(update, [torch.ones(3)], lambda: [weight], [])
    assert weight.tolist() == [3, 3, 3]  # once, whatever the capture took
    rate = 5.0  # a graph keeps the number it was captured with
    graphs.run(update, [torch.full((3,), 2.0)], lambda: [weight], [])
    assert weight.tolist() == [7, 7, 7]
    assert len(taped) == 1
    assert sum(taped[0].launches.values()) == 2


def test_what_waits_for_the_device_cannot_be_captured(taped: list[Tape]) -> None:
    with pytest.raises(RuntimeError, match="waits for the device"):
        UpdateGraphs().run(lambda given: print(given[0].sum().item()), [torch.ones(2)], list, [])


def test_launches_are_counted_without_views() -> None:
    counted = launches(lambda: (torch.ones(4, 4).view(2, 8).T @ torch.ones(2, 8)).add_(1))
    assert counted["aten.mm.default"] == 1
    assert sum(counted.values()) == 4
