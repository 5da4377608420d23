"""Where the numbers of a run come from: the command, the commit, the versions, the machine, the recipes."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from experiments.common.config import method_settings
from experiments.common.files import write_text

PARTS = ("git", "versions", "machine")  # what can differ between parts of a job's training
PACKAGES = ("torch", "numpy", "hydra-core", "fire-reinit")


def circumstances(device: str) -> dict[str, Any]:
    """What a run directory records of a process that trains on `device`."""
    return {
        "command": command_line(),
        "method_settings": method_settings(),
        "git": git_revision(),
        "machine": machine(device),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def command_line() -> str:
    """The command as a user would type it again."""
    module = Path(sys.argv[0]).parent.name
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    python = "python" if processes == "1" else f"torchrun --nproc-per-node={processes}"
    return f"{python} -m experiments.{module} {shlex.join(sys.argv[1:])}".strip()


def git_revision() -> str:
    """The commit of the source tree, with `+changes` if a tracked file differs; `unknown` outside a checkout."""
    describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    git = ["git", "-C", str(Path(__file__).parent), *describe]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(device: str) -> str:
    """What numbers on `device` are computed on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text("utf-8").splitlines() if cpu.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def note_recipe(run_dir: Path) -> None:
    """Record in a run's directory the recipe that has asked for it, if one has, with the sweep that the recipe makes:
    `recipes/<name>.json`, by which the report groups runs."""
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    recipe = hydra.runtime.choices.get("experiment")
    if recipe and recipe != "null":
        sweep: Any = OmegaConf.to_container(hydra.sweeper.params or OmegaConf.create())
        (run_dir / "recipes").mkdir(exist_ok=True)
        write_text(run_dir / "recipes" / f"{recipe}.json", json.dumps(sweep) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
