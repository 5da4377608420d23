"""The description of the toy domain."""

from typing import Any

from experiments.toy.config import ToyConfig
from omegaconf import DictConfig

import fire
from experiments.common.domain import Domain, Results
from experiments.common.experiment import Experiment
from experiments.common.runtime import Runtime


class Toy(Domain):
    """Sines."""

    name = "toy"
    schema = ToyConfig
    phase_version = 1
    compile_on_cuda = "true"
    results = Results(metric="test/loss", title="loss", step="step", steps="steps", figure="", panels={})

    def benchmark(self, cfg: DictConfig) -> str:
        """There is one."""
        return "sines"

    def choices(self, cfg: DictConfig) -> list[str]:
        """Nothing to choose."""
        return []

    def headline(self, cfg: DictConfig, opened: Any) -> str:
        """The width."""
        return f"width {cfg.budget.width}"

    def experiment(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, opened: Any) -> Experiment:
        """The training."""
        from experiments.toy.train import ToyTraining

        return ToyTraining(cfg, runtime, method)


TOY = Toy()
