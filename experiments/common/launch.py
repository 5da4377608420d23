"""The command line of a domain: compose the configuration, run its jobs, say in plain lines what went wrong.

Nothing inside a job calls sys.exit. A job that fails is recorded and the sweep goes on; the process ends non-zero
after the last one, with a table of what ran. Where a job runs is Hydra's launcher's affair: in this process, in one of
its own (`hydra_plugins/fire_experiments`), or on a cluster.
"""

import difflib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from tabulate import tabulate

from experiments.common import parallel
from experiments.common.config import CONFIGS, BaseConfig, register_schemas
from experiments.common.errors import Interrupted, StopSignals, UserError
from experiments.common.workspace import command_line

logger = logging.getLogger("fire")
# Warnings before the end of a job on a cluster. SLURM's SIGTERM may be part of a pre-emption or of a cancellation and
# does not say which; submitit ignores it, so a job that is then killed resumes from its last checkpoint.
CLUSTER_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
RunJob = Callable[[DictConfig, StopSignals], dict[str, Any]]


def launch(domain: str, schema: type[BaseConfig], run_job: RunJob) -> int:
    """Run the command line of `domain`; returns the exit status."""
    # Of the processes that torchrun starts one speaks, and says how it ended; the others only what nobody expects.
    follows = int(os.environ.get("RANK", 0)) > 0
    start_logging(logging.CRITICAL if follows else logging.INFO)
    register_schemas(schema)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra's errors reach us instead of its own printing
    task = Task(domain, schema, run_job)
    status = 0
    try:
        with task.stop:
            if parallel.is_job():
                parallel.stop_with_parent()
            hydra.main(version_base="1.3", config_path=str(CONFIGS / domain), config_name="config")(task)()
    except Interrupted as stopped:
        # Of several jobs it is the sweep that says how to go on.
        logger.info("stopped by %s%s", stopped, "" if parallel.is_job() else f"; to go on: {command_line()}")
        status = stopped.exit_status
    except KeyboardInterrupt:
        logger.info("stopped without saving; to go on from the last checkpoint: %s", command_line())
        status = 130
    except (HydraException, OmegaConfBaseException) as error:
        if "debug=true" in sys.argv:
            raise
        logger.error("error: %s", composition_error(error, schema))
        return 2
    except UserError as error:
        logger.error("error: %s", error)
        return 2
    except OSError as error:  # Hydra's own folder cannot be made
        logger.error("error: outputs_dir cannot be used: %s", error)
        return 2
    outcomes = task.outcomes
    if parallel.is_job() and outcomes:
        parallel.leave_outcome(outcomes[-1])
    if len(outcomes) > 1:
        columns = ("run", "status", "result", "minutes", "path")
        logger.info(
            "\n%s", tabulate([[o[c] for c in columns] for o in outcomes], headers=columns, disable_numparse=True)
        )
    failed = sum(o["status"] == "failed" for o in outcomes)
    if failed and len(outcomes) > 1:
        logger.error("error: %d of %d runs failed", failed, len(outcomes))
    return 0 if follows else status or int(failed > 0)


def start_logging(level: int = logging.INFO) -> None:
    """Print what is logged, plainly."""
    logger.setLevel(level)
    logger.handlers = [logging.StreamHandler(sys.stdout)]
    logger.propagate = False


class Task:
    """What Hydra calls for each job, in this process or, having been pickled, in another one on a cluster.

    Attributes:
        domain: its name.
        stop: asks jobs in this process to stop.
        outcomes: how each job ended.
    """

    def __init__(self, domain: str, schema: type[BaseConfig], run_job: RunJob) -> None:
        self.domain, self.schema, self.run_job = domain, schema, run_job
        self.stop = StopSignals()
        self.outcomes: list[dict[str, Any]] = []
        self._argv = sys.argv

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "stop": None}  # signals are a process's own

    def __call__(self, cfg: DictConfig) -> dict[str, Any]:
        """Run one job and say how it ended."""
        if self.stop is None:
            return self._elsewhere(cfg)
        self.outcomes.append(_attempt(cfg, self.schema, self.run_job, self.stop))
        return self.outcomes[-1]

    def _elsewhere(self, cfg: DictConfig) -> dict[str, Any]:
        """Run a job in a process that a cluster has started."""
        start_logging()
        sys.argv = self._argv
        try:
            with StopSignals(CLUSTER_SIGNALS) as stop:
                return _attempt(cfg, self.schema, self.run_job, stop)
        except Interrupted as interrupted:
            # The state is saved; what submitit's own handler does with the signal is to put the job back in line.
            handler = signal.getsignal(interrupted.signum)
            if callable(handler):
                handler(interrupted.signum, None)
            raise


def _attempt(cfg: DictConfig, schema: type[BaseConfig], run_job: RunJob, stop: StopSignals) -> dict[str, Any]:
    """Run one job and say how it ended."""
    hydra_config = HydraConfig.get()
    name = f"{cfg.method.name}-s{cfg.seed}"
    if hydra_config.mode == RunMode.MULTIRUN:
        logger.info("")
    started = time.perf_counter()
    outcome = {"run": name, "status": "failed", "result": "", "path": ""}
    try:
        stop.check()  # a signal that came in the last moments of the job before
        check_keys(cfg, schema)
        ended = run_job(cfg, stop)
        outcome.update({key: ended[key] for key in outcome if key in ended})
    except Exception as error:  # the sweep goes on
        if cfg.debug:
            raise
        said = (
            _one_line(str(error))
            if isinstance(error, UserError)
            else f"{type(error).__name__}: {_one_line(str(error))}"
        )
        notes = getattr(error, "__notes__", []) or ([] if isinstance(error, UserError) else ["debug=true shows where"])
        level = logging.ERROR if isinstance(error, UserError) else logging.CRITICAL
        logger.log(level, "error: %s%s", said, "".join(f" ({note})" for note in notes))
        if level == logging.CRITICAL and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            # The other processes wait for this one in the middle of something; torchrun ends them once it is gone.
            sys.stdout.flush()
            os._exit(1)
        outcome["result"] = said
    outcome["minutes"] = f"{(time.perf_counter() - started) / 60:.1f}"
    return outcome


def check_keys(cfg: DictConfig, schema: type[BaseConfig]) -> None:
    """Raise UserError for a key added with `+` that no schema knows."""
    try:
        # As a plain container, because Hydra lets a key added with `+` slip into a typed one.
        OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.to_container(cfg))
    except OmegaConfBaseException as error:
        raise UserError(composition_error(error, schema)) from error


def composition_error(error: Exception, schema: type[BaseConfig]) -> str:
    """Several lines of Hydra and OmegaConf as one; for an unknown key with the valid ones."""
    text = _one_line(str(error).split("Config search path")[0].split("full_key:")[0])
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        parent, key = cause.parent_node, str(cause.key)
        valid = [str(k) for k in parent] if parent is not None else list(schema.__dataclass_fields__)
        prefix = (cause.full_key or key)[: -len(key)]
        close = difflib.get_close_matches(key, valid, n=1)
        known = f"did you mean {prefix + close[0]!r}?" if close else f"valid: {', '.join(sorted(valid))}"
        return f"unknown key {cause.full_key or key!r}; {known}"
    if isinstance(cause, OmegaConfBaseException) and cause is not error:
        return f"{text}: {_one_line(str(cause).split('full_key:')[0])}"
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())
