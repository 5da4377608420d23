"""Memory: what is left of it, and whether a network can be trained in it."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.common.errors import UserError

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
# Of a parameter in training: itself, its gradient, Adam's two means, its initial value and a copy that is being saved.
BYTES_A_PARAMETER = 6 * 4


def available(device: str) -> int:
    """Bytes that can still be taken on `device`, cpu or cuda; on the CPU within the limit of a container."""
    if device == "cuda":
        # What PyTorch holds but does not use is free to it too.
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    if not MEMINFO.exists():  # not Linux: what the machine has
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    if (CGROUP / "memory.max").exists() and (limit := (CGROUP / "memory.max").read_text().strip()) != "max":
        used = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, int(limit) - int(used["anon"]))  # files in its cache can be dropped
    return max(free, 0)


def check_network(construct: Callable[[], nn.Module], forward: Callable[[Any], Any], device: str) -> None:
    """Raise UserError unless a network can be trained in the memory that is left.

    Args:
        construct: makes the network.
        forward: calls it with the inputs of a training step; what its modules return is kept for the backward pass.
        device: cpu or cuda.
    """
    outputs = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal outputs
        outputs += output.nbytes if isinstance(output, Tensor) else 0

    with torch.device("meta"), torch.no_grad():  # which takes no memory
        network = construct()
        for module in network.modules():
            if not list(module.children()):
                module.register_forward_hook(count)
        with suppress(RuntimeError, NotImplementedError):  # what reads values cannot be called so
            forward(network)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    needed, free = BYTES_A_PARAMETER * parameters + outputs, available(device)
    if needed > free:
        raise UserError(
            f"training takes about {needed / 1e9:,.0f} GB of memory, {outputs / 1e9:,.0f} of them for a batch, but "
            f"{free / 1e9:.1f} GB are left on {device}; lower the sizes in budget"
        )
