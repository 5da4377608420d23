"""Configuration: the paper's protocol, what makes two runs the same, and bad input in one line."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import DictConfig

from experiments.common.config import build_method, compose_domain
from experiments.common.domain import describe
from experiments.common.errors import UserError
from experiments.common.runtime import resolve_runtime
from experiments.humanoid import envs
from experiments.humanoid.config import HumanoidConfig
from experiments.humanoid.domain import HUMANOID
from experiments.humanoid.train import schedule_of


def composed(*overrides: str) -> DictConfig:
    return compose_domain("humanoid", HumanoidConfig, [*overrides, "outputs_dir=outputs", "device=cpu"])


def directories(data_dir: Path, *overrides: str) -> tuple[Path, Path]:
    cfg = composed("env.backend=native", f"data_dir={data_dir}", *overrides)
    HUMANOID.check(cfg)
    job = describe(HUMANOID, cfg, resolve_runtime(cfg), build_method(cfg), None)
    return job.run_dir, job.phase_dir


def test_paper_scale_is_the_papers_protocol() -> None:
    cfg = composed("experiment=fig4b", "scale=paper", "method=shrink_perturb")
    budget = cfg.budget
    assert list(budget.steps) == [500_000, 500_000]
    assert (budget.actor_width, budget.actor_blocks, budget.critic_width, budget.critic_blocks) == (128, 1, 512, 2)
    assert (budget.batch_size, budget.buffer, budget.random_actions) == (256, 1_000_000, 5000)
    assert (budget.eval_every, budget.eval_episodes) == (20_000, 10)
    assert dict(cfg.optimizer) == {"learning_rate": 1e-4, "weight_decay": 1e-2}
    assert cfg.sac == {
        "action_repeat": 2, "replay_ratio": 2, "discount": 0.99, "temperature": 0.01, "target_entropy": -0.5,
        "tau": 0.005,
    }  # fmt: skip
    assert (cfg.method.coefficient, cfg.optimizer_at_boundary, cfg.precision) == (0.8, "reset", "fp32")
    assert composed("method=none").optimizer_at_boundary == "keep"
    assert composed("method=none", "optimizer_at_boundary=reset").optimizer_at_boundary == "reset"
    fire = composed("scale=paper")
    assert (fire.method.name, fire.method.solver, fire.method.steps) == ("fire", "newton_schulz", 10)
    assert list(fire.model.scope.inject) == ["actor.mean", "actor.log_std", "critic.head"]


def test_discount_is_simbas_heuristic() -> None:
    actions = envs.MAX_STEPS / composed().sac.action_repeat
    assert composed().sac.discount == min(max((actions / 5 - 1) / (actions / 5), 0.95), 0.995)


def test_schedule_of_the_paper() -> None:
    schedule = schedule_of(composed("scale=paper"))
    assert not schedule.learns(9998)
    assert schedule.learns(10_000)
    assert (schedule.updates(9998), schedule.updates(10_000)) == (0, 2)
    steps = range(2, 1_000_001, 2)
    assert [step for step in steps if schedule.evaluates(step)] == list(range(20_000, 1_000_001, 20_000))


@pytest.mark.parametrize(("ratio", "expected"), [("0.5", {0, 1}), ("2", {2}), ("1.5", {1, 2})])
def test_replay_ratio_is_updates_an_action(ratio: str, expected: set[int]) -> None:
    schedule = schedule_of(composed("scale=smoke", f"sac.replay_ratio={ratio}"))
    due = [schedule.updates(step) for step in range(200, 1200, 2)]
    assert sum(due) == pytest.approx(float(ratio) * 500, abs=1)
    assert set(due) == expected


def test_identity(robot_dir: Path) -> None:
    run, phase = directories(robot_dir, "method=fire")
    assert run.parts[:3] == ("outputs", "humanoid", "h1-walk-laptop")
    for same in ("record_video=true", "checkpoint_seconds=5", "task=walk", "wandb.mode=offline"):
        assert directories(robot_dir, "method=fire", same) == (run, phase)
    for other in ("method.steps=5", "optimizer_at_boundary=keep", "sharpness=32"):
        assert directories(robot_dir, "method=fire", other)[0] != run
        assert directories(robot_dir, "method=fire", other)[1] == phase
    for method in ("none", "plasticity_injection"):
        assert directories(robot_dir, f"method={method}")[1] == phase
    for other in ("task=h1-run", "seed=1", "sac.tau=0.01", "budget.steps=[15_000,16_000]", "threads=7"):
        assert directories(robot_dir, "method=fire", other)[0] != run
        assert directories(robot_dir, "method=fire", other)[1] != phase


@pytest.mark.parametrize("what", ["version", "backend"])
def test_simulator_is_part_of_the_identity(what: str, robot_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, phase = directories(robot_dir)
    if what == "version":
        monkeypatch.setattr("experiments.humanoid.envs.metadata.version", lambda _: "9.9.9")
    else:
        monkeypatch.setitem(sys.modules, "humanoid_bench", ModuleType("humanoid_bench"))
    other_run, other_phase = directories(robot_dir, "env.backend=auto")
    assert run != other_run
    assert phase != other_phase


def test_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """auto is HumanoidBench's package where it can be imported, and ours where not, with a word where that is odd."""
    monkeypatch.setitem(sys.modules, "humanoid_bench", None)  # cannot be imported
    assert envs.resolve_backend("auto") == "native"
    with pytest.raises(UserError, match=r"env.backend=humanoid_bench cannot be imported .*; install its pins"):
        envs.resolve_backend("humanoid_bench")
    monkeypatch.delitem(sys.modules, "humanoid_bench")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "humanoid_bench.py").write_text("raise AttributeError('other MuJoCo')")
    assert envs.resolve_backend("auto") == "native"
    with pytest.raises(UserError, match=r"fails to import \(other MuJoCo\); install its pins"):
        envs.resolve_backend("humanoid_bench")
    (tmp_path / "humanoid_bench.py").write_text("")
    assert envs.resolve_backend("auto") == envs.resolve_backend("humanoid_bench") == "humanoid_bench"
    assert envs.resolve_backend("native") == "native"
