"""The description of the Atari domain."""

from importlib import metadata
from typing import Any

from omegaconf import DictConfig

import fire
from experiments.atari import envs, games
from experiments.atari.config import AtariConfig
from experiments.common.errors import UserError
from experiments.common.experiment import Experiment
from experiments.common.runtime import Runtime
from experiments.rl.domain import RESULTS, AgentDomain, check_multiples


class Atari(AgentDomain):
    """High-replay-ratio DQN on Atari games (paper, section 4.3 and Figure 4a)."""

    name = "atari"
    schema = AtariConfig
    model = "nature_cnn"
    benchmark_key = "game"
    results = RESULTS(
        metric="train/return",
        title="return of training episodes",
        steps="agent steps",
        figure="Figure 4(a)",
        panels={"asterix": "dqn_asterix", "beam_rider": "dqn_beamrider", "demon_attack": "dqn_demonattack"},
        apart={"eval/return": ("evaluation, epsilon 0.001", "evaluation")},
        decimals=0,
        normalised=("human-normalised", games.human_normalised),
    )

    def check(self, cfg: DictConfig) -> None:
        """Raise UserError for names that are not known and values that do not fit together; writes the game as ALE
        names it."""
        super().check(cfg)
        cfg.game = games.resolve(cfg.game)
        budget, count = cfg.budget, cfg.dqn.environments
        check_multiples(budget, ("target_every", "log_every", "eval_every", "restart_every"), count, "dqn.environments")
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

    def headline(self, cfg: DictConfig, opened: Any) -> str:
        budget = cfg.budget
        return (
            f"{'+'.join(f'{steps:,}' for steps in budget.steps)} agent steps, replay ratio {cfg.replay_ratio:g}, "
            f"network of width {budget.width}, buffer of {budget.buffer:,}"
        )

    def extra_identity(self, cfg: DictConfig, opened: Any) -> dict[str, Any]:
        return {"environment": {"name": "ale_py.AtariVectorEnv", "version": metadata.version("ale-py")}}

    def experiment(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, opened: Any) -> Experiment:
        from experiments.atari.train import AtariTraining

        return AtariTraining(cfg, runtime, method)


ATARI = Atari()
