"""The benchmarks measure what they say, on cases small enough for a test."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch

from experiments.vision import models
from scripts.benchmark import __main__ as command
from scripts.benchmark import atari, core, humanoid, processes, vision
from scripts.benchmark.memory import peak_of_new_storage
from scripts.benchmark.timing import alternate, ratio


def measure(name: str, monkeypatch: pytest.MonkeyPatch, out: Path) -> pd.DataFrame:
    """What `python -m scripts.benchmark <name>` writes."""
    monkeypatch.setattr(sys, "argv", ["benchmark", name, "--device", "cpu", "--repeats", "1", "--out", str(out)])
    assert command.main() == 0
    text = (out / f"{name}-cpu.md").read_text()
    assert text.splitlines()[0].endswith(sys.version.split()[0])
    assert torch.__version__ in text
    return pd.read_csv(out / f"{name}-cpu.csv")


def test_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(core, "CASES", {"small": lambda: models.build("resnet18", 8, 10, 0), "two": lambda: two()})

    def two() -> torch.nn.Module:
        return core.linears((40, 20), (20, 20))

    results = measure("core", monkeypatch, tmp_path).set_index(["case", "solver"])
    for case in ("small", "two"):
        rows = results.loc[case]
        assert (rows.seconds > 0).all()
        assert rows.loc["plain loop"].loop_over_this == 1
        # The loop is FIRE: what it leaves of the deviation from isometry is what `fire_` leaves.
        assert rows.loc["newton_schulz"].dfi == pytest.approx(rows.loc["plain loop"].dfi, rel=1e-3)
        assert rows.loc["polar_express"].dfi < 1e-8
        assert rows.loc["newton_schulz"].extra_bytes > rows.loc["newton_schulz"].largest_group_bytes
    # 4 m n^2 operations a step and matrix.
    assert core.loop_operations(two()) == 10 * 4 * (40 * 20 * 20 + 20**3)
    assert core.largest_group(two()) == 4 * 40 * 20


@pytest.mark.slow
def test_vision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_dir: Path) -> None:
    monkeypatch.setenv("FIRE_DATA", str(data_dir))
    monkeypatch.setitem(vision.SCALES, "cpu", ["scale=smoke"])
    monkeypatch.setattr(vision, "PROPORTIONS", {"train_images": 640, "test_images": 64, "epochs": "[2,1]"})
    results = measure("vision", monkeypatch, tmp_path)
    training = results[results.case.str.startswith("training")].set_index("loop")
    assert set(training.index) == {"ours", *(f"standard, {n} workers" for n in vision.WORKERS)}
    assert list(training.images_per_second * training.seconds) == pytest.approx([640] * len(training))
    whole = results[results.case.str.startswith("whole epoch")].set_index("loop")
    assert set(whole.index) == set(training.index)
    assert (whole.seconds > 0).all()
    assert set(results[results.case.str.startswith("sweep")].loop) == {"shared phase", "four separate runs"}


@pytest.mark.slow
def test_atari(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(atari, "CASES", {"the paper's network": ["scale=smoke", "replay_ratio=1"]})
    monkeypatch.setattr(atari, "STEPS", {"cpu": 40})
    monkeypatch.setattr(processes, "SECONDS", 0.5)
    results = measure("atari", monkeypatch, tmp_path)
    assert list(results.loop[:3]) == ["ours", *(f"plain, {name}" for name in atari.VECTORS)]
    assert list(results.loop[3:]) == ["ours, 1 process", "ours, 2 processes"]
    assert (results.steps_per_second > 0).all()


def test_plain_atari_loop_is_the_same_learner() -> None:
    """The same values from the same weights, and a loss that falls on the transitions it has."""
    cfg = atari.composed(["scale=smoke", "budget.buffer=400"], "cpu")
    cfg.optimizer.learning_rate = 1e-3
    plain = atari.PlainLoop(cfg, gym.vector.SyncVectorEnv, "cpu")
    states = torch.from_numpy(plain.states[:8, 0])
    with torch.no_grad():
        torch.testing.assert_close(plain.q(states), atari.models.build(cfg.budget, 9, 0)(states))
    assert plain.observations.shape == (4, 4, 84, 84)
    assert np.array_equal(plain.next_states[7, 0], plain.states[8, 0])
    before = [parameter.clone() for parameter in plain.q.parameters()]
    plain.advance(8)
    assert plain.step == 8
    assert not any(torch.equal(a, b) for a, b in zip(before, plain.q.parameters(), strict=True))


def test_humanoid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, robot_dir: Path) -> None:
    monkeypatch.setattr(humanoid, "default_data_dir", lambda: robot_dir)
    monkeypatch.setattr(humanoid, "CASES", {"the paper's networks": ["scale=smoke", f"data_dir={robot_dir}"]})
    monkeypatch.setattr(humanoid, "STEPS", {"cpu": {"smoke": 8}})
    monkeypatch.setattr(humanoid, "ENV_STEPS", 50)
    monkeypatch.setattr(humanoid, "FILL", 60)
    monkeypatch.setattr(humanoid, "together", lambda *_: None)  # the same as Atari's
    results = measure("humanoid", monkeypatch, tmp_path)
    assert list(results.loop[:3]) == ["ours", "plain", "ours"]
    assert results.over_ours[0] == 1
    assert (results.steps_per_second > 0).all()


def test_plain_humanoid_loop_is_the_same_learner(monkeypatch: pytest.MonkeyPatch, robot_dir: Path) -> None:
    """As many weights, the transitions of the simulation, and updates that change all of them."""
    monkeypatch.setattr(humanoid, "default_data_dir", lambda: robot_dir)
    cfg = humanoid.composed(["scale=smoke", f"data_dir={robot_dir}"], "cpu")
    plain, ours = humanoid.PlainLoop(cfg, "cpu"), humanoid.ours(cfg)

    def size(*networks: torch.nn.Module) -> int:
        return sum(p.numel() for network in networks for p in network.parameters())

    assert size(plain.actor) == size(ours.learner.agent.actor)
    assert size(*plain.critics) == size(ours.learner.agent.critic)
    assert np.array_equal(plain.next_states[7], plain.states[8])
    np.testing.assert_allclose(plain.mean, plain.states[: humanoid.FILL].mean(0), atol=1e-3)
    parameters = [p for network in (plain.actor, *plain.critics, *plain.targets) for p in network.parameters()]
    before = [parameter.clone() for parameter in parameters]
    plain.advance(4)
    assert plain.updates == 4
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_standard_loop_sees_the_same_images(data_dir: Path) -> None:
    images, _ = vision.data.load("cifar10", data_dir, 50, 10, 0)
    ours, labels = images.batch(slice(0, 50))
    theirs = [vision.Cifar10(images)[i] for i in range(50)]
    assert torch.allclose(torch.stack([image for image, _ in theirs]), ours, atol=1e-6)
    assert [label for _, label in theirs] == labels.tolist()


def test_timing_runs_in_turns() -> None:
    order = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, "cpu", lambda: None)
    assert order == ["a", "b"] * 3  # the first round warms up
    assert [len(values) for values in times.values()] == [2, 2]
    assert ratio([4.0, 9.0, 2.0], [2.0, 3.0, 2.0]) == 2.0


def test_memory_counts_what_is_alive() -> None:
    def function() -> torch.Tensor:
        a = torch.zeros(1000)
        b = a + 1
        del a
        return torch.cat([b, b])

    assert peak_of_new_storage(function) == 4 * 3000
