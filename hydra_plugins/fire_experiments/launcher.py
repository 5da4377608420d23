"""How the jobs of a sweep run on one machine: `hydra/launcher=local`, the default of all domains."""

import itertools
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
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
        self.hydra_context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra; names the outcomes by what differs between the jobs, also of a sweep that is stopped."""
        setup_globals()
        schema.check(BaseConfig, self.config)
        task: Any = self.task
        earlier, task.outcomes = task.outcomes, []  # of earlier batches, with hydra.sweeper.max_batch_size
        try:
            if self.jobs == 1:
                return [self._run_here(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
            outcomes = self._run_elsewhere(job_overrides)
            return [
                JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=outcome)
                for overrides, outcome in zip(job_overrides, outcomes, strict=True)
            ]
        finally:
            ended = {outcome.get("number", place): outcome for place, outcome in enumerate(task.outcomes)}
            missing = {"run": "", "status": "not finished", "result": "", "minutes": "", "path": ""}
            known = [ended.get(number, missing) for number in range(len(job_overrides))]
            names = differing_words(job_overrides)
            named = [{**one, "run": name or one["run"]} for one, name in zip(known, names, strict=True)]
            task.outcomes = earlier + named

    def _run_here(self, overrides: Sequence[str], number: int) -> JobReturn:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        returned = run_job(
            hydra_context=self.hydra_context, task_function=self.task, config=config,
            job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir",
        )  # fmt: skip
        returned.return_value  # noqa: B018 - raises what a job has raised, such as Interrupted
        return returned

    def _run_elsewhere(self, job_overrides: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError(f"jobs={self.jobs} starts processes; use either torchrun or jobs")
        if len({word for job in job_overrides for word in job if word.startswith("device=")}) > 1:
            raise UserError(f"device cannot be swept over with jobs={self.jobs}; use jobs=1")
        slots, at_once, threads = places(self.config.device, self.jobs)
        # A recipe given to the sweep holds for the job's process too, which makes no sweep of it again. A job's own
        # words about threads come later and win.
        general = ["hydra.mode=RUN", *self._hydra_words()] + ([] if self.config.threads else [f"threads={threads}"])
        words = [[*general, *job] for job in job_overrides]
        task: Any = self.task
        later = schema.later_keys(task.domain.schema)
        return run_parallel(task.domain.name, words, later, slots, at_once, task.outcomes)

    def _hydra_words(self) -> list[str]:
        """The command line's words to Hydra, such as hydra.searchpath, that are not about sweeps."""
        words = self.config.hydra.overrides.hydra
        return [word for word in words if not re.match(r"\+*hydra[./](mode|sweeper|launcher|sweep)\b", word)]


def differing_words(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Of each job the words that not all jobs have."""
    different = [word for word in dict.fromkeys(itertools.chain(*jobs)) if any(word not in job for job in jobs)]
    return [" ".join(word for word in job if word in different) for job in jobs]


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
