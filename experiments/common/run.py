"""One run: checked, named, its shared phase trained or found, and trained to its end.

Phase 0 does not depend on the method, unless the method acts in it, so it is trained once, in `outputs/phases/<hash>/`,
and every method continues from its checkpoint. A run that branches there and one trained in one piece end bit-identical
on the CPU.
"""

import logging
import shutil
import time
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from experiments.common import checkpoint, run_files, schema
from experiments.common.config import build_method, check_names, method_settings, outputs_folder
from experiments.common.domain import Domain, Job, describe
from experiments.common.errors import StopSignals, UserError
from experiments.common.experiment import END, Experiment
from experiments.common.metric_log import Mirror, Row
from experiments.common.provenance import note_recipe
from experiments.common.runtime import resolve_runtime
from experiments.common.wandb_mirror import VIDEO, open_mirror
from experiments.common.workspace import Workspace, keep_traceback

logger = logging.getLogger("fire")


def run(domain: Domain, cfg: DictConfig, stop: StopSignals, wait: bool) -> dict[str, Any]:
    """A run from its composed configuration: validate everything, then train what is missing; returns its summary. If
    another process holds its directory, `wait` for it; otherwise that is an error."""
    schema.check(domain.schema, cfg)
    if cfg.until == "phase0" and not cfg.phase_cache:
        raise UserError("until=phase0 trains the shared phase, which phase_cache=false does without; choose one")
    domain.check(cfg)
    check_names(cfg)
    method = build_method(cfg)
    runtime = resolve_runtime(cfg, domain.compile_on_cuda)
    opened = domain.open(cfg, runtime)
    job = describe(domain, cfg, runtime, method, opened)
    given = [f"method={cfg.method.name}", *method_settings()]  # which the command line has chosen
    words, papers = (" ".join([*some, *given]) for some in (job.choices, domain.paper_choices(cfg)))
    logger.info(
        "%s %s seed=%d scale=%s: %s, %s on %s.%s",
        domain.name, words, cfg.seed, cfg.scale, domain.headline(cfg, opened), runtime.precision, runtime.device,
        "" if cfg.scale == "paper"
        else f" The paper's protocol: python -m experiments.{domain.name} {papers} scale=paper",
    )  # fmt: skip

    def prepare() -> Experiment:
        return domain.experiment(cfg, runtime, method, opened)

    ended = domain.in_every_process(opened, prepare, lambda prepare: carry_out(job, prepare, stop, wait), stop)
    if ended["status"] == "done before":
        domain.revisit(cfg, runtime, method, job.run_dir)
    return {"run": job.name, **ended}


def carry_out(job: Job, prepare: Callable[[], Experiment], stop: StopSignals, wait: bool) -> dict[str, Any]:
    """Train what is missing of a run; returns its summary.

    `prepare` loads the data and builds the experiment; it is called before anything is written, and not at all for a
    run that is done.
    """
    cfg = job.cfg
    summary = None if cfg.overwrite or cfg.until != "end" else run_files.summary(job.run_dir)
    if summary is not None:
        logger.info("done before: %s (overwrite=true redoes it)", job.run_dir)
        checkpoint.remove(job.run_dir)  # left by a process that died just before it would have removed them
        note_recipe(job.run_dir)
        return {**summary, "path": str(job.run_dir), "status": "done before"}
    try:
        experiment = prepare()
    except Exception as error:
        if not isinstance(error, UserError):
            keep_traceback(job.run_dir, error)
        raise
    check_disk(job, experiment)
    if cfg.until == "phase0":
        shared_phase(job, experiment, stop, mirror=None)
        logger.info("phase 0 is in %s", job.phase_dir)
        return {"path": str(job.phase_dir), "status": "phase 0 done"}
    with Workspace(job.run_dir, job.identity, cfg, job.choices, stop, wait) as run:
        done = run_files.summary(run.path)
        if done is not None and cfg.overwrite:  # an interrupted attempt is continued instead, however it was begun
            run.erase()
        note_recipe(job.run_dir)
        if done is not None and not cfg.overwrite:  # finished by another process while this one prepared
            return {**done, "path": str(run.path), "status": "done before"}
        mirror = open_mirror(run.path, experiment.x_axis, cfg)
        started = time.perf_counter()
        try:
            with run.text_log():
                summary = train(job, experiment, run, stop, mirror.log)
                # Before the run counts as finished, since W&B would otherwise lack one that is killed between.
                mirror.finish(summary, run.path / VIDEO)
                run.finish(summary, experiment.final_weights())
                logger.info("finished in %.0f s: %s", time.perf_counter() - started, run.path)
        except BaseException as error:
            mirror.finish()
            if isinstance(error, Exception):
                run.note_failure(error)
            raise
        return {**summary, "path": str(run.path), "status": "done"}


def train(job: Job, experiment: Experiment, run: Workspace, stop: StopSignals, mirror: Mirror) -> dict[str, Any]:
    """Train from wherever the run stands to its end; returns its summary."""
    if experiment.alone:
        experiment.at_once = stop.at_once
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
        for row in rows:
            run.log.append(row)
    elif experiment.phase == 0:
        reach_branch(experiment, run, stop)
        experiment.load_state_dict(run.go_back(experiment.branch))
    run.log.show(mirror)
    with stop.deferred():
        experiment.train(run, experiment.phases)
    return experiment.summarise(run.log.rows)


def shared_phase(
    job: Job, experiment: Experiment, stop: StopSignals, mirror: Mirror | None
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Bring `experiment` to its branch point in phase 0, trained here or before; returns the rows until there, and the
    provenance of the phase."""
    with Workspace(job.phase_dir, job.phase_0_identity, job.cfg, job.choices, stop, wait=True) as shared:
        if experiment.branch in checkpoint.kept(shared.path):
            logger.info("phase 0 was trained before: %s", shared.path)
        else:
            if (state := shared.resume()) is not None:
                logger.info("resuming phase 0 in %s", shared.path)
                experiment.load_state_dict(state)
            shared.log.show(mirror)
            reach_branch(experiment, shared, stop)
            checkpoint.remove(shared.path, but=1)  # from which a later branch point would be reached
        state, rows = shared.branch(experiment.branch)
        experiment.load_state_dict(state)
        return rows, shared.provenance


def reach_branch(experiment: Experiment, workspace: Workspace, stop: StopSignals) -> None:
    """Train phase 0 in `workspace` until the checkpoint of the branch point is kept there."""
    if experiment.branch in checkpoint.kept(workspace.path):
        return
    with stop.deferred():
        experiment.train(workspace, 1)
    if experiment.branch == END:
        workspace.save(experiment.state_dict(), keep=[END])


def check_disk(job: Job, experiment: Experiment) -> None:
    """Raise UserError unless the checkpoints a run holds at once fit on the disk."""
    folder = outputs_folder(job.cfg).absolute()
    while not folder.exists():
        folder = folder.parent
    needed, free = experiment.disk_bytes, shutil.disk_usage(folder).free
    if job.cfg.scale == "paper":
        logger.info("checkpoints take up to %.1f GB in %s", needed / 1e9, job.cfg.outputs_dir)
    if free < needed:
        raise UserError(
            f"no disk space: {job.cfg.outputs_dir} has {free / 1e9:.2f} GB, the run needs {needed / 1e9:.2f} GB"
        )
