"""The validation loss on fixed windows."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from experiments.common.runtime import Runtime
from experiments.language.distributed import ProcessGroup
from experiments.language.hardware import preferred_attention

EVAL_TOKENS = 16_384  # in one uncompiled forward pass


@torch.no_grad()
def validation_loss(
    model: nn.Module, compiled: Callable[[Tensor], Tensor], size: int, runtime: Runtime, group: ProcessGroup,
    windows: Tensor,
) -> float:  # fmt: skip
    """Mean loss of a token in windows, (count, block + 1), which the processes of `group` share out.

    A compiled network takes `size` windows at once, as in training, because it is compiled again for every other shape;
    those that are left over go through `model` itself.
    """
    block = windows.shape[1] - 1
    whole = len(windows) // size * size if runtime.compile == "true" else 0
    rest = max(1, EVAL_TOKENS // block)
    parts = [(compiled, windows[at : at + size]) for at in range(0, whole, size)]
    parts += [(model, windows[at : at + rest]) for at in range(whole, len(windows), rest)]
    total = torch.zeros((), dtype=torch.float64, device=windows.device)
    for call, part in parts[group.rank :: group.world_size]:
        with runtime.autocast, preferred_attention(runtime.device, block):
            total += call(part.long()).double() * len(part)
    group.sum_([total])
    return float(total) / len(windows)
