"""What the descriptions of both domains of reinforcement learning share."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, cast

from omegaconf import DictConfig

import fire
from experiments.common import checkpoint
from experiments.common.domain import Domain, Results
from experiments.common.errors import UserError
from experiments.common.runtime import Runtime
from experiments.common.wandb_mirror import VIDEO
from experiments.rl.training import AgentTraining
from experiments.rl.video import record

logger = logging.getLogger("fire")

RESULTS = partial(
    Results, step="env_step", paper_step=1e6, from_start=lambda benchmark: True, axis="return",
    warning="too short to rank methods",
)  # fmt: skip
"""Results with what both domains have in common."""


class AgentDomain(Domain):
    """A domain in which an agent learns.

    Attributes:
        model: the only name that `model.name` may have.
        benchmark_key: the setting that chooses the benchmark.
    """

    phase_version = 2
    model: ClassVar[str]
    benchmark_key: ClassVar[str]

    def check(self, cfg: DictConfig) -> None:
        """Raise UserError for what neither domain can do."""
        if cfg.record_video:
            try:
                import imageio_ffmpeg  # noqa: F401
            except ImportError as error:
                raise UserError(
                    f"record_video=true needs a package that is not there ({error}): pip install imageio-ffmpeg"
                ) from error
        if cfg.model.name != self.model:
            raise UserError(f"model.name={cfg.model.name} is unknown; valid: {self.model}")
        if cfg.precision == "fp16":
            raise UserError("precision=fp16 needs loss scaling, which this domain has not; use bf16")

    def benchmark(self, cfg: DictConfig) -> str:
        return cfg[self.benchmark_key]

    def choices(self, cfg: DictConfig) -> list[str]:
        return [f"{self.benchmark_key}={cfg[self.benchmark_key]}"]

    def revisit(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, run_dir: Path) -> None:
        """Record a video of a finished run, if there should be one."""
        if cfg.record_video and (run_dir / VIDEO).exists():
            logger.info("video: %s", run_dir / VIDEO)
        elif cfg.record_video:
            weights = checkpoint.final_weights(run_dir)
            cfg.budget.buffer = 64  # nothing is stored
            training = cast(AgentTraining, self.experiment(cfg, runtime, method, None))
            training.learner.restructure(method, training.initial, training.scope)
            training.load_final_weights(weights)
            record(*training.video(), run_dir)


def check_multiples(budget: DictConfig, keys: Sequence[str], unit: int, name: str) -> None:
    """Raise UserError unless the numbers of steps under `keys`, and those of each phase, are multiples of `unit`, the
    value of the setting `name`."""
    for key, steps in [("steps", steps) for steps in budget.steps] + [(key, budget[key]) for key in keys]:
        if steps % unit:
            raise UserError(f"budget.{key}={steps} is not a multiple of {name}={unit}")
