"""What a run of the Atari domain is: its values checked, its name and identity, and what happens at which step."""

import logging
from typing import Any

from omegaconf import DictConfig

from experiments.atari import envs, games
from experiments.common import config
from experiments.common.errors import UserError
from experiments.common.job import Job

logger = logging.getLogger("fire")

# To be raised by whoever changes what a phase computes: it enters the identity of runs and of the shared phase.
PHASE_VERSION = 1
PHASE_0_IGNORES = ("method", "optimizer_at_boundary", "sharpness")
NOT_IDENTITY = ("record_video",)


def check(cfg: DictConfig) -> None:
    """Raise UserError for values that cannot be trained with; writes the game as ALE names it."""
    config.check_choices(cfg)
    cfg.game = games.resolve(cfg.game)
    if cfg.model.name != "nature_cnn":
        raise UserError(f"model.name={cfg.model.name} is unknown; valid: nature_cnn")
    if cfg.precision == "fp16":
        raise UserError("precision=fp16 needs loss scaling, which this domain has not; use bf16")
    budget, count = cfg.budget, cfg.dqn.environments
    if not 1 <= count <= 1024:
        raise UserError(f"dqn.environments={count} must lie in [1, 1024]")
    if len(budget.steps) != 2 or min(budget.steps) < 1:
        raise UserError(f"budget.steps={list(budget.steps)} must be 2 positive numbers, one for each phase")
    keys = ("target_every", "log_every", "eval_every", "restart_every")
    for name, value in [("steps", step) for step in budget.steps] + [(key, budget[key]) for key in keys]:
        if value < 1 or value % count:
            raise UserError(f"budget.{name}={value} is not a positive multiple of dqn.environments={count}")
    for key in ("width", "hidden", "eval_steps"):
        if not 1 <= budget[key] <= 1e9:
            raise UserError(f"budget.{key}={budget[key]} must be positive")
    smallest = 2 * envs.STACK * count
    if budget.buffer < smallest:
        raise UserError(f"budget.buffer={budget.buffer} must be at least {smallest}, two stacks of every environment")
    if budget.learning_starts < smallest:
        raise UserError(f"budget.learning_starts={budget.learning_starts} must be at least {smallest}")
    if budget.learning_starts >= sum(budget.steps):
        raise UserError(
            f"budget.learning_starts={budget.learning_starts} lies beyond the run's {sum(budget.steps)} steps"
        )
    if not 0 < cfg.replay_ratio <= 1024:
        raise UserError(f"replay_ratio={cfg.replay_ratio} must lie in (0, 1024]")
    if not 1 <= cfg.dqn.batch_size <= 65_536:
        raise UserError(f"dqn.batch_size={cfg.dqn.batch_size} must lie in [1, 65536]")
    if not cfg.optimizer.learning_rate > 0:
        raise UserError(f"optimizer.learning_rate={cfg.optimizer.learning_rate} must be positive")
    if not cfg.optimizer.eps >= 0:
        raise UserError(f"optimizer.eps={cfg.optimizer.eps} must not be negative")
    fractions = {key: cfg.dqn[key] for key in ("discount", "exploration_fraction", "eval_epsilon")}
    epsilon = list(cfg.dqn.epsilon)
    if len(epsilon) != 2:
        raise UserError(f"dqn.epsilon={epsilon} must be 2 numbers, at first and after the decay")
    for key, value in [*fractions.items(), *(("epsilon", value) for value in epsilon)]:
        if not 0 <= value <= 1:
            raise UserError(f"dqn.{key}={value} must lie in [0, 1]")


def describe(cfg: DictConfig, runtime: config.Runtime) -> Job:
    """Name and identity of a run, and what of it phase 0 depends on."""
    identity = config.identity_values(cfg, runtime, PHASE_VERSION)
    for key in NOT_IDENTITY:
        del identity[key]
    identity["environment"] = envs.backend()
    # Phase 1's length counts in phase 0 too: exploration ends after a share of the whole run.
    shared = {key: value for key, value in identity.items() if key not in PHASE_0_IGNORES}
    shared["model"] = cfg.model.name
    return Job("atari", f"{cfg.game}-{cfg.scale}", f"{cfg.method.name}-s{cfg.seed}", cfg, identity, shared)


def announce(cfg: DictConfig, runtime: config.Runtime) -> None:
    """The first line: what runs, at which scale, and how to run the paper's."""
    budget = cfg.budget
    logger.info(
        "atari %s, %s seed=%d, scale=%s: %s agent steps, replay ratio %s, network of width %d, buffer of %s, "
        "%s on %s.%s",
        cfg.game, config.method_words(cfg), cfg.seed, cfg.scale, "+".join(f"{steps:,}" for steps in budget.steps),
        f"{cfg.replay_ratio:g}", budget.width, f"{budget.buffer:,}", runtime.precision, runtime.device,
        "" if cfg.scale == "paper" else " Too short to rank methods; the paper's protocol: python -m "
        f"experiments.atari game={cfg.game} {config.method_words(cfg)} scale=paper",
    )  # fmt: skip


class Schedule:
    """What is due at which agent step, in plain numbers, since the loop asks at every step."""

    def __init__(self, cfg: DictConfig) -> None:
        budget, dqn = cfg.budget, cfg.dqn
        self.ends = [budget.steps[0], sum(budget.steps)]
        self.environments, self.batch_size = dqn.environments, dqn.batch_size
        self._learning_starts, self._replay_ratio = budget.learning_starts, cfg.replay_ratio
        self.most_updates = int(dqn.environments * cfg.replay_ratio) + 1  # with one step
        self._epsilon, self._decay = tuple(dqn.epsilon), dqn.exploration_fraction * sum(budget.steps)
        self._target, self._restart = budget.target_every, budget.restart_every
        self._log, self._eval = budget.log_every, budget.eval_every

    def epsilon(self, step: int) -> float:
        """Probability of a random action at `step`."""
        first, last = self._epsilon
        return first + (last - first) * min(step / self._decay, 1.0) if self._decay else last

    def updates(self, step: int) -> int:
        """How many updates come with the step that all environments take at `step`."""
        if step < self._learning_starts:
            return 0
        return int((step + self.environments) * self._replay_ratio) - int(step * self._replay_ratio)

    def updates_target(self, step: int) -> bool:
        """Whether the target network is updated after `step`."""
        return step >= self._learning_starts and step % self._target == 0

    def restarts(self, step: int) -> bool:
        """Whether the environments are started afresh at `step`."""
        return step % self._restart == 0

    def logs(self, step: int) -> bool:
        """Whether a row is written after `step`."""
        return step % self._log == 0 or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        """Whether the policy is evaluated after `step`."""
        return step % self._eval == 0 or step in self.ends


def summarise(rows: list[dict[str, Any]], game: str) -> dict[str, Any]:
    """Final training and evaluation returns of a run, and the mean over the rows of phase 1."""
    after = [row["train/return"] for row in rows if row["phase"] == 1 and row.get("train/return") is not None]
    evaluated = [row["eval/return"] for row in rows if "eval/return" in row]
    normalised = games.human_normalised(game, evaluated[-1])
    human = "" if normalised is None else f", {normalised:.1%} of the way from random to human"
    return {
        "final": after[-1] if after else None,
        "final_eval": evaluated[-1],
        "final_eval_human_normalised": normalised,
        "mean_of_last_phase": sum(after) / len(after) if after else None,
        "result": f"return {evaluated[-1]:,.0f}{human}",
    }
