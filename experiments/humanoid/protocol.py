"""What a run of the humanoid domain is: its values checked, its name and identity, and what happens at which step."""

import logging
from typing import Any

from omegaconf import DictConfig

from experiments.common import config
from experiments.common.errors import UserError
from experiments.common.job import Job
from experiments.humanoid import assets, envs, tasks

logger = logging.getLogger("fire")

# To be raised by whoever changes what a phase computes: it enters the identity of runs and of the shared phase.
PHASE_VERSION = 1
PHASE_0_IGNORES = ("method", "optimizer_at_boundary", "sharpness")
NOT_IDENTITY = ("record_video", "env")


def check(cfg: DictConfig) -> None:
    """Raise UserError for values that cannot be trained with; writes task and backend as they are called here."""
    config.check_choices(cfg)
    cfg.task = tasks.resolve(cfg.task)
    if cfg.model.name != "simba":
        raise UserError(f"model.name={cfg.model.name} is unknown; valid: simba")
    if cfg.precision == "fp16":
        raise UserError("precision=fp16 needs loss scaling, which this domain has not; use bf16")
    budget, sac = cfg.budget, cfg.sac
    if not 1 <= sac.action_repeat <= envs.MAX_STEPS:
        raise UserError(f"sac.action_repeat={sac.action_repeat} must lie in [1, {envs.MAX_STEPS}]")
    if len(budget.steps) != 2 or min(budget.steps) < 1:
        raise UserError(f"budget.steps={list(budget.steps)} must be 2 positive numbers, one for each phase")
    for name, value in [("steps", step) for step in budget.steps] + [
        (key, budget[key]) for key in ("log_every", "eval_every")
    ]:
        if value < 1 or value % sac.action_repeat:
            raise UserError(
                f"budget.{name}={value} is not a positive multiple of sac.action_repeat={sac.action_repeat}"
            )
    for key in ("actor_width", "actor_blocks", "critic_width", "critic_blocks", "batch_size", "eval_episodes"):
        if not 1 <= budget[key] <= 1e6:
            raise UserError(f"budget.{key}={budget[key]} must lie in [1, 1000000]")
    if budget.random_actions < 2:
        raise UserError(f"budget.random_actions={budget.random_actions} must be at least 2")
    if budget.random_actions >= sum(budget.steps) // sac.action_repeat:
        raise UserError(
            f"budget.random_actions={budget.random_actions} lies beyond the run's "
            f"{sum(budget.steps) // sac.action_repeat} actions"
        )
    if budget.buffer < 2:
        raise UserError(f"budget.buffer={budget.buffer} must be at least 2")
    if not 0 < sac.replay_ratio <= 1024:
        raise UserError(f"sac.replay_ratio={sac.replay_ratio} must lie in (0, 1024]")
    for key in ("discount", "tau"):
        if not 0 <= sac[key] <= 1:
            raise UserError(f"sac.{key}={sac[key]} must lie in [0, 1]")
    if not sac.temperature > 0:
        raise UserError(f"sac.temperature={sac.temperature} must be positive")
    if not cfg.optimizer.learning_rate > 0:
        raise UserError(f"optimizer.learning_rate={cfg.optimizer.learning_rate} must be positive")
    if not cfg.optimizer.weight_decay >= 0:
        raise UserError(f"optimizer.weight_decay={cfg.optimizer.weight_decay} must not be negative")
    cfg.env.backend = envs.resolve_backend(cfg.env.backend)
    if cfg.env.backend == "native":
        assets.check(config.data_folder(cfg))


def describe(cfg: DictConfig, runtime: config.Runtime) -> Job:
    """Name and identity of a run, and what of it phase 0 depends on."""
    identity = config.identity_values(cfg, runtime, PHASE_VERSION)
    for key in NOT_IDENTITY:
        del identity[key]
    identity["environment"] = envs.describe(cfg.env.backend)
    shared = {key: value for key, value in identity.items() if key not in PHASE_0_IGNORES}
    shared["model"] = cfg.model.name
    return Job("humanoid", f"{cfg.task}-{cfg.scale}", f"{cfg.method.name}-s{cfg.seed}", cfg, identity, shared)


def announce(cfg: DictConfig, runtime: config.Runtime) -> None:
    """The first line: what runs, at which scale, and how to run the paper's."""
    budget, environment = cfg.budget, envs.describe(cfg.env.backend)
    logger.info(
        "humanoid %s, %s seed=%d, scale=%s: %s environment steps, %s updates for each %d, actor of width %d, "
        "critics of %d, %s environment on MuJoCo %s, %s on %s.%s",
        cfg.task, config.method_words(cfg), cfg.seed, cfg.scale, "+".join(f"{steps:,}" for steps in budget.steps),
        f"{cfg.sac.replay_ratio:g}", cfg.sac.action_repeat, budget.actor_width, budget.critic_width,
        environment["name"], environment["mujoco"], runtime.precision, runtime.device,
        "" if cfg.scale == "paper" else " Too short to rank methods; the paper's protocol: python -m "
        f"experiments.humanoid task={cfg.task} {config.method_words(cfg)} scale=paper",
    )  # fmt: skip


class Schedule:
    """What is due at which environment step, in plain numbers, since the loop asks at every one.

    An action is counted as `action_repeat` steps, also where it ends an episode earlier, as SimBa's code counts.
    """

    def __init__(self, cfg: DictConfig) -> None:
        budget, sac = cfg.budget, cfg.sac
        self.ends = [budget.steps[0], sum(budget.steps)]
        self.repeat, self.batch_size = sac.action_repeat, budget.batch_size
        self._random, self._ratio = budget.random_actions, sac.replay_ratio
        self.most_updates = int(sac.replay_ratio) + 1  # with one action
        self._log, self._eval = budget.log_every, budget.eval_every

    def explores(self, step: int) -> bool:
        """Whether the action at `step` is a random one."""
        return step // self.repeat < self._random

    def updates(self, step: int) -> int:
        """How many updates come with the action at `step`."""
        if self.explores(step):
            return 0
        actions = step // self.repeat
        return int((actions + 1) * self._ratio) - int(actions * self._ratio)

    def logs(self, step: int) -> bool:
        """Whether a row is written after `step`."""
        return step % self._log == 0 or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        """Whether the policy is evaluated after `step`."""
        return step % self._eval == 0 or step in self.ends


def summarise(rows: list[dict[str, Any]], task: str) -> dict[str, Any]:
    """Final evaluation and training returns of a run, and the mean of evaluations after the boundary."""
    evaluated = [row["eval/return"] for row in rows if "eval/return" in row]
    after = [row["eval/return"] for row in rows if row["phase"] == 1 and "eval/return" in row]
    trained = [row["train/return"] for row in rows if row.get("train/return") is not None]
    normalised = tasks.normalised(task, evaluated[-1])
    return {
        "final": evaluated[-1],
        "final_success_normalised": normalised,
        "final_train": trained[-1] if trained else None,
        "mean_of_last_phase": sum(after) / len(after),
        "result": f"return {evaluated[-1]:,.1f}"
        + ("" if normalised is None else f", {normalised:.1%} of the way from random to success"),
    }
