"""Weights & Biases as a mirror of the metric log. It never stops a run: what goes wrong here is a warning."""

import logging
import netrc
import os
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from omegaconf import DictConfig, OmegaConf

from experiments.common import run_files
from experiments.common.metric_log import Row
from experiments.common.schema import digest

logger = logging.getLogger("fire")

INIT_TIMEOUT_SECONDS = 30
FINISH_TIMEOUT_SECONDS = 120
VIDEO = "video.mp4"  # in a run directory
_unreachable = False  # one attempt a process: a sweep does not wait for the time-out in every job


# A variable that is set takes the place of the setting we would have passed. WANDB_RUN_ID is not among them: it would
# make all runs of a sweep one.
VARIABLES = {
    "WANDB_PROJECT": "project", "WANDB_ENTITY": "entity", "WANDB_RUN_GROUP": "group", "WANDB_NAME": "name",
    "WANDB_TAGS": "tags", "WANDB_DIR": "dir",
}  # fmt: skip


class WandbMirror:
    """One W&B run that shows the rows of one metric log, each at the step of its number; it starts with the first row.

    `x_axis`, the rows' own count of training, is the x-axis of all curves, so that methods overlay without a click.
    A run that cannot start online is written offline: whole, when it has finished, because W&B cannot add to what an
    earlier process wrote offline. `settings` are those of `wandb.init`.
    """

    def __init__(self, *, mode: str, x_axis: str, **settings: Any) -> None:
        self._mode, self._x_axis = _resolve_mode(mode), x_axis
        overridden = {VARIABLES[variable] for variable in VARIABLES if os.environ.get(variable)}
        self._settings = {key: value for key, value in settings.items() if key not in overridden}
        self._run: Any = None
        self._started = False
        self._shown = 0
        self._held: dict[int, Row] = {}  # to be written offline

    def _start(self) -> None:
        global _unreachable
        self._started = True
        if self._mode == "online" and not _unreachable:
            self._run = _tolerant("start", self._init, "online")
            if self._run is not None:
                self._shown = int(self._run.step)  # rows that the service has from an earlier process
                logger.info("Weights & Biases: %s", self._run.url)
                return
            _unreachable = True
            # Which would otherwise hold the run's id.
            _tolerant("end the failed attempt", lambda: import_module("wandb").teardown())
        if self._mode != "disabled":
            self._mode = "offline"
            logger.info("Weights & Biases: offline, to be written when the run has finished")

    def _init(self, mode: Any) -> Any:
        import wandb

        options = wandb.Settings(init_timeout=INIT_TIMEOUT_SECONDS, silent=True, console="off")
        run = wandb.init(mode=mode, resume="allow", settings=options, reinit="finish_previous", **self._settings)
        run.define_metric(self._x_axis)
        run.define_metric("*", step_metric=self._x_axis)
        return run

    def log(self, number: int, row: Row) -> None:
        """Show row `number`, unless it was shown before."""
        if not self._started:
            self._start()
        if self._run is None and self._mode == "offline":
            self._held[number] = row
        if self._run is not None and number >= self._shown:
            self._shown = number + 1
            if _tolerant("log", lambda: self._run.log(row, step=number) or True) is None:
                self._run = None

    def finish(self, summary: dict[str, Any] | None = None, video: Path | None = None) -> None:
        """Close the run; without a summary it counts as stopped early. A video is shown beside the last row."""
        if self._held and summary is not None and (run := self._offline_run()):
            self._run = run
            logger.info("Weights & Biases: offline, in %s", run.dir)
            for number, row in self._held.items():
                self.log(number, row)
        if self._run is None:
            return
        if video is not None and video.exists():
            _tolerant("log a video", self._log_video, video)
        if summary is not None:
            _tolerant("summarise", self._run.summary.update, summary)
        # W&B waits for the last row to arrive, for ever if the network is gone; a sweep must not.
        run, self._run = self._run, None
        ending = threading.Thread(target=_tolerant, args=("finish", run.finish, int(summary is None)), daemon=True)
        ending.start()
        ending.join(FINISH_TIMEOUT_SECONDS)
        if ending.is_alive():
            rest = f"wandb sync --include-online {Path(run.dir).parent}"
            logger.warning("warning: Weights & Biases is still uploading; to send the rest: %s", rest)

    def _offline_run(self) -> Any:
        """A new run offline; a second attempt where a failed one online still holds its id."""
        run = _tolerant("start offline", self._init, "offline")
        if run is None:
            _tolerant("end the failed attempt", lambda: import_module("wandb").teardown())
            run = _tolerant("start offline", self._init, "offline")
        return run

    def _log_video(self, path: Path) -> None:
        import wandb

        self._run.log({"video": wandb.Video(str(path), format="mp4")}, step=max(self._shown - 1, 0))


def open_mirror(run_dir: Path, x_axis: str, cfg: DictConfig) -> WandbMirror:
    """The W&B run of a run directory, described by its configuration and what lies there.

    Its id holds the identity and how often the run was redone, so that two attempts never mix.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    info = run_files.description(run_dir)
    group, settings_of_run, variant = labels(run_dir)
    return WandbMirror(
        mode=cfg.wandb.mode,
        dir=str(run_dir),
        id=f"{info['identity'][:16]}-{run_files.overwrites(run_dir)}",
        x_axis=x_axis,
        config={**config, **info["values"], "variant": variant, "settings": settings_of_run},
        project=cfg.wandb.project,
        entity=cfg.wandb.entity,
        group=group,
        name=run_dir.name.rsplit("-", 1)[0],
        tags=[run_dir.parts[-3], config["method"]["name"], config["scale"], *cfg.wandb.tags],
    )


def labels(run_dir: Path) -> tuple[str, str, str]:
    """By what runs are grouped: their domain, benchmark and scale; everything else but method and seed that can change
    their numbers, as a hash, since only what agrees in that may be compared; and the method with all its settings."""
    info = run_files.description(run_dir)
    around = dict(info["values"])
    method, optimizer = dict(around.pop("method")), around.pop("optimizer_at_boundary")
    del around["seed"]
    name, _ = method.pop("name"), method.pop("kind")
    words = [*sorted(method.items()), ("optimizer_at_boundary", optimizer)]
    variant = f"{name} ({', '.join(f'{key}={value}' for key, value in words)})"
    return "-".join(run_dir.parts[-3:-1]), digest({"machine": info["machine"], **around})[:8], variant


def _tolerant(action: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call; on any error warn in one line and return None."""
    try:
        return function(*arguments)
    except Exception as error:  # whatever W&B raises, the training matters more
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        given = sorted({*VARIABLES, "WANDB_BASE_URL", "WANDB_MODE"} & os.environ.keys())
        variables = f" (with {', '.join(f'{name}={os.environ[name]}' for name in given)})" if given else ""
        logger.warning("warning: Weights & Biases could not %s: %s%s; the run continues", action, reason, variables)
        return None


def _resolve_mode(mode: str) -> str:
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled"
    if wished := os.environ.get("WANDB_MODE", "").lower():
        wished = {"run": "online", "dryrun": "offline"}.get(wished, wished)  # older names, which W&B takes too
        if wished in ("online", "offline", "disabled"):
            return wished
        logger.warning("warning: WANDB_MODE=%s is unknown, so offline; valid: online, offline, disabled", wished)
        return "offline"
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
