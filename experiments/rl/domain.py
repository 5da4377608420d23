"""What the descriptions of both domains of reinforcement learning share."""

from pathlib import Path
from typing import cast

from omegaconf import DictConfig

import fire
from experiments.common import checkpoint
from experiments.common.domain import Domain
from experiments.common.errors import UserError
from experiments.common.runtime import Runtime
from experiments.rl import video
from experiments.rl.training import AgentTraining


class AgentDomain(Domain):
    """A domain in which an agent learns.

    Attributes:
        model: the only name that `model.name` may have.
    """

    model: str

    def check(self, cfg: DictConfig) -> None:
        """Raise UserError for what neither domain can do."""
        if cfg.record_video:
            video.check()
        if cfg.model.name != self.model:
            raise UserError(f"model.name={cfg.model.name} is unknown; valid: {self.model}")
        if cfg.precision == "fp16":
            raise UserError("precision=fp16 needs loss scaling, which this domain has not; use bf16")

    def revisit(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, run_dir: Path) -> None:
        """Record a video of a finished run, if there should be one."""
        if cfg.record_video and not video.recorded(run_dir):
            weights = checkpoint.final_weights(run_dir)
            cfg.budget.buffer = 64  # nothing is stored
            training = cast(AgentTraining, self.experiment(cfg, runtime, method, None))
            training.learner.restructure(method, training.initial, training.scope)
            training.load_final_weights(weights)
            training.record_video(run_dir)
