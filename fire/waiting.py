"""Waiting for a device once for what several computations need to know.

A computation that must know a result before it can go on is a generator: it yields the tensor, is sent its values on
the CPU, and returns its own result in the end. Several of them run side by side, and wait together.
"""

from collections.abc import Generator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from fire.gram import double

T = TypeVar("T")
Asking = Generator[Tensor, Tensor, T]
"""Yields tensors (size,), is sent their values, and returns a T."""


def answered(asking: Sequence[Asking[T]]) -> list[T]:
    """Run all of `asking` to their ends together, with one wait for the device for all that they ask at a time."""
    results: dict[int, T] = {}
    questions: dict[int, Tensor] = {}
    answers: dict[int, Tensor | None] = dict.fromkeys(range(len(asking)))
    while answers:
        for i, answer in answers.items():
            try:
                questions[i] = asking[i].send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                results[i] = end.value
        answers = dict(zip(questions, on_cpu(list(questions.values())), strict=True))
        questions.clear()
    return [results[i] for i in range(len(asking))]


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors (size,) on the CPU, those of one device, in float64, by one transfer."""
    known = list(tensors)
    for device in {tensor.device for tensor in tensors if tensor.device.type != "cpu"}:
        places = [i for i, tensor in enumerate(tensors) if tensor.device == device]
        # Those of one type first: joining different ones is an operation for each.
        types = {tensors[i].dtype for i in places}
        ordered = [[i for i in places if tensors[i].dtype == dtype] for dtype in types]
        joined = [double(torch.cat([tensors[i] for i in same])) for same in ordered]
        values = torch.cat(joined).cpu().split([tensors[i].numel() for same in ordered for i in same])
        for i, value in zip((i for same in ordered for i in same), values, strict=True):
            known[i] = value
    return known
