"""How much memory there is for something large."""

import os
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")  # version 2, of a container
MEMINFO = Path("/proc/meminfo")


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
