"""Memory: what is left of it, and whether a network can be trained in it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.common.errors import UserError
from experiments.common.runtime import Runtime

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


def check_network(construct: Callable[[], nn.Module], forward: Callable[[Any], Any], runtime: Runtime) -> None:
    """Raise UserError unless the memory that is left is enough for the least that training a network takes: its
    parameters, and in the run's precision what its modules return, which the backward pass needs.

    Args:
        construct: makes the network.
        forward: calls it with the inputs of a training step.
        runtime: how it is trained.
    """
    outputs: dict[int, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[id(output)] = output  # once where it is changed in place

    try:
        with torch.device("meta"), torch.no_grad():  # which takes no memory
            network = construct()
            for module in network.modules():
                if not list(module.children()):
                    module.register_forward_hook(keep)
            parameters = sum(parameter.numel() for parameter in network.parameters())
            needed = BYTES_A_PARAMETER * parameters
            if runtime.compile == "false":  # what a compiled network keeps is not known
                forward(network)
    except Exception:  # what reads values cannot be made or called so, whatever it raises, and is not checked
        outputs.clear()
        return
    size = 2 if runtime.precision in ("bf16", "fp16") else 4
    batch = size * sum(output.numel() for output in outputs.values())
    if needed + batch > (free := available(runtime.device)):
        raise UserError(
            f"training takes at least {(needed + batch) / 1e9:,.0f} GB of memory, {batch / 1e9:,.0f} of them for a "
            f"batch, but {free / 1e9:.1f} GB are left on {runtime.device}; lower the sizes in budget"
        )
