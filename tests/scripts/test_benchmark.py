"""The benchmarks measure what they say, on cases small enough for a test."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import fire
from experiments.common import config
from experiments.common.provenance import git_revision
from experiments.common.runtime import resolve_runtime
from experiments.vision import models
from scripts.benchmark import __main__ as command
from scripts.benchmark import atari, core, humanoid, language, methods, vision
from scripts.benchmark.cases import Case, Loop, measure, rates, table
from scripts.benchmark.peak_memory import peak_of_new_storage
from tests.conftest import REPOSITORY


def run(name: str, out: Path, *more: str, clock: Callable[[], float] = time.perf_counter) -> pd.DataFrame:
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
    for value in ("seconds", "per_second"):
        assert (results[f"{value}_min"] <= results[value]).all()
        assert (results[value] <= results[f"{value}_max"]).all()
    assert (results.repeats >= 1).all()
    return results


def test_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = {
        "small": lambda: models.build("resnet18", 10, (3, 32, 32), 8, 0),
        "two": lambda: core.linears((40, 20), (20, 20)),
    }
    monkeypatch.setattr(core, "CASES", small)
    solvers = []
    real = fire.fire_
    monkeypatch.setattr(fire, "fire_", lambda *a, **k: solvers.append(k["solver"]) or real(*a, **k))
    results = run("core", tmp_path).set_index(["case", "loop"])
    assert solvers.count("polar_express") == 2 * 2  # a warm-up and one turn of each network
    for case in ("small", "two"):
        rows = results.loc[case]
        assert (rows.seconds > 0).all()
        assert rows.loc["plain loop"].loop_over_this == 1
        # The loop is FIRE: what it leaves of the deviation from isometry is what `fire_` leaves.
        assert rows.loc["newton_schulz"].dfi == pytest.approx(rows.loc["plain loop"].dfi, rel=1e-3)
        assert rows.loc["polar_express"].dfi < 1e-8


@pytest.mark.slow
def test_vision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_dir: Path) -> None:
    monkeypatch.setenv("FIRE_DATA", str(data_dir))
    monkeypatch.setitem(vision.SCALES, "cpu", ["scale=smoke"])
    results = run("vision", tmp_path).set_index("loop")
    assert list(results.index) == ["ours", "standard, 0 workers", "standard, 2 workers"]
    budget = config.compose_domain("vision", vision.VisionConfig, ["scale=smoke"]).budget
    assert list(results.per_second * results.seconds) == pytest.approx([budget.train_images] * 3)


def test_vision_on_synthetic_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without CIFAR-10 and torchvision, and labelled so."""
    monkeypatch.setenv("FIRE_DATA", str(tmp_path / "nothing"))
    monkeypatch.setitem(vision.SCALES, "cpu", ["scale=smoke", "threads=1", "budget.train_images=128"])
    monkeypatch.setitem(sys.modules, "torchvision", None)
    arguments = ["vision", "--device=cpu", "--repeats=1", "--synthetic", "--only=ours", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    results = pd.read_csv(tmp_path / "vision-cpu-ours.csv")
    assert list(results.loop) == ["ours"]
    assert results.case[0].endswith("width 4, batch 32, fp32, synthetic images")
    assert not (tmp_path / "nothing").exists()


def test_methods(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every method of vision is in one of the two cases, and a boundary changes the network each time."""
    monkeypatch.setitem(vision.SCALES, "cpu", ["scale=smoke", "threads=1", "budget.train_images=128"])
    monkeypatch.setattr(methods, "STEPS", 3)
    arguments = ["methods", "--device=cpu", "--repeats=1", "--synthetic", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    results = pd.read_csv(tmp_path / "methods-cpu.csv").set_index("case")
    every = {*results.loop["training step"], *results.loop["boundary"]}
    assert every == fire.METHODS.keys() - {"plasticity_injection"}
    assert {"none", "fire", "dash"} <= {*results.loop["boundary"]}
    assert (results.milliseconds > 0).all()
    steps = results.loc["training step"]
    assert list(steps.milliseconds) == pytest.approx(list(steps.seconds / 3 * 1e3))
    memory = results.loc["boundary"].set_index("loop").peak_bytes
    network = 4 * sum(p.numel() for p in models.build("resnet18", 10, (3, 32, 32), 4, seed=0).parameters())
    assert 0 < memory.none < memory.fire < 2.5 * network
    assert memory.dash > 3 * network  # the gradients' averages, and a pass forwards and backwards
    loop = methods.boundary("fire", "cpu", True, ExitStack())
    moved = [loop.run() for _ in range(2) if loop.prepare() is None]
    assert moved[0] == moved[1] > 0


def test_standard_loop_sees_the_same_images(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    """And trains the same number of steps on them."""
    settings = ["scale=smoke", "threads=1", f"data_dir={data_dir}", "budget.train_images=50", "budget.batch_size=50"]
    cfg = config.compose_domain("vision", vision.VisionConfig, [*settings, "device=cpu"])
    seen: list[torch.Tensor] = []
    network = models.build("resnet18", 10, (3, 32, 32), 4, seed=0)
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    monkeypatch.setattr(models, "build", lambda *_, **__: network)
    train, test = vision.images(cfg, synthetic=False)
    loop = vision.standard(cfg, False, 0, ExitStack())
    loop.run()
    assert loop.work == 50
    ours, theirs = train.batch(slice(0, 50))[0], seen[0]
    nearest = (ours[:, None] - theirs).flatten(2).abs().amax(2).amin(1)  # it has shuffled them
    assert nearest.max() < 1e-6
    assert sum(map(len, seen[1:])) == len(test)


def test_language(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_dir: Path) -> None:
    monkeypatch.setenv("FIRE_DATA", str(text_dir))
    monkeypatch.setitem(language.SCALES, "cpu", ["scale=smoke", "threads=1"])
    monkeypatch.setitem(language.PRECISIONS, "cpu", ("fp32",))
    monkeypatch.setattr(language, "ITERATIONS", 1)
    results = run("language", tmp_path)
    assert list(results.loop) == ["ours", "plain"]
    assert results.over_first[0] == 1
    assert set(results.unit) == {"tokens"}
    assert len(set((results.seconds * results.per_second).round())) == 1  # as many tokens in each


SMALL_ATARI = ["scale=smoke", "replay_ratio=1", "game=asterix", "method=none", "budget.buffer=400"]


@pytest.mark.slow
def test_atari(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(atari, "SETTINGS", SMALL_ATARI)
    monkeypatch.setitem(atari.STEPS, "cpu", 3)
    results = run("atari", tmp_path)
    assert list(results.loop) == ["ours", "plain, environments in turn", "plain, environments in processes"]
    assert list(results.per_second * results.seconds) == pytest.approx([3 * 4] * 3)  # four environments


def test_plain_atari_loop_is_the_same_learner() -> None:
    """The same values from the same weights, and updates that change all of them."""
    cfg = config.compose_domain("atari", atari.AtariConfig, [*SMALL_ATARI, "device=cpu"])
    cfg.optimizer.learning_rate = 1e-3
    plain = atari.PlainLoop(cfg, "sync")
    network = atari.AtariTraining(cfg, resolve_runtime(cfg), fire.build("none")).learner.network
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for mine, theirs in zip(plain.q.parameters(), weights, strict=True):
            mine.copy_(theirs)
        states = torch.from_numpy(plain.buffer.arrays[0][:8])
        torch.testing.assert_close(plain.q(states / 255), network(states))
    assert plain.states.shape == (4, 4, 84, 84)
    stored, _, _, following, _ = plain.buffer.arrays
    assert np.array_equal(following[7], stored[11])  # of the same one of four environments, a step later
    before = [parameter.clone() for parameter in plain.q.parameters()]
    plain.take_step()
    assert plain.step == 4
    assert not any(torch.equal(a, b) for a, b in zip(before, plain.q.parameters(), strict=True))


def small_humanoid(robot_dir: Path) -> list[str]:
    return ["method=none", "task=h1-walk", "env.backend=native", "budget.random_actions=60", f"data_dir={robot_dir}"]


def test_humanoid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, robot_dir: Path) -> None:
    monkeypatch.setattr(humanoid, "SCALES", {"the paper's networks": "scale=smoke"})
    monkeypatch.setattr(humanoid, "SETTINGS", small_humanoid(robot_dir))
    monkeypatch.setitem(humanoid.ACTIONS, "cpu", 4)
    results = run("humanoid", tmp_path)
    assert list(results.loop) == ["ours", "plain"]
    assert results.over_first[0] == 1
    assert list(results.per_second * results.seconds) == pytest.approx([8] * 2)  # each action is taken twice


def test_plain_humanoid_loop_is_the_same_learner(robot_dir: Path) -> None:
    """As many weights, the transitions of the simulation, and updates that change all of them."""
    settings = ["scale=smoke", *small_humanoid(robot_dir), "device=cpu"]
    cfg = config.compose_domain("humanoid", humanoid.HumanoidConfig, settings)
    plain = humanoid.PlainLoop(cfg)
    agent = humanoid.HumanoidTraining(cfg, resolve_runtime(cfg), fire.build("none")).learner.network

    def size(network: torch.nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    assert size(plain.actor) == size(agent.actor)
    assert size(plain.critics) == size(plain.target.module) == size(agent.critic)
    states, _, _, following, _ = plain.buffer.arrays
    assert np.array_equal(following[7], states[8])
    np.testing.assert_allclose(plain.moments.mean, states[:60].mean(0), atol=1e-3)
    plain.take_action()  # which copies the critics into the target networks, the first time
    parameters = [p for network in (plain.actor, plain.critics, plain.target) for p in network.parameters()]
    before = [parameter.clone() for parameter in parameters]
    plain.take_action()
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


@pytest.mark.parametrize("name", ["core", "vision", "language", "atari"])
def test_committed_tables_are_those_of_the_rows(name: str) -> None:
    """Tables made before some columns were renamed or left out; cells that were not measured are empty."""
    path = REPOSITORY / f"results/benchmark/{name}-h200.csv"
    names = dict.fromkeys(("images_per_second", "tokens_per_second", "steps_per_second"), "per_second")
    rows = pd.read_csv(path).rename(columns=names | {"solver": "loop", "over_ours": "over_first"})
    for end in ("min", "max"):
        rows[f"per_second_{end}"] = np.nan
    if name == "core":
        made = table(rows, core.TABLE)
    else:
        made = table(rows, rates({"vision": "training images", "language": "tokens", "atari": "agent steps"}[name]))

    def cells(text: str) -> list[dict[str, str]]:
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
        return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]

    committed = cells(path.with_suffix(".md").read_text().split("\n\n", 1)[1].strip())
    for old, new in zip(committed, cells(made), strict=True):
        shared = old.keys() & new.keys() - {"", "range", "turns"}
        assert len(shared) >= (1 if name == "atari" else 2)
        for title in shared:
            number = [cell.replace(",", "") for cell in (old[title], new[title])]
            assert number[0] == number[1] or float(number[0]) == float(number[1]), title
    assert "nan" not in made


def test_timing_runs_in_turns() -> None:
    order, prepared = [], []
    loops = {
        "a": lambda _: Loop(lambda: order.append("a"), 2, lambda: prepared.append("a")),
        "b": lambda _: Loop(lambda: time.sleep(0.01) or order.append("b"), 3, columns=lambda row: {"more": 1}),
    }
    a, b = measure(Case("case", loops, "steps"), "cpu", repeats=2)
    assert order == ["a", "b"] * 3  # the first round warms up
    assert prepared == ["a"] * 3
    assert (a["repeats"], a["over_first"], b["more"]) == (2, 1, 1)
    assert b["per_second_min"] <= b["per_second"] <= b["per_second_max"] <= 3 / 0.01
    assert b["over_first"] > 1


def test_memory_counts_what_is_alive() -> None:
    def function() -> torch.Tensor:
        a = torch.zeros(1000)
        b = a + 1
        del a
        return torch.cat([b, b])

    assert peak_of_new_storage(function) == 4 * 3000
