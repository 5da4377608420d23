"""How the jobs of a sweep run on one machine: `hydra/launcher=local`, the default of all domains."""

import itertools
import math
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from experiments.common import schema
from experiments.common.config import BaseConfig
from experiments.common.errors import UserError
from hydra_plugins.fire_experiments.parallel import Slot, run_parallel


class LocalLauncher(Launcher):
    """One job after the other in this process or, with `jobs` > 1, that many at once, each in another process.

    A job takes a free GPU; where there are more jobs than GPUs they share them. On the CPU each gets its share of the
    cores as its number of threads, unless `threads` gives another.
    """

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config
        self.task_function: Any = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra; names the outcomes by what differs between the jobs, also of a sweep that is stopped."""
        if not job_overrides:
            raise UserError("the sweep has no jobs")
        setup_globals()
        schema.check(BaseConfig, self.config)
        task = self.task_function
        earlier, task.outcomes = task.outcomes, []  # of earlier batches, with hydra.sweeper.max_batch_size
        outcomes: dict[int, dict[str, Any]] = {}
        try:
            if self.jobs == 1:
                return [self._run_here(words, initial_job_idx + i) for i, words in enumerate(job_overrides)]
            self._run_elsewhere(job_overrides, outcomes)
            return [
                JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=outcomes[number])
                for number, overrides in enumerate(job_overrides)
            ]
        finally:
            outcomes |= enumerate(task.outcomes)
            missing = {"run": "", "status": "not finished", "result": "", "minutes": "", "path": ""}
            everywhere = set.intersection(*map(set, job_overrides))
            for number, words in enumerate(job_overrides):
                name = " ".join(word for word in words if word not in everywhere)
                ended = outcomes.get(number, missing)
                earlier.append({**ended, "run": name or ended["run"]})
            task.outcomes = earlier

    def _run_here(self, words: Sequence[str], number: int) -> JobReturn:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(words))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        returned = run_job(
            hydra_context=self.hydra_context, task_function=self.task_function, config=config,
            job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir",
        )  # fmt: skip
        returned.return_value  # noqa: B018 - raises what a job has raised, which is its traceback with debug=true
        return returned

    def _run_elsewhere(self, job_overrides: Sequence[Sequence[str]], outcomes: dict[int, dict[str, Any]]) -> None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError(f"jobs={self.jobs} starts processes; use either torchrun or jobs")
        if len({word for job in job_overrides for word in job if word.startswith("device=")}) > 1:
            raise UserError(f"device cannot be swept over with jobs={self.jobs}; use jobs=1")
        slots, at_once, threads = places(self.config.device, self.jobs)
        # The command line's words to Hydra, such as hydra.searchpath, hold for the job's process too, but for those
        # about sweeps: a recipe given to the sweep makes no sweep there again.
        about_sweeps = re.compile(r"\+*hydra[./](mode|sweeper|launcher|sweep)\b")
        general = [word for word in self.config.hydra.overrides.hydra if not about_sweeps.match(word)]
        general += ["hydra.mode=RUN"] + ([] if self.config.threads else [f"threads={threads}"])  # a job's own win
        task = self.task_function
        later = schema.later_keys(task.domain.schema)
        run_parallel(task.domain.name, [[*general, *job] for job in job_overrides], later, slots, at_once, outcomes)


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
    slots = [
        Slot(f"{uuid}-{turn}", {"CUDA_VISIBLE_DEVICES": name}, ["device=cuda"])
        for turn in range(math.ceil(jobs / len(found)))
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
