"""The benchmarks measure what they say, on cases small enough for a test."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch

import fire
from experiments.common.errors import Interrupted
from experiments.common.workspace import git_revision
from experiments.vision import models
from scripts.benchmark import __main__ as command
from scripts.benchmark import atari, core, humanoid, language, processes, standard_loop, vision
from scripts.benchmark.memory import peak_of_new_storage
from scripts.benchmark.plan import Case, Options, chosen
from scripts.benchmark.timing import Limit, alternate, rates, ratio
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


class Clock:
    """Seconds that pass only when a loop says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float) -> Callable[[], None]:
        """A loop that takes some."""

        def loop() -> None:
            self.now += seconds

        return loop


def suite(name: str, monkeypatch: pytest.MonkeyPatch, cases: Callable[[Options], list[Case]]) -> None:
    """Put cases in the place of a benchmark's."""
    monkeypatch.setattr(sys.modules[f"scripts.benchmark.{name}"], "cases", cases)


def case(name: str, clock: Clock, seconds: float, setup: float = 0.0, extra: bool = False, base: str = "ours") -> Case:
    """One in which `ours` and `plain` take a share of some seconds a turn, as expected."""

    def run(loops: Sequence[str], limit: Limit) -> pd.DataFrame:
        clock.now += setup
        return rates(name, alternate({loop: clock.takes(seconds / 2) for loop in loops}, limit, "cpu"), STEPS)

    return Case(name, ("ours", "plain"), base, run, setup + seconds, seconds, extra)


STEPS = {"ours": 10, "plain": 10}


def test_budget_is_shared_among_cases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a clock of the test's own: what every case needs comes first, and the rest is shared evenly."""
    clock = Clock()
    suite("atari", monkeypatch, lambda _: [case("first", clock, 10), case("more", clock, 30, extra=True)])
    suite("humanoid", monkeypatch, lambda _: [case("second", clock, 10, setup=20), case("third", clock, 10)])
    arguments = ["atari", "humanoid", "--device", "cpu", "--out", str(tmp_path), "--repeats", "9", "--budget"]
    assert command.main([*arguments, "140"], clock) == 0
    # 20 + 40 + 20 are needed, and 60 too much for `more`; of the 60 that are left the first case gets 20: with what it
    # needs 4 rounds of 10, of which the first does not count. The second then has 20 + 20 for 2 more than it needs, ...
    repeats = {row.case: row.repeats for name in ("atari", "humanoid") for row in written(name, tmp_path).itertuples()}
    assert repeats == {"first": 3, "second": 3, "third": 3}
    assert clock.now <= 140
    assert "Not measured, no time left of 140 s: more (ours; plain)." in (tmp_path / "atari-cpu.md").read_text()

    clock.now = 0.0
    assert command.main([*arguments, "160"], clock) == 0
    assert clock.now <= 160
    assert set(written("atari", tmp_path).case) == {"first", "more"}  # 140 are needed now
    assert "Not measured" not in (tmp_path / "atari-cpu.md").read_text()
    assert all(set(written(name, tmp_path).loop) == {"ours", "plain"} for name in ("atari", "humanoid"))


def test_what_does_not_fit_into_a_budget_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys
) -> None:
    """Also where that shows only after the round that does not count; no row is half measured."""
    clock = Clock()
    slow = replace(case("slow", clock, 50), setup=5.0, turn=20.0)  # slower than expected
    suite("atari", monkeypatch, lambda _: [slow, case("fits", clock, 10)])
    out = ["--device", "cpu", "--out", str(tmp_path)]
    assert command.main(["atari", "--budget", "60", *out], clock) == 1  # nothing was measured
    printed = capsys.readouterr().out
    assert "atari: left out, no time is left for it: slow (ours; plain)" in printed.splitlines()
    assert "atari: left out, no time is left for it: fits (ours; plain)" in printed.splitlines()
    assert list(tmp_path.iterdir()) == []
    assert command.main(["atari", *out], clock) == 0  # without a budget all turns are taken
    assert set(written("atari", tmp_path).repeats) == {5}
    before = written("atari", tmp_path)
    assert command.main(["atari", "--budget", "1", *out], clock) == 1
    assert written("atari", tmp_path).equals(before)  # what an earlier command has written stays
    assert command.main(["atari", "--only", "fits", *out], clock) == 0
    assert written("atari", tmp_path).equals(before)
    assert set(pd.read_csv(tmp_path / "atari-cpu-fits.csv").case) == {"fits"}


def test_an_extra_part_is_left_out_with_its_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    clock = Clock()
    slow = replace(case("network", clock, 50), setup=5.0, turn=40.0)  # slower than expected
    oracle = replace(case("network", clock, 1, extra=True), loops=("plain",))
    suite("atari", monkeypatch, lambda _: [slow, oracle, case("other", clock, 1)])
    assert command.main(["atari", "--device", "cpu", "--out", str(tmp_path), "--budget", "80"], clock) == 0
    assert set(written("atari", tmp_path).case) == {"other"}
    assert "left out, no time is left for it: network (plain)" in capsys.readouterr().out


@pytest.mark.parametrize("budget", ["-3", "0", "nan", "inf"])
def test_a_budget_is_a_positive_number(budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["core", f"--budget={budget}"])
    assert f"--budget {float(budget):g}: it must be a positive number of seconds" in capsys.readouterr().err


def test_all_on_cuda_is_planned_to_fit_into_four_minutes() -> None:
    """By what each case is expected to need there for one turn; what is only extra may be left out."""
    with ExitStack() as stack:
        modules = [import_module(f"scripts.benchmark.{name}") for name in command.BENCHMARKS]
        cases = [case for module in modules for case in module.cases(Options("cuda", False, stack))]
    assert sum(case.least for case in cases if not case.extra) <= 230  # and 10 s for imports and the like
    assert {case.name for case in cases if case.extra} >= {"sweep of four methods", "a quarter of it"}


def test_all_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    """Of a whole benchmark, one of whose packages is missing, and of one case."""
    clock = Clock()

    def broken(loops: Sequence[str], limit: Limit) -> pd.DataFrame:
        raise ValueError("nothing here\nand more")

    def without_package(options: Options) -> list[Case]:
        raise ModuleNotFoundError("No module named 'ale_py'")

    for name in ("core", "vision", "language"):
        suite(name, monkeypatch, lambda _, name=name: [])
    suite("atari", monkeypatch, without_package)
    both = [replace(case("broken", clock, 1), run=broken), case("whole", clock, 1)]
    suite("humanoid", monkeypatch, lambda _: list(both))
    assert command.main(["all", "--device", "cpu", "--out", str(tmp_path)], clock) == 1
    failures = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    missing, wrong = "ModuleNotFoundError: No module named 'ale_py'", "broken: ValueError: nothing here"
    assert failures == [f"atari: failed: {missing}", f"humanoid: failed: {wrong}"]
    assert set(written("humanoid", tmp_path).case) == {"whole"}
    assert f"Failed: {wrong}." in (tmp_path / "humanoid-cpu.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"humanoid-cpu.csv", "humanoid-cpu.md"}


@pytest.mark.parametrize("how", [KeyboardInterrupt(), Interrupted(signal.SIGTERM)])
def test_what_is_complete_is_written_when_interrupted(
    how: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path, capsys
) -> None:
    clock = Clock()

    def interrupted(loops: Sequence[str], limit: Limit) -> pd.DataFrame:
        raise how

    members = [case("whole", clock, 1), replace(case("half", clock, 1), run=interrupted), case("never", clock, 1)]
    suite("atari", monkeypatch, lambda _: list(members))
    assert command.main(["atari", "humanoid", "--device", "cpu", "--out", str(tmp_path)], clock) == 130
    assert capsys.readouterr().err == "interrupted; what was complete has been written\n"
    assert set(written("atari", tmp_path).case) == {"whole"}
    told = (tmp_path / "atari-cpu.md").read_text()
    assert "Not measured, interrupted: half (ours; plain).\nNot measured, interrupted: never (ours; plain).\n" in told
    assert not (tmp_path / "humanoid-cpu.md").exists()


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("ResNet-18, width 64", {"ResNet-18, width 64": ("plain loop", "fast", "exact")}),
        ("resnet", {"ResNet-18, width 64": ("plain loop", "fast", "exact"), "ResNet-18, width 16": ("plain loop",)}),
        ("fast", {"ResNet-18, width 64": ("plain loop", "fast")}),
        ("ex*t", {"ResNet-18, width 64": ("plain loop", "exact")}),
        ("*width 64, exact", {"ResNet-18, width 64": ("plain loop", "exact")}),
        ("plain*", dict.fromkeys(("ResNet-18, width 64", "ResNet-18, width 16", "GPT"), ("plain loop",))),
        ("exactly", {}),
    ],
)
def test_only_keeps_what_ratios_refer_to(pattern: str, left: dict[str, tuple[str, ...]]) -> None:
    loops = {"ResNet-18, width 64": ("plain loop", "fast", "exact"), "ResNet-18, width 16": ("plain loop",)}
    loops["GPT"] = ("plain loop",)
    everything = [Case(name, members, "plain loop", lambda *_: pd.DataFrame(), 1, 1) for name, members in loops.items()]
    found = [kept for one in everything if (kept := chosen(one, pattern))]
    assert {one.name: one.loops for one in found} == left


def test_a_pattern_that_fits_nothing_lists_the_names(tmp_path: Path, capsys) -> None:
    assert command.main(["core", "--device", "cpu", "--only", "ResNet-50", "--out", str(tmp_path)]) == 2
    error, *names = capsys.readouterr().err.splitlines()
    assert error == "error: --only ResNet-50 fits none of these:"
    assert "  ResNet-18, width 64: plain loop; newton_schulz; polar_express; svd" in names
    assert list(tmp_path.iterdir()) == []


def test_each_benchmark_needs_its_own_packages_alone() -> None:
    """None of them is imported before it is asked for, and core needs nothing of the domains' packages."""
    blocked = ["torchvision", "ale_py", "gymnasium", "mujoco", "datasets", "tiktoken", "wandb", "imageio_ffmpeg"]
    for name in ("core", "vision"):
        lines = [
            "import sys", f"sys.modules.update(dict.fromkeys({blocked}))",
            "from scripts.benchmark.__main__ import main",
            f"sys.exit(main(['{name}', '--device', 'cpu', '--only', 'no such name']))",
        ]  # fmt: skip
        result = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert result.stderr.startswith("error: --only no such name fits none of these:"), result.stderr


def test_failed_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(processes.SECONDS, "cpu", 0.0)
    with pytest.raises(RuntimeError, match="2 of 2 processes failed: -m no_such_module cpu"):
        processes.together("no_such_module", "cpu", 2)


def test_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(core, "CASES", {"small": lambda: models.build("resnet18", 8, 10, 0), "two": lambda: two()})

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
    images, _ = vision.data.load("cifar10", data_dir, 50, 10, 0)
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
