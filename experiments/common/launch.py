"""The command line of a domain: compose the configuration, run its jobs, print in plain lines what went wrong.

Nothing inside a job calls sys.exit. A job that fails is recorded and the sweep continues; the process ends non-zero
after the last one, with a table of what ran. Hydra's launcher decides where a job runs: in this process, in another one
on this machine (`hydra_plugins/fire_experiments`), or on a cluster.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from tabulate import tabulate

from experiments.common import words
from experiments.common.config import CONFIGS, register_schemas
from experiments.common.domain import Domain
from experiments.common.errors import Interrupted, StopSignals, UserError
from experiments.common.files import write_text
from experiments.common.provenance import command_line
from experiments.common.run import run

logger = logging.getLogger("fire")
# Warnings before the end of a job on a cluster. SLURM's SIGTERM may be part of a pre-emption or of a cancellation and
# does not say which; submitit ignores it, so a job that is then killed resumes from its last checkpoint.
CLUSTER_SIGNALS = tuple(signum for signum in StopSignals.SIGNALS if signum != signal.SIGTERM)

# The file in which a job of a sweep on this machine leaves how it ended. Where the variable is set, the process is one.
OUTCOME = "FIRE_OUTCOME"


def launch(domain: Domain) -> int:
    """Run the command line of `domain`; returns the exit status."""
    # Of the processes that torchrun starts the first prints and returns the status; the others print only what nobody
    # expects.
    is_main_process = not domain.several_processes or os.environ.get("RANK", "0") == "0"
    start_logging()
    register_schemas(domain.schema)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra's errors reach us instead of its own printing
    task = Task(domain)
    status = 0
    try:
        check_processes(domain)
        logger.setLevel(logging.INFO if is_main_process else logging.CRITICAL)
        sys.argv[1:] = words.checked(domain.name, sys.argv[1:])
        with task.stop:
            if OUTCOME in os.environ:
                stop_with_parent()
            hydra.main(version_base="1.3", config_path=str(CONFIGS / domain.name), config_name="config")(task)()
    except Interrupted as stopped:
        # Of several jobs the sweep prints how to resume.
        logger.info("stopped by %s%s", stopped, "" if OUTCOME in os.environ else f"; to resume: {command_line()}")
        status = stopped.exit_status
    except KeyboardInterrupt:
        logger.info("stopped without saving; to resume from the last checkpoint: %s", command_line())
        status = 130
    except Exception as error:  # of the words, of Hydra, or of a launcher; those of jobs are in their outcomes
        if "debug=true" in sys.argv:
            raise
        status = 2
        if isinstance(error, UserError):
            line = str(error)
        elif isinstance(error, HydraException | OmegaConfBaseException | OSError):
            line = words.composition_error(error, domain.schema)
        else:
            line = f"{type(error).__name__}: {error} (debug=true shows where)"
        logger.error("error: %s", words.one_line(line))
    failed = end(task.outcomes)
    return status or int(failed > 0) if is_main_process or status == 2 else 0


def check_processes(domain: Domain) -> None:
    """Raise UserError for variables of torchrun that would be ignored, or cannot be read."""
    for name, of_one in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        value = os.environ.get(name) or of_one
        if name in os.environ:
            os.environ[name] = value  # it may have been empty
        if not value.isdecimal():
            raise UserError(f"{name}={value} must be a whole number; torchrun sets it")
        if value != of_one and not domain.several_processes:
            raise UserError(f"{name}={value}, but {domain.name} trains in one process: start it without torchrun")


def stop_with_parent() -> None:
    """End this job as by SIGTERM when the process of its sweep dies."""

    def watch() -> None:
        os.read(0, 1)  # returns when the other end is closed; sys.stdin would be locked at the interpreter's end
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def end(outcomes: list[dict[str, Any]]) -> int:
    """Print how the jobs of a sweep ended; returns how many failed."""
    if outcomes and OUTCOME in os.environ:
        write_text(Path(os.environ[OUTCOME]), json.dumps(outcomes[-1]))
    failed = sum(outcome["status"] == "failed" for outcome in outcomes)
    if len(outcomes) > 1:
        columns = ("run", "status", "result", "minutes", "path")
        rows = [[outcome[column] for column in columns] for outcome in outcomes]
        logger.info("\n%s", tabulate(rows, headers=columns, disable_numparse=True))
        if failed:
            logger.error("error: %d of %d runs failed", failed, len(outcomes))
    return failed


class QuietStream(logging.StreamHandler):
    """Prints to standard output; once nobody reads it any more, or its disk is full, nothing, and the run continues."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by `logging` in the handler of an error."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
            return
        # Python flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def start_logging() -> None:
    """Print what is logged, plainly."""
    logger.setLevel(logging.INFO)
    logger.handlers = [QuietStream(sys.stdout)]
    logger.propagate = False


class Task:
    """What Hydra calls for each job, in this process or, having been pickled, in another one on a cluster.

    Attributes:
        domain: what is run.
        stop: asks jobs in this process to stop.
        outcomes: how each job ended.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain, self.stop = domain, StopSignals()
        self.outcomes: list[dict[str, Any]] = []
        self._argv = sys.argv

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "stop": None}  # a process has its own signals

    def __call__(self, cfg: DictConfig) -> dict[str, Any]:
        """Run one job and return how it ended."""
        if self.stop is None:
            return self._elsewhere(cfg)
        self.outcomes.append(_attempt(cfg, self.domain, self.stop))
        return self.outcomes[-1]

    def _elsewhere(self, cfg: DictConfig) -> dict[str, Any]:
        """Run a job in a process that a cluster has started.

        Raises:
            UserError: the job failed; so the sweep that has submitted it ends non-zero.
        """
        start_logging()
        sys.argv = self._argv
        try:
            with StopSignals(CLUSTER_SIGNALS) as stop:
                outcome = _attempt(cfg, self.domain, stop)
        except Interrupted as interrupted:
            # The state is saved; submitit's own handler of the signal puts the job back into the queue.
            handler = signal.getsignal(interrupted.signum)
            if callable(handler):
                handler(interrupted.signum, None)
            raise
        if outcome["status"] == "failed":
            raise UserError(f"{outcome['run']}: {outcome['result']}")
        return outcome


def _attempt(cfg: DictConfig, domain: Domain, stop: StopSignals) -> dict[str, Any]:
    """Run one job and return how it ended."""
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if in_sweep:
        logger.info("")
    started = time.perf_counter()
    outcome = {"run": f"{cfg.method.name}-s{cfg.seed}", "status": "failed", "result": "", "path": ""}
    try:
        stop.check()  # a signal that came in the last moments of the job before
        words.check_keys(cfg, domain.schema)
        # A sweep that was killed may still be saving, and another one may do the same.
        ended = run(domain, cfg, stop, wait=in_sweep or OUTCOME in os.environ)
        outcome.update({key: ended[key] for key in outcome if key in ended})
    except Exception as error:  # the sweep continues
        if cfg.debug:
            raise
        outcome["result"] = _report_failure(error)
    outcome["minutes"] = f"{(time.perf_counter() - started) / 60:.1f}"
    return outcome


def _report_failure(error: Exception) -> str:
    """Print an error of a job in one line; returns it."""
    expected = isinstance(error, UserError)
    line = words.one_line(str(error)) if expected else f"{type(error).__name__}: {words.one_line(str(error))}"
    notes = getattr(error, "__notes__", []) or ([] if expected else ["debug=true shows where"])
    level = logging.ERROR if expected else logging.CRITICAL
    logger.log(level, "error: %s%s", line, "".join(f" ({note})" for note in notes))
    if not expected and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # The other processes wait for this one in the middle of something; torchrun ends them once it is gone.
        sys.stdout.flush()
        os._exit(1)
    return line
