"""One training job: its directories, the phase it shares with other methods, and its end.

    phase 0 --boundary--> phase 1 --boundary--> ...

Phase 0 does not depend on the reset method, so it is trained once, in `outputs/phases/<hash>/`, and every method
branches from its checkpoint. A branched run and one trained in one piece end bit-identical on the CPU.
"""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.common import checkpoint, metric_log, parallel, video
from experiments.common.config import digest
from experiments.common.errors import StopSignals, UserError
from experiments.common.wandb_mirror import VIDEO, open_mirror
from experiments.common.workspace import Workspace, keep_traceback, summary_of

logger = logging.getLogger("fire")
END = "end"  # the branch point at the end of phase 0


class Experiment(Protocol):
    """What a domain implements.

    Attributes:
        phases: how many there are.
        x_axis: the key of its rows that counts training from the run's start.
        disk_bytes: what its checkpoints take at most, roughly, in the run and in the shared phase.
        branch: the kept checkpoint of phase 0 that the methods go on from. If it is END, the end of the phase, it is
            kept here; any other the domain keeps itself, and trains phase 0 no further than it must.
        rewinds: whether phase 0 may have to be trained beyond the branch point, to know that it is one.
        phase: the phase the state is in.
    """

    phases: int
    x_axis: str
    disk_bytes: int
    branch: str
    rewinds: bool
    phase: int

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""

    def train(self, workspace: Workspace, until_phase: int) -> None:
        """Train from the current state to the end of phase `until_phase - 1`, of phase 0 to where `branch` is settled,
        saving into the workspace."""

    def state_dict(self) -> dict[str, Any]:
        """Everything `load_state_dict` needs."""

    def final_weights(self) -> dict[str, Any] | None:
        """What a finished run leaves behind, if anything."""

    def summarise(self, rows: list[metric_log.Row]) -> dict[str, Any]:
        """The final numbers of a run from its metric rows."""


@dataclass(frozen=True)
class Job:
    """Where a run lives and what it shares.

    Attributes:
        domain, group, name: as in outputs/<domain>/<group>/<name>-<hash8>.
        identity: values that can change any number of the run.
        shared_identity: the part that can change a number of phase 0; equal for all methods.
    """

    domain: str
    group: str
    name: str
    cfg: DictConfig
    identity: dict[str, Any]
    shared_identity: dict[str, Any]

    @property
    def run_dir(self) -> Path:
        """The run's own directory."""
        return Path(self.cfg.outputs_dir) / self.domain / self.group / f"{self.name}-{digest(self.identity)[:8]}"

    @property
    def phase_dir(self) -> Path:
        """Where phase 0 is kept for all runs that share it."""
        return Path(self.cfg.outputs_dir) / "phases" / digest({"domain": self.domain, **self.shared_identity})[:16]


def carry_out(job: Job, prepare: Callable[[], Experiment], stop: StopSignals) -> dict[str, Any]:
    """Train what is missing of a run; returns its summary.

    `prepare` loads the data and builds the experiment; it is called before anything is written, and not at all for a
    run that is done.
    """
    cfg = job.cfg
    if "record_video" in cfg and cfg.record_video:
        video.check()
    summary = None if cfg.overwrite or cfg.until != "end" else summary_of(job.run_dir)
    if summary is not None:
        logger.info("done before: %s (overwrite=true redoes it)", job.run_dir)
        checkpoint.remove(job.run_dir)  # left by a process that died between its last two deeds
        return {**summary, "path": str(job.run_dir), "status": "done before"}
    try:
        experiment = prepare()
    except UserError:
        raise
    except Exception as error:
        keep_traceback(job.run_dir, error)
        raise
    check_disk(job, experiment)
    if cfg.until == "phase0":
        shared_phase(job, experiment, stop, mirror=None)
        logger.info("phase 0 is in %s; any method continues from it", job.phase_dir)
        return {"path": str(job.phase_dir), "status": "phase 0 done"}
    with Workspace(
        job.run_dir, job.identity, cfg, stop=stop, wait=in_sweep(), checkpoint_seconds=cfg.checkpoint_seconds
    ) as run:  # a sweep that was killed may still be saving, and another one may do the same
        if run.done is not None and not cfg.overwrite:  # finished by another process while this one prepared
            return {**run.done, "path": str(run.path), "status": "done before"}
        if run.done is not None:  # an attempt that was interrupted goes on instead, however it was begun
            run.erase()
        mirror = open_mirror(run.path, experiment.x_axis, cfg.wandb)
        summary = None
        try:
            with run.text_log():
                summary = train(job, experiment, run, stop, mirror)
            if (run.path / VIDEO).exists():
                mirror.video(run.path / VIDEO)
        except Exception as error:
            run.note_failure(error)
            raise
        finally:
            mirror.finish(summary)
        return {**summary, "path": str(run.path), "status": "done"}


def train(
    job: Job, experiment: Experiment, run: Workspace, stop: StopSignals, mirror: metric_log.Mirror
) -> dict[str, Any]:
    """Train from wherever the run stands to its end; returns its summary."""
    started = time.perf_counter()
    state = run.resume()
    # What is trained beyond the branch point is no part of this run, and a mirror cannot take a row back.
    live = None if experiment.rewinds else mirror
    run.log.show(live)
    if state is not None:
        reached = f", from after {experiment.x_axis} {run.log.rows[-1][experiment.x_axis]}" if run.log.rows else ""
        logger.info("resuming %s%s", run.path, reached)
        experiment.load_state_dict(state)
    if state is None and job.cfg.phase_cache:
        rows, provenance = shared_phase(job, experiment, stop, live)
        run.note_branch(provenance)
        run.log.extend(rows)
    elif experiment.phase == 0:
        reach_branch(experiment, run, stop)
        experiment.load_state_dict(run.go_back(experiment.branch))
    run.log.show(mirror)
    with stop.deferred():
        experiment.train(run, experiment.phases)
    summary = experiment.summarise(run.log.rows)
    run.finish(summary, experiment.final_weights())
    logger.info("finished in %.0f s: %s", time.perf_counter() - started, run.path)
    return summary


def shared_phase(
    job: Job, experiment: Experiment, stop: StopSignals, mirror: metric_log.Mirror | None
) -> tuple[list[metric_log.Row], list[dict[str, Any]]]:
    """Bring `experiment` to its branch point in phase 0, trained here or before; returns the rows until there, and the
    provenance of the phase."""
    with Workspace(
        job.phase_dir, job.shared_identity, job.cfg, stop=stop, wait=True,
        checkpoint_seconds=job.cfg.checkpoint_seconds,
    ) as shared:  # fmt: skip
        found = shared.branch(experiment.branch)
        if found is not None:
            logger.info("phase 0 was trained before: %s", shared.path)
        else:
            if (state := shared.resume()) is not None:
                logger.info("going on with phase 0 in %s", shared.path)
                experiment.load_state_dict(state)
            shared.log.show(mirror)
            reach_branch(experiment, shared, stop)
            checkpoint.remove(shared.path, but=1)  # from which a later branch point would be reached
            found = shared.branch(experiment.branch)
        if found is None:
            there = ", ".join(checkpoint.kept(shared.path)) or "none"
            raise UserError(f"phase 0 has no checkpoint {experiment.branch}; those there are: {there}")
        experiment.load_state_dict(found[0])
        return found[1], shared.provenance


def reach_branch(experiment: Experiment, workspace: Workspace, stop: StopSignals) -> None:
    """Train phase 0 in `workspace` until the checkpoint of the branch point is kept there."""
    if experiment.branch in checkpoint.kept(workspace.path):
        return
    with stop.deferred():
        experiment.train(workspace, 1)
    if experiment.branch == END:
        workspace.save(experiment.state_dict(), keep=[END])


def in_sweep() -> bool:
    """Whether this job is one of a sweep."""
    return parallel.is_job() or (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def check_disk(job: Job, experiment: Experiment) -> None:
    """Raise UserError unless the checkpoints a run holds at once fit on the disk."""
    folder = Path(job.cfg.outputs_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    needed, free = experiment.disk_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"no disk space: {job.cfg.outputs_dir} has {free / 1e9:.2f} GB, the run needs {needed / 1e9:.2f} GB"
        )
