"""How the jobs of a sweep run on one machine: `hydra/launcher=local`, the default of all domains."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus

from experiments.common.errors import UserError
from experiments.common.parallel import Slot, run_parallel

MOST_JOBS = 1024


class LocalLauncher(BasicLauncher):
    """One job after the other in this process or, with `jobs` > 1, that many at once, each in a process of its own.

    A job takes a free GPU; where there are more jobs than GPUs they share them. On the CPU each gets its share of the
    cores as its number of threads, unless `threads` says otherwise.
    """

    def __init__(self, jobs: int = 1) -> None:
        super().__init__()
        if not 0 <= jobs <= MOST_JOBS:
            raise UserError(f"jobs={jobs} must lie in [0, {MOST_JOBS}]; 0 is one for each GPU or CPU core")
        self.jobs = jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra."""
        assert self.config is not None
        if self.jobs == 1:
            return super().launch(job_overrides, initial_job_idx)
        slots, threads = places(self.config.device, self.jobs)
        own = [] if self.config.threads else [f"threads={threads}"]
        # What is given to the sweep for each of its jobs holds for the job's own process too; a recipe makes no sweep
        # of it again.
        commands = [[*overrides, *own, "hydra.mode=RUN"] for overrides in job_overrides]
        outcomes = run_parallel(self.task_function.domain, commands, slots)  # type: ignore[union-attr]
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=outcome)
            for overrides, outcome in zip(job_overrides, outcomes, strict=True)
        ]


def places(device: str, jobs: int) -> tuple[list[Slot], int]:
    """Where `jobs` jobs run at once (0: one for each GPU or core), and with how many CPU threads each."""
    cores = torch.get_num_threads()
    count = torch.cuda.device_count() if device != "cpu" else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible and count else [str(i) for i in range(count)]
    jobs = jobs or len(gpus) or cores
    threads = max(1, cores // jobs)
    if not gpus:
        return [Slot(f"cpu-{i}", {}) for i in range(jobs)], threads
    rounds = [(gpu, i // len(gpus)) for i, gpu in zip(range(jobs), gpus * (jobs // len(gpus) + 1), strict=False)]
    return [Slot(f"cuda-{gpu}-{turn}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu, turn in rounds], threads


@dataclass
class LocalLauncherConfig:
    """Its configuration."""

    _target_: str = "hydra_plugins.fire_experiments.launcher.LocalLauncher"
    jobs: int = "${jobs}"  # type: ignore[assignment]  # resolved by OmegaConf


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConfig, provider="fire")
