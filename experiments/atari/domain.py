"""The description of the Atari domain."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import fire
from experiments.atari import envs, games
from experiments.atari.config import AtariConfig
from experiments.common.domain import Domain, Results
from experiments.common.errors import UserError
from experiments.common.experiment import Experiment
from experiments.common.runtime import Runtime
from experiments.rl import video


class Atari(Domain):
    """High-replay-ratio DQN on Atari games (paper, section 4.3 and Figure 4a)."""

    name = "atari"
    schema = AtariConfig
    phase_version = 2
    results = Results(
        metric="train/return",
        title="return of training episodes",
        step="env_step",
        steps="agent steps",
        figure="Figure 4(a)",
        panels={"asterix": "dqn_asterix", "beam_rider": "dqn_beamrider", "demon_attack": "dqn_demonattack"},
        paper_step=1e6,
        from_start=lambda benchmark: True,
        apart={"eval/return": ("evaluation, epsilon 0.001", "evaluation")},
        axis="return",
        decimals=0,
        normalised=("human-normalised", games.human_normalised),
        warning="too short to rank methods",
    )

    def check(self, cfg: DictConfig) -> None:
        """Raise UserError for names that are not known and values that do not fit together; writes the game as ALE
        names it."""
        if cfg.record_video:
            video.check()
        cfg.game = games.resolve(cfg.game)
        if cfg.model.name != "nature_cnn":
            raise UserError(f"model.name={cfg.model.name} is unknown; valid: nature_cnn")
        if cfg.precision == "fp16":
            raise UserError("precision=fp16 needs loss scaling, which this domain has not; use bf16")
        budget, count = cfg.budget, cfg.dqn.environments
        keys = ("target_every", "log_every", "eval_every", "restart_every")
        for name, value in [("steps", step) for step in budget.steps] + [(key, budget[key]) for key in keys]:
            if value % count:
                raise UserError(f"budget.{name}={value} is not a multiple of dqn.environments={count}")
        smallest = 2 * envs.STACK * count
        for key in ("buffer", "learning_starts"):
            if budget[key] < smallest:
                raise UserError(
                    f"budget.{key}={budget[key]} must be at least {smallest}, two stacks of every environment"
                )
        if budget.learning_starts >= sum(budget.steps):
            raise UserError(
                f"budget.learning_starts={budget.learning_starts} lies beyond the run's {sum(budget.steps)} steps"
            )

    def benchmark(self, cfg: DictConfig) -> str:
        """The game."""
        return cfg.game

    def choices(self, cfg: DictConfig) -> list[str]:
        """The word that chooses it."""
        return [f"game={cfg.game}"]

    def headline(self, cfg: DictConfig, opened: Any) -> str:
        """Steps, replay ratio, width and buffer."""
        budget = cfg.budget
        return (
            f"{'+'.join(f'{steps:,}' for steps in budget.steps)} agent steps, replay ratio {cfg.replay_ratio:g}, "
            f"network of width {budget.width}, buffer of {budget.buffer:,}"
        )

    def extra_identity(self, cfg: DictConfig, opened: Any) -> dict[str, Any]:
        """The version of the emulator."""
        return {"environment": envs.backend()}

    def experiment(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, opened: Any) -> Experiment:
        """Make the environments, the replay buffer and the network."""
        from experiments.atari.train import AtariTraining

        return AtariTraining(cfg, runtime, method)

    def revisit(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, run_dir: Path) -> None:
        """Record a video, if there should be one."""
        if cfg.record_video and not video.recorded(run_dir):
            from experiments.atari.video import finished_learner, record

            record(finished_learner(cfg, runtime, method, run_dir), cfg, run_dir)


ATARI = Atari()
