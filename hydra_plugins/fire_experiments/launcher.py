"""How the jobs of a sweep run on one machine: `hydra/launcher=local`, the default of all domains."""

import itertools
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus

from experiments.common.config import check_range
from experiments.common.errors import UserError
from experiments.common.parallel import Slot, run_parallel


class LocalLauncher(BasicLauncher):
    """One job after the other in this process or, with `jobs` > 1, that many at once, each in a process of its own.

    A job takes a free GPU; where there are more jobs than GPUs they share them. On the CPU each gets its share of the
    cores as its number of threads, unless `threads` says otherwise.
    """

    def __init__(self, jobs: int = 1) -> None:
        super().__init__()
        self.jobs = jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra."""
        assert self.config is not None
        check_range("jobs", self.jobs)
        if self.jobs == 1:
            return super().launch(job_overrides, initial_job_idx)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError(f"jobs={self.jobs} starts processes of its own; leave torchrun or jobs out")
        if len({word for job in job_overrides for word in job if word.startswith("device=")}) > 1:
            raise UserError(f"device cannot be swept over with jobs={self.jobs}; use jobs=1")
        slots, at_once, threads = places(self.config.device, self.jobs)
        # A recipe given to the sweep holds for the job's own process too, which makes no sweep of it again. What a
        # job's overrides say of threads comes later and wins.
        general = ["hydra.mode=RUN", *self._hydra_words()] + ([] if self.config.threads else [f"threads={threads}"])
        task: Any = self.task_function
        words = [[*general, *job] for job in job_overrides]
        outcomes = run_parallel(task.domain, words, slots, at_once, task.outcomes)
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=outcome)
            for overrides, outcome in zip(job_overrides, outcomes, strict=True)
        ]

    def _hydra_words(self) -> list[str]:
        """What the command line says to Hydra itself, such as hydra.searchpath, and is not about sweeps."""
        words = self.config.hydra.overrides.hydra  # type: ignore[union-attr]
        return [word for word in words if not re.match(r"\+*hydra[./](mode|sweeper|launcher|sweep)\b", word)]


def places(device: str, jobs: int) -> tuple[list[Slot], int, int]:
    """Where jobs may run, the places to be tried first coming first; how many run at once, which is `jobs` (0: one for
    each GPU or core); and with how many CPU threads each."""
    cores = torch.get_num_threads()
    found = gpus() if device != "cpu" else {}
    jobs = jobs or len(found) or cores
    threads = max(1, cores // jobs)
    if not found:
        return [Slot(f"cpu-{i}", {}, []) for i in range(jobs)], jobs, threads
    # All GPUs, however few jobs there are: those of another sweep may hold the first ones.
    turns = range(-(-jobs // len(found)))
    slots = [
        Slot(f"{uuid}-{turn}", {"CUDA_VISIBLE_DEVICES": name}, ["device=cuda"])
        for turn in turns
        for name, uuid in found.items()
    ]
    return slots, jobs, threads


def gpus() -> dict[str, str]:
    """The GPUs this process sees: names for CUDA_VISIBLE_DEVICES, and what they are called on the whole machine."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    words = [str(i) for i in range(count)] if visible is None else [word.strip() for word in visible.split(",")]
    # As CUDA does: what follows an invalid entry does not count.
    words = list(itertools.takewhile(lambda word: word and not word.startswith("-"), words))[:count]
    try:
        command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        uuids = dict(line.split(", ") for line in listed.splitlines())
    except (OSError, ValueError, subprocess.SubprocessError):
        uuids = {}
    return {word: uuids.get(word, f"cuda-{word}") for word in words}


@dataclass
class LocalLauncherConfig:
    """Its configuration."""

    _target_: str = "hydra_plugins.fire_experiments.launcher.LocalLauncher"
    jobs: int = "${jobs}"  # type: ignore[assignment]  # resolved by OmegaConf


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConfig, provider="fire")
