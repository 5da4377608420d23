"""The description of the humanoid domain."""

from typing import Any

from omegaconf import DictConfig

import fire
from experiments.common.config import data_folder
from experiments.common.domain import Results
from experiments.common.errors import UserError
from experiments.common.experiment import Experiment
from experiments.common.runtime import Runtime
from experiments.humanoid import assets, tasks
from experiments.humanoid.config import HumanoidConfig
from experiments.rl.domain import AgentDomain


class Humanoid(AgentDomain):
    """SimBa-SAC on HumanoidBench (paper, section 4.3 and Figure 4b)."""

    name = "humanoid"
    schema = HumanoidConfig
    phase_version = 2
    model = "simba"
    results = Results(
        metric="eval/return",
        title="return of evaluation episodes",
        step="env_step",
        steps="environment steps",
        figure="Figure 4(b)",
        panels={"h1-walk": "sac_walk", "h1-balance_simple": "sac_balance", "h1-run": "sac_run"},
        paper_step=1e6,
        from_start=lambda benchmark: True,
        apart={"train/return": ("training episodes", "training")},
        axis="return",
        decimals=1,
        normalised=("success-normalised", tasks.normalised),
        warning="too short to rank methods",
    )

    def check(self, cfg: DictConfig) -> None:
        """Raise UserError for names that are not known, values that do not fit together, and missing models; writes
        task and backend as they are called here."""
        from experiments.humanoid import envs

        super().check(cfg)
        cfg.task = tasks.resolve(cfg.task)
        budget, repeat = cfg.budget, cfg.sac.action_repeat
        keys = ("log_every", "eval_every")
        for name, value in [("steps", step) for step in budget.steps] + [(key, budget[key]) for key in keys]:
            if value % repeat:
                raise UserError(f"budget.{name}={value} is not a multiple of sac.action_repeat={repeat}")
        actions = sum(budget.steps) // repeat
        if budget.random_actions >= actions:
            raise UserError(f"budget.random_actions={budget.random_actions} lies beyond the run's {actions} actions")
        cfg.env.backend = envs.resolve_backend(cfg.env.backend)
        if cfg.env.backend == "native":
            assets.check(data_folder(cfg))

    def benchmark(self, cfg: DictConfig) -> str:
        """The task."""
        return cfg.task

    def choices(self, cfg: DictConfig) -> list[str]:
        """The word that chooses it."""
        return [f"task={cfg.task}"]

    def headline(self, cfg: DictConfig, opened: Any) -> str:
        """Steps, replay ratio, widths and where the task comes from."""
        budget, environment = cfg.budget, self.extra_identity(cfg, opened)["environment"]
        return (
            f"{'+'.join(f'{steps:,}' for steps in budget.steps)} environment steps, {cfg.sac.replay_ratio:g} updates "
            f"for each {cfg.sac.action_repeat}, actor of width {budget.actor_width}, critics of {budget.critic_width}, "
            f"{environment['name']} environment on MuJoCo {environment['mujoco']}"
        )

    def extra_identity(self, cfg: DictConfig, opened: Any) -> dict[str, Any]:
        """The simulator and its version."""
        from experiments.humanoid import envs

        return {"environment": envs.describe(cfg.env.backend)}

    def experiment(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, opened: Any) -> Experiment:
        """Make the environments, the replay buffer and the networks."""
        from experiments.humanoid.train import HumanoidTraining

        return HumanoidTraining(cfg, runtime, method)


HUMANOID = Humanoid()
