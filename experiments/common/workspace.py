"""A directory that training happens in: lock, description, metric log, checkpoints, and the mark that it is done.

Run directories and the entries of the phase cache are both workspaces. What survives a crash at any moment is the
newest checkpoint; opening the workspace again cuts the metric log back to it.
"""

import copy
import json
import logging
import os
import shutil
import socket
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from experiments.common import checkpoint, metric_log, run_files
from experiments.common.errors import StopSignals, UserError
from experiments.common.files import damaged, write_text
from experiments.common.provenance import PARTS, circumstances
from experiments.common.schema import digest
from experiments.common.seeding import rng_state, set_rng_state
from experiments.common.wandb_mirror import VIDEO

logger = logging.getLogger("fire")


class Workspace:
    """One training job's directory, held by one process at a time.

    Attributes:
        path: the directory.
        identity: hash of everything that can change its numbers.
        log: its metric log.
    """

    log: metric_log.MetricLog

    def __init__(
        self, path: Path, identity: dict[str, Any], cfg: DictConfig, choices: list[str], stop: StopSignals, wait: bool
    ) -> None:
        """
        Args:
            path: the directory.
            identity: the values that can change a number.
            cfg: the configuration, kept beside them.
            choices: the words of the command line that choose the benchmark.
            stop: whether the job has been asked to stop.
            wait: for another process that holds the directory; otherwise that is an error.
        """
        self.path, self.identity, self._values = path, digest(identity), identity
        self._cfg, self._stop, self._choices, self._wait = cfg, stop, choices, wait
        self._interval = cfg.checkpoint_seconds
        self._last_save = time.monotonic()
        self._lock = FileLock(path / ".lock")
        self._new = False  # whether this process has made the directory

    def __enter__(self) -> "Workspace":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            for left_over in self.path.glob(".*.tmp"):  # of a process that died while writing
                left_over.unlink()
            write_text(self.path / "holder", f"process {os.getpid()} on {socket.gethostname()}\n")
            self._describe()
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise UserError(f"outputs_dir={self._cfg.outputs_dir} cannot be used: {error}") from error
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if hasattr(self, "log"):
            self.log.close()
        self._lock.release()

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            holder = self.path / "holder"
            who = holder.read_text("utf-8").strip() if holder.exists() else "another process"
            if not self._wait:
                raise UserError(f"{self.path} is in use by {who}") from None
            logger.info("waiting for %s, which holds %s", who, self.path)
            self._lock.acquire(poll_interval=0.5)

    def _describe(self) -> None:
        """Write what this is; on a later opening make sure that it still is."""
        if not (self.path / "run.json").exists():
            if any(self.path.glob("checkpoint-*.pt")):
                raise damaged(self.path / "run.json", "it is missing")
            self._new = True
            known = {"identity": self.identity, "values": self._values, "choices": self._choices}
            known |= {**circumstances(self._values["device"]), "continued": [], "branched_from": []}
            self._write_description(known)
        elif (known := run_files.description(self.path)["identity"]) != self.identity:
            raise UserError(f"{self.path} is of another configuration (identity {known}, not {self.identity})")
        # Nothing relies on this file but people, and `scripts.sample`; so it is what the newest call has.
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(self._cfg, resolve=True))

    def _write_description(self, description: dict[str, Any]) -> None:
        write_text(self.path / "run.json", json.dumps(description, indent=1) + "\n")

    def _note_continuation(self) -> None:
        """Add to the description what has changed around the job since it was last trained."""
        known, now = run_files.description(self.path), circumstances(self._values["device"])
        last = {**known, **(known["continued"] or [{}])[-1]}
        if any(last[key] != now[key] for key in PARTS):
            known["continued"].append({key: now[key] for key in (*PARTS, "started", "command")})
            self._write_description(known)

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """Commit, versions and machine of each part of this job's training."""
        known = run_files.description(self.path)
        return [{key: part[key] for key in PARTS} for part in (known, *known["continued"])]

    def note_branch(self, provenance: list[dict[str, Any]]) -> None:
        """Add to the description where the phase it continues from was trained."""
        self._write_description({**run_files.description(self.path), "branched_from": provenance})

    def resume(self) -> dict[str, Any] | None:
        """Open the metric log and return the state to resume from, with all generators set to it; None at the start."""
        if not self._new:
            self._note_continuation()
        metrics = self.path / "metrics.jsonl"
        loaded = checkpoint.load(self.path)
        state = self._restore(*loaded) if loaded else None
        metric_log.cut(metrics, _position(loaded[1]) if loaded else None)
        self.log = metric_log.MetricLog(metrics)
        self._last_save = time.monotonic()
        return state

    def _restore(self, path: Path, content: dict[str, Any]) -> dict[str, Any]:
        """The state in a checkpoint of this job, with all generators set to it."""
        if content["identity"] != self.identity:
            raise UserError(f"checkpoint {path} is of another configuration (identity {content['identity']})")
        set_rng_state(content["rng"])
        return content["state"]

    def save(self, state: dict[str, Any], keep: Iterable[str] = ()) -> None:
        """Write a checkpoint now, and keep it under the names `keep` for methods to branch from."""
        checkpoint.save(self.path, self._content(state), keep)
        self._last_save = time.monotonic()

    def snapshot(self, state: dict[str, Any]) -> dict[str, Any]:
        """What `save` would write now, to be written later; tensors are copied on the device they are on."""
        return copy.deepcopy(self._content(state))

    def _content(self, state: dict[str, Any]) -> dict[str, Any]:
        return {"identity": self.identity, "state": state, "rng": rng_state(), "log": self.log.position()}

    def branch(self, name: str) -> tuple[dict[str, Any], list[metric_log.Row]]:
        """The state of the checkpoint kept as `name`, with all generators set to it, and the rows until then.

        Raises:
            UserError: there is none, or it is damaged or of another configuration.
        """
        path, content = checkpoint.read_kept(self.path, name)
        state = self._restore(path, content)
        return state, metric_log.rows_until(self.path / "metrics.jsonl", _position(content))

    def go_back(self, name: str) -> dict[str, Any]:
        """Return to the checkpoint kept as `name`: what was trained and logged after it no longer counts."""
        self.log.close()
        checkpoint.save(self.path, checkpoint.read_kept(self.path, name)[1])
        return self.resume()  # type: ignore[return-value]

    def save_due(self) -> bool:
        """Whether a checkpoint should be written: the interval is over, or the run has been asked to stop."""
        return self._stop.received is not None or time.monotonic() - self._last_save >= self._interval

    @property
    def signal(self) -> int | None:
        """The signal that has asked to stop, if any."""
        return self._stop.received

    def stop_if_asked(self) -> None:
        """Raise Interrupted if a signal has come; to be called when the state has just been saved."""
        self._stop.check()

    def finish(self, summary: dict[str, Any], weights: dict[str, Any] | None = None) -> None:
        """Mark the job done and let its checkpoints go; only `weights`, if given, stay."""
        if weights is not None:
            content = {"identity": self.identity, "state": {"model": weights}}
            checkpoint.save_as(self.path, content, checkpoint.FINAL)
        self.log.position()  # the log is safely on disk before the checkpoints go
        run_files.finish(self.path, summary)
        checkpoint.remove(self.path)

    def erase(self) -> None:
        """Remove what an earlier attempt left, for `overwrite=true`, and count how often that has happened."""
        # First, so that no crash lets two attempts share a W&B id.
        write_text(self.path / "overwrites", f"{run_files.overwrites(self.path) + 1}\n")
        # In an order in which a process may die between any two: first it is not done any more, then not begun.
        (self.path / "done").unlink(missing_ok=True)
        checkpoint.remove(self.path)
        checkpoint.drop(self.path, checkpoint.FINAL)
        for name in ("run.json", "config.yaml", "metrics.jsonl", "error.log", "log", "wandb", VIDEO):
            target = self.path / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        self._describe()

    @contextmanager
    def text_log(self) -> Iterator[None]:
        """Copy what is printed while the block runs into the file `log`."""
        (self.path / "error.log").unlink(missing_ok=True)
        handler = logging.FileHandler(self.path / "log", encoding="utf-8", errors="backslashreplace")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()

    def note_failure(self, error: Exception) -> None:
        """Keep the traceback of a failed run; a new directory in which nothing was logged goes altogether."""
        if isinstance(error, UserError) and self._new and not (hasattr(self, "log") and self.log.rows):
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            keep_traceback(self.path, error)


def _position(content: dict[str, Any]) -> dict[str, Any]:
    """How far the metric log went at a checkpoint; those of earlier versions know no checksum."""
    return content["log"] if "log" in content else {"bytes": content["log_bytes"], "sha256": None}


def keep_traceback(folder: Path, error: Exception) -> None:
    """Write where `error`, which is being handled, came from, and note in it where that can be read."""
    with suppress(OSError):  # a full disk has been reported already
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.log").write_text(traceback.format_exc(), "utf-8")
        error.add_note(f"traceback in {folder / 'error.log'}")
