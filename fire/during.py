"""What a method does while a network trains, as opposed to at a boundary.

A training loop makes one `During` a phase, adds `penalty()` to its loss, calls `after_step(optimizer)` after every step
of the optimiser, and keeps `state_dict()` in its checkpoints.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class During:
    """What a method does while a network trains on one phase. This base does nothing."""

    def penalty(self) -> Tensor | None:
        """A scalar to add to the loss, differentiable; None for no penalty. It may be called while a CUDA graph is
        captured, so it neither waits for the device nor draws random numbers."""
        return None

    def after_step(self, *optimizers: torch.optim.Optimizer) -> None:
        """Change the network in place after a step of its optimisers, and their moments. Never part of a captured
        graph."""

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, counted since the last call."""
        return {}

    def measured(self) -> Sequence[Tensor]:
        """Tensors that forward passes overwrite in place. A captured update changes them; training in parallel
        averages them over its processes where `is_due`."""
        return ()

    def is_due(self) -> bool:
        """Whether the next `after_step` will read `measured`."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, of types that torch.load(weights_only=True) accepts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""

    def close(self) -> None:
        """Remove the hooks from the network."""
