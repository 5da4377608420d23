"""The benchmarks measure what they say, on cases small enough for a test."""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch

import fire
from experiments.common.workspace import git_revision
from experiments.vision import models
from scripts.benchmark import __main__ as command
from scripts.benchmark import atari, core, humanoid, language, processes, standard_loop, vision
from scripts.benchmark.memory import peak_of_new_storage
from scripts.benchmark.timing import Limit, alternate, ratio
from tests.conftest import REPOSITORY


def measure(name: str, out: Path, *more: str, clock: Callable[[], float] = time.perf_counter) -> pd.DataFrame:
    """What `python -m scripts.benchmark <name>` writes."""
    arguments = [name, "--device", "cpu", "--repeats", "1", "--out", str(out), *more]
    assert command.main(arguments, clock) == 0
    return written(name, out)


def written(name: str, out: Path) -> pd.DataFrame:
    """The rows that a benchmark has written, which name where they come from."""
    text, results = (out / f"{name}-cpu.md").read_text(), pd.read_csv(out / f"{name}-cpu.csv")
    assert set(results.commit) == {git_revision()}
    assert set(results.torch) == {torch.__version__}
    (where,) = set(results.machine)
    version = sys.version.split()[0]
    assert text.splitlines()[0] == f"{where}, PyTorch {torch.__version__}, Python {version}, commit {git_revision()}"
    value = "seconds" if "seconds" in results else "steps_per_second"
    assert (results[f"{value}_min"] <= results[value]).all()
    assert (results[value] <= results[f"{value}_max"]).all()
    assert (results.repeats >= 1).all()
    return results


def test_failed_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(processes.SECONDS, "cpu", 0.0)
    with pytest.raises(RuntimeError, match="2 of 2 processes failed: -m no_such_module cpu"):
        processes.together("no_such_module", "cpu", 2)


def test_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = partial(models.build, "resnet18", 10, (3, 32, 32), 8, 0)
    monkeypatch.setattr(core, "CASES", {"small": small, "two": lambda: two()})

    def two() -> torch.nn.Module:
        return core.linears((40, 20), (20, 20))

    runs = []
    monkeypatch.setattr(fire, "fire_", lambda *a, real=fire.fire_, **k: runs.append(k["solver"]) or real(*a, **k))
    results = measure("core", tmp_path).set_index(["case", "solver"])
    assert runs.count("svd") == 2  # once for each network: it is not run in turns
    assert runs.count("polar_express") == 2 * 4  # two rounds, DfI, memory
    for case in ("small", "two"):
        rows = results.loc[case]
        assert (rows.seconds > 0).all()
        assert rows.loc["plain loop"].loop_over_this == 1
        assert np.isnan(rows.loc["svd"].loop_over_this)
        assert rows.loc["svd"].dfi < 1e-8
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
    results = measure("vision", tmp_path)
    training = results[results.case.str.startswith("training")].set_index("loop")
    assert set(training.index) == {"ours", *(f"standard, {n} workers" for n in vision.WORKERS["cpu"])}
    assert list(training.images_per_second * training.seconds) == pytest.approx([640] * len(training))
    whole = results[results.case.str.startswith("whole epoch")].set_index("loop")
    assert set(whole.index) == set(training.index)
    assert (whole.seconds > 0).all()
    assert set(results[results.case.str.startswith("sweep")].loop) == {"shared phase", "four separate runs"}


def test_vision_on_synthetic_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without CIFAR-10 and torchvision, and labelled so."""
    monkeypatch.setenv("FIRE_DATA", str(tmp_path / "nothing"))
    monkeypatch.setitem(vision.SCALES, "cpu", ["scale=smoke", "threads=1", "budget.train_images=128"])
    monkeypatch.setattr(vision, "find_spec", lambda name: None)
    results = measure("vision", tmp_path, "--synthetic")
    assert list(results.loop) == ["ours", "ours"]
    assert all(case.endswith("width 4, batch 64, fp32, synthetic images") for case in results.case)
    assert not (tmp_path / "nothing").exists()


def test_language(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_dir: Path) -> None:
    monkeypatch.setenv("FIRE_DATA", str(text_dir))
    monkeypatch.setitem(language.SCALES, "cpu", ["scale=smoke", "threads=1"])
    monkeypatch.setitem(language.PRECISIONS, "cpu", ("fp32",))
    monkeypatch.setattr(language, "ITERATIONS", 1)
    assert command.main(["language", "--device", "cpu", "--repeats=1", "--out", str(tmp_path), "--only=training*"]) == 0
    results = pd.read_csv(tmp_path / "language-cpu-training.csv")
    assert list(results.loop) == ["plain", "ours"]
    assert results.over_ours[1] == 1
    assert len(set((results.seconds * results.tokens_per_second).round())) == 1  # as many tokens in each


@pytest.mark.slow
def test_atari(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(atari, "CASES", {"the paper's network": ["scale=smoke", "replay_ratio=1"]})
    monkeypatch.setattr(atari, "STEPS", {"cpu": {"ours": 40, "plain": 20}})
    monkeypatch.setitem(processes.SECONDS, "cpu", 0.5)
    results = measure("atari", tmp_path)
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
    monkeypatch.setattr(humanoid, "STEPS", {"cpu": {"smoke": {"ours": 8, "plain": 4}}})
    monkeypatch.setattr(humanoid, "ENV_STEPS", 50)
    monkeypatch.setattr(humanoid, "FILL", 60)
    monkeypatch.setattr(processes, "together", lambda *_: 1.0)  # the same as Atari's
    results = measure("humanoid", tmp_path)
    assert list(results.loop[:5]) == ["ours", "plain", "ours, 1 process", "ours, 2 processes", "ours"]
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
    images, _ = vision.data.load(vision.DATA_SETS["cifar10"], data_dir, 50, 10, 0)
    ours, labels = images.batch(slice(0, 50))
    theirs = [standard_loop.Cifar10(images)[i] for i in range(50)]
    assert torch.allclose(torch.stack([image for image, _ in theirs]), ours, atol=1e-6)
    assert [label for _, label in theirs] == labels.tolist()


@pytest.mark.parametrize("name", ["core", "vision", "language", "atari"])
def test_committed_tables_are_those_of_the_rows(name: str) -> None:
    """Cells that were not measured are empty."""
    path = REPOSITORY / f"results/benchmark/{name}-h200.csv"
    table = {"core": core, "vision": vision, "language": language, "atari": atari}[name].table(pd.read_csv(path))
    assert path.with_suffix(".md").read_text().split("\n\n", 1)[1] == f"{table}\n"
    assert "nan" not in table


def test_timing_runs_in_turns() -> None:
    order = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, Limit(2), "cpu", lambda: None)
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
