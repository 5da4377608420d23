"""The description of the humanoid domain."""

import os
import sys
from ctypes.util import find_library
from typing import Any

from omegaconf import DictConfig

import fire
from experiments.common.config import data_folder
from experiments.common.errors import UserError
from experiments.common.experiment import Experiment
from experiments.common.runtime import Runtime
from experiments.humanoid import assets, tasks
from experiments.humanoid.config import HumanoidConfig
from experiments.rl.domain import RESULTS, AgentDomain, check_multiples

OPENGL = ("egl", "osmesa", "glfw", "glx", "wgl", "cgl")
SWITCHES = (
    "disable",
    "disabled",
    "off",
    "false",
    "0",
    "enable",
    "enabled",
    "on",
    "true",
    "1",
)  # which MuJoCo takes too


class Humanoid(AgentDomain):
    """SimBa-SAC on HumanoidBench (paper, section 4.3 and Figure 4b)."""

    name = "humanoid"
    schema = HumanoidConfig
    model = "simba"
    benchmark_key = "task"
    results = RESULTS(
        metric="eval/return",
        title="return of evaluation episodes",
        steps="environment steps",
        figure="Figure 4(b)",
        panels={"h1-walk": "sac_walk", "h1-balance_simple": "sac_balance", "h1-run": "sac_run"},
        apart={"train/return": ("training episodes", "training")},
        decimals=1,
        normalised=("success-normalised", tasks.normalised),
    )

    def check(self, cfg: DictConfig) -> None:
        """Raise UserError for names that are not known, values that do not fit together, and missing models; writes
        task and backend as they are called here."""
        super().check(cfg)
        if cfg.record_video:
            choose_opengl()
        check_opengl()
        from experiments.humanoid import envs  # which imports MuJoCo

        cfg.task = tasks.resolve(cfg.task)
        budget, repeat = cfg.budget, cfg.sac.action_repeat
        check_multiples(budget, ("log_every", "eval_every"), repeat, "sac.action_repeat")
        actions = sum(budget.steps) // repeat
        if budget.random_actions >= actions:
            raise UserError(f"budget.random_actions={budget.random_actions} lies beyond the run's {actions} actions")
        cfg.env.backend = envs.resolve_backend(cfg.env.backend)
        if cfg.env.backend == "native":
            assets.check(data_folder(cfg))

    def headline(self, cfg: DictConfig, opened: Any) -> str:
        budget, environment = cfg.budget, self.extra_identity(cfg, opened)["environment"]
        return (
            f"{'+'.join(f'{steps:,}' for steps in budget.steps)} environment steps, {cfg.sac.replay_ratio:g} updates "
            f"for each {cfg.sac.action_repeat}, actor of width {budget.actor_width}, critics of {budget.critic_width}, "
            f"{environment['name']} environment on MuJoCo {environment['mujoco']}"
        )

    def extra_identity(self, cfg: DictConfig, opened: Any) -> dict[str, Any]:
        from experiments.humanoid import envs

        return {"environment": envs.describe(cfg.env.backend)}

    def experiment(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, opened: Any) -> Experiment:
        from experiments.humanoid.train import HumanoidTraining

        return HumanoidTraining(cfg, runtime, method)


def choose_opengl() -> None:
    """Choose what draws where there is no screen: EGL, else OSMesa, unless MUJOCO_GL is set. To be called before the
    first import of MuJoCo, which reads that variable then.

    Raises:
        UserError: neither is installed.
    """
    if sys.platform == "linux" and "MUJOCO_GL" not in os.environ:
        found = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if find_library(library)]
        if not found:
            raise UserError(
                "record_video=true needs EGL or OSMesa (on Debian: libegl1 and libopengl0, or libosmesa6), and neither "
                "is installed"
            )
        os.environ["MUJOCO_GL"] = found[0]


def check_opengl() -> None:
    """Raise UserError for a MUJOCO_GL with which MuJoCo cannot be imported."""
    value = os.environ.get("MUJOCO_GL", "").lower().strip()
    if value not in ("", *OPENGL, *SWITCHES):
        raise UserError(f"MUJOCO_GL={value} is unknown; valid: {', '.join(OPENGL)}, disable")


HUMANOID = Humanoid()
