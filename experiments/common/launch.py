"""The command line of a domain: compose the configuration, run its jobs, say in plain lines what went wrong.

Nothing inside a job calls sys.exit. A job that fails is recorded and the sweep goes on; the process ends non-zero
after the last one, with a table of what ran.
"""

import difflib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from tabulate import tabulate

from experiments.common.config import BaseConfig, register_schemas
from experiments.common.errors import Interrupted, StopSignals, UserError
from experiments.common.workspace import command_line

logger = logging.getLogger("fire")
RunJob = Callable[[DictConfig, StopSignals], dict[str, Any]]


def launch(domain: str, schema: type[BaseConfig], run_job: RunJob) -> int:
    """Run the command line of `domain`; returns the exit status."""
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.propagate = False
    register_schemas(schema)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra's errors reach us instead of its own printing
    outcomes: list[dict[str, Any]] = []
    stop = StopSignals()

    def job(cfg: DictConfig) -> None:
        outcomes.append(_attempt(cfg, run_job, stop))

    configs = Path(__file__).parents[2] / "configs" / domain
    status = 0
    try:
        with stop:
            hydra.main(version_base="1.3", config_path=str(configs), config_name="config")(job)()
    except Interrupted as signal:
        logger.info("stopped by %s; to go on: %s", signal, command_line())
        status = signal.exit_status
    except KeyboardInterrupt:
        logger.info("stopped without saving; to go on from the last checkpoint: %s", command_line())
        status = 130
    except (HydraException, OmegaConfBaseException) as error:
        if "debug=true" in sys.argv:
            raise
        logger.error("error: %s", _composition_error(error, schema))
        return 2
    if len(outcomes) > 1:
        columns = ("run", "status", "result", "minutes", "path")
        logger.info("\n%s", tabulate([[o[c] for c in columns] for o in outcomes], headers=columns, disable_numparse=True))
    failed = sum(o["status"] == "failed" for o in outcomes)
    if failed and len(outcomes) > 1:
        logger.error("error: %d of %d runs failed", failed, len(outcomes))
    return status or int(failed > 0)


def _attempt(cfg: DictConfig, run_job: RunJob, stop: StopSignals) -> dict[str, Any]:
    """Run one job and say how it ended."""
    hydra_config = HydraConfig.get()
    name = ",".join(hydra_config.overrides.task) or "defaults"
    if hydra_config.mode == RunMode.MULTIRUN:
        logger.info("")
    started = time.perf_counter()
    outcome = {"run": name, "status": "failed", "result": "", "path": ""}
    try:
        ended = run_job(cfg, stop)
        outcome.update({key: ended.get(key, "") for key in ("run", "status", "result", "path") if key in ended})
    except UserError as error:
        if cfg.debug:
            raise
        logger.error("error: %s", error)
        outcome["result"] = str(error)
    except Exception as error:
        # A mistake in the program: the sweep goes on, but its author needs the traceback.
        if cfg.debug:
            raise
        report = Path(cfg.outputs_dir) / "errors" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{hydra_config.job.get('num', 0)}.log"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(f"{name}\n{traceback.format_exc()}")
        logger.error("error: %s: %s (traceback in %s)", type(error).__name__, _one_line(str(error)), report)
        outcome["result"] = f"{type(error).__name__}: {_one_line(str(error))}"
    outcome["minutes"] = f"{(time.perf_counter() - started) / 60:.1f}"
    return outcome


def _composition_error(error: Exception, schema: type[BaseConfig]) -> str:
    """Hydra's several lines as one; for an unknown key with what was probably meant."""
    text = _one_line(str(error))
    cause = error.__cause__
    if "Could not override" in text or "not in" in text:
        key = getattr(cause, "full_key", None) or getattr(error, "full_key", None) or text.split("'")[1]
        text = f"unknown key {key!r}"
        valid = [*getattr(schema, "__dataclass_fields__", {}), "experiment"]
        close = difflib.get_close_matches(str(key), valid, n=1)
        text += f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(sorted(valid))}"
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())
