"""Memory: what is left of it, and whether a network can be trained in it."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

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


def check_network(construct: Callable[[], nn.Module]) -> None:
    """Raise UserError unless the network that `construct` makes can be trained in the memory that is left."""
    with torch.device("meta"):  # which takes none
        parameters = sum(parameter.numel() for parameter in construct().parameters())
    needed, free = BYTES_A_PARAMETER * parameters, available("cpu")
    if needed > free:
        raise UserError(
            f"a network of {parameters:,} parameters takes {needed / 1e9:,.0f} GB of memory to train, but this machine "
            f"has {free / 1e9:.1f} GB left; lower the sizes in budget"
        )
