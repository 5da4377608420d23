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
        "epsilon_decay_starts": 20_000, "eval_epsilon": 0.001,
    }  # fmt: skip
    assert cfg.env == {"sticky": "agent_step"}
    assert (cfg.optimizer_at_boundary, cfg.method.coefficient, cfg.precision) == ("keep", 0.8, "fp32")
    fire = composed("scale=paper").method
    assert (fire.name, fire.solver, fire.steps) == ("fire", "newton_schulz", 10)


def test_epsilon() -> None:
    """It is 1 until learning starts and falls linearly over a tenth of the run; at other scales from the first step."""
    paper = Schedule(composed("scale=paper"))
    assert [paper.epsilon(step) for step in (0, 4, 19_996, 20_000)] == [1, 1, 1, 1]
    expected = {20_004: 1 - 0.99 * 4 / 250_000, 145_000: 0.505, 269_996: 0.01 + 0.99 * 4 / 250_000, 270_000: 0.01}
    for step, epsilon in (expected | {270_004: 0.01, 2_500_000: 0.01}).items():
        assert paper.epsilon(step) == pytest.approx(epsilon, abs=1e-12)
    assert paper.epsilon(20_004) < 1
    later = Schedule(composed("scale=paper", "budget.learning_starts=40_000"))
    assert (later.epsilon(40_000), later.epsilon(290_000)) == (1, pytest.approx(0.01))
    for scale, steps in (("smoke", 800), ("laptop", 60_000)):
        other = Schedule(composed(f"scale={scale}"))
        for step in range(0, steps, steps // 100):
            assert other.epsilon(step) == 1 + (0.01 - 1) * min(step / (0.1 * steps), 1)  # to the bit
    at_once = Schedule(composed("scale=smoke", "dqn.exploration_fraction=0", "dqn.epsilon_decay_starts=8"))
    assert [at_once.epsilon(step) for step in (0, 4, 8, 12)] == [1, 1, 0.01, 0.01]


def test_schedule_of_the_paper() -> None:
    schedule = Schedule(composed("scale=paper"))
    assert (schedule.updates(19_996), schedule.updates(20_000)) == (0, 4)
    assert [step for step in range(0, 2_500_001, 4) if schedule.evaluates(step)] == list(range(0, 2_500_001, 250_000))
    assert schedule.logs(1_250_000)
    assert not schedule.updates_target(18_000)
    assert schedule.updates_target(22_000)
    assert schedule.updates_target(1_250_000)  # so the target network is a copy before anything is reset


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
    others = ("game=breakout", "seed=1", "replay_ratio=0.5", "budget.steps=[30_000,40_000]", "threads=7")
    for other in (*others, "env.sticky=agent_step", "dqn.epsilon_decay_starts=2000"):
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
    assert "the loss or gradient is not finite in phase 0, by step 200" in printed
