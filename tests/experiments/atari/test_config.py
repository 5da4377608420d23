"""Configuration: the paper's protocol, what makes two runs the same, and bad input in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from experiments.atari.config import AtariConfig
from experiments.atari.domain import ATARI
from experiments.atari.train import Schedule
from experiments.common.config import build_method, compose_domain
from experiments.common.domain import describe
from experiments.common.runtime import resolve_runtime

Atari = Callable[..., tuple[int, str]]


def composed(*overrides: str) -> DictConfig:
    return compose_domain("atari", AtariConfig, [*overrides, "outputs_dir=outputs", "device=cpu"])


def directories(*overrides: str) -> tuple[Path, Path]:
    cfg = composed(*overrides)
    ATARI.check(cfg)
    job = describe(ATARI, cfg, resolve_runtime(cfg), build_method(cfg), None)
    return job.run_dir, job.phase_dir


def test_paper_scale_is_the_papers_protocol() -> None:
    cfg = composed("experiment=fig4a", "scale=paper", "method=shrink_perturb")
    ATARI.check(cfg)
    budget = cfg.budget
    assert list(budget.steps) == [1_250_000, 1_250_000]
    assert (budget.width, budget.hidden, budget.buffer, budget.learning_starts) == (32, 512, 1_000_000, 20_000)
    assert (budget.target_every, budget.log_every, budget.eval_every, budget.eval_steps) == (
        2000, 50_000, 250_000, 125_000,
    )  # fmt: skip
    assert (cfg.replay_ratio, budget.restart_every) == (1, 250_000)
    assert dict(cfg.optimizer) == {"learning_rate": 6.25e-5, "eps": 1.5e-4}
    assert cfg.dqn == {
        "environments": 4, "batch_size": 32, "discount": 0.99, "epsilon": [1.0, 0.01], "exploration_fraction": 0.1,
        "eval_epsilon": 0.001,
    }  # fmt: skip
    assert (cfg.optimizer_at_boundary, cfg.method.coefficient, cfg.precision) == ("keep", 0.8, "fp32")
    fire = composed("scale=paper").method
    assert (fire.name, fire.solver, fire.steps) == ("fire", "newton_schulz", 10)


def test_schedule_of_the_paper() -> None:
    schedule = Schedule(composed("scale=paper"))
    assert schedule.epsilon(0) == 1
    assert schedule.epsilon(125_000) == pytest.approx(0.505)
    assert schedule.epsilon(250_000) == schedule.epsilon(2_000_000) == pytest.approx(0.01)
    assert (schedule.updates(19_996), schedule.updates(20_000)) == (0, 4)
    assert [step for step in range(0, 2_500_001, 4) if schedule.evaluates(step)] == list(range(0, 2_500_001, 250_000))
    assert schedule.logs(1_250_000)
    assert not schedule.updates_target(18_000)
    assert schedule.updates_target(22_000)


@pytest.mark.parametrize(("ratio", "expected"), [("0.25", {1}), ("0.1", {0, 1}), ("1", {4}), ("0.3", {1, 2})])
def test_replay_ratio_is_updates_a_step(ratio: str, expected: set[int]) -> None:
    schedule = Schedule(composed("scale=smoke", f"replay_ratio={ratio}"))
    due = [schedule.updates(step) for step in range(200, 1200, 4)]
    assert sum(due) == pytest.approx(float(ratio) * 1000, abs=1)
    assert set(due) == expected


def test_identity() -> None:
    run, phase = directories("method=fire")
    assert run.parts[:3] == ("outputs", "atari", "asterix-laptop")
    for same in ("record_video=true", "checkpoint_seconds=5", "game=Asterix", "wandb.mode=offline"):
        assert directories("method=fire", same) == (run, phase)
    for other in ("method.steps=5", "optimizer_at_boundary=reset", "sharpness=32"):
        assert directories("method=fire", other)[0] != run
        assert directories("method=fire", other)[1] == phase
    assert directories("method=plasticity_injection")[1] == phase
    for other in ("game=breakout", "seed=1", "replay_ratio=0.5", "budget.steps=[30_000,40_000]", "threads=7"):
        assert directories("method=fire", other)[0] != run
        assert directories("method=fire", other)[1] != phase


def test_environments_version_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    run, phase = directories("method=fire")
    monkeypatch.setattr("experiments.atari.domain.metadata.version", lambda _: "9.9.9")
    other_run, other_phase = directories("method=fire")
    assert run != other_run
    assert phase != other_phase


def test_not_finite_loss(atari: Atari, tmp_path: Path) -> None:
    status, printed = atari("method=none", "optimizer.learning_rate=1e30")
    assert status == 1
    assert "the loss or gradient is not finite in phase 0, by step 400" in printed
