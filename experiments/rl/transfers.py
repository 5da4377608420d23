"""What goes between the CPU and a GPU in a training step: one copy each way, from and to memory that is kept.

Memory is pinned, so that a copy runs beside the CPU. On the CPU, where tests run it, the same is an ordinary copy.
"""

import math
from collections.abc import Mapping
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 16  # bytes between the beginnings of fields, so that every type can be read where its field begins

Field = tuple[tuple[int, ...], torch.dtype]  # shape and type


def copy(there: Tensor, here: Tensor) -> None:
    """Copy between CPU and GPU without waiting. All copies of a training step go through here, where they are counted
    in tests."""
    there.copy_(here, non_blocking=True)


def to(tensor: Tensor, device: str) -> Tensor:
    """On `device`, without waiting for the copy."""
    if tensor.device.type == device:
        return tensor
    there = torch.empty_like(tensor, device=device)
    copy(there, tensor.pin_memory())
    return there


class Parcel:
    """Named tensors that travel to the device as one copy.

    Attributes:
        there: the tensors on the device, as they were when the parcel was last sent; always in one place, so that
            captured graphs can read them.
    """

    def __init__(self, fields: Mapping[str, Field], device: str) -> None:
        """
        Args:
            fields: shape and type of each tensor.
            device: where they go.
        """
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in fields.values()]
        ends = [0, *accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]
        self._bytes_here = torch.zeros(ends[-1], dtype=torch.uint8, pin_memory=device == "cuda")
        self._bytes_there = torch.zeros(ends[-1], dtype=torch.uint8, device=device)

        def views(whole: Tensor) -> dict[str, Tensor]:
            return {
                name: whole[at : at + size].view(dtype).view(shape)
                for (name, (shape, dtype)), at, size in zip(fields.items(), ends, sizes, strict=False)
            }

        self.there = views(self._bytes_there)
        self._here = {name: tensor.numpy() for name, tensor in views(self._bytes_here).items()}
        self._sent = torch.cuda.Event() if device == "cuda" else None
        self._on_its_way = False

    def open(self) -> dict[str, np.ndarray]:
        """The same tensors on the CPU, to be written. Waits until the last copy has read them: what is written earlier
        might still get into it. A step that has waited for its action since then does not wait here."""
        if self._on_its_way:
            if self._sent is not None:
                self._sent.synchronize()
            self._on_its_way = False
        return self._here

    def send(self) -> None:
        """Copy everything to the device, after all that the device was given to do before."""
        copy(self._bytes_there, self._bytes_here)
        if self._sent is not None:
            self._sent.record()
        self._on_its_way = True
