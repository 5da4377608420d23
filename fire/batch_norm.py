"""Batch normalisation after a reset: running statistics of the new weights."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from .checks import check_module


@torch.no_grad()
def refresh_batch_norm(model: nn.Module, batches: Iterable[Any]) -> int:
    """Estimate the running statistics of batch normalisation again, as the average over some batches.

    After a reset they are still those of the old weights, so that in evaluation mode the network computes something
    that none of its weights mean. Training would mend this in some hundred steps.

    Args:
        model: the network, on the device of the batches. Only its running statistics change.
        batches: inputs, or tuples whose first part they are, of the data that it was trained on; at least one.

    Returns:
        How many layers of batch normalisation there are; of a network without one nothing is read.

    Raises:
        ValueError: no batch; nothing has changed then.
    """
    check_module(model)
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if layers:
        rest = iter(batches)
        try:
            first = next(rest)
        except StopIteration:
            raise ValueError("refresh_batch_norm needs at least one batch") from None
        update_bn(chain([first], rest), model)
    return len(layers)
