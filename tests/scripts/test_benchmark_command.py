"""The command line of the benchmarks: what it chooses, how it shares a budget, what it writes when something fails."""

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from experiments.common.errors import Interrupted
from scripts.benchmark import __main__ as command
from scripts.benchmark.cases import Case, Loop
from tests.conftest import REPOSITORY
from tests.scripts.test_benchmark import written


class Clock:
    """Seconds that pass only when a loop says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float) -> None:
        self.now += seconds


def suite(name: str, monkeypatch: pytest.MonkeyPatch, cases: Callable[[], list[Case]]) -> None:
    """Put cases in the place of a benchmark's."""
    monkeypatch.setattr(import_module(f"scripts.benchmark.{name}"), "cases", lambda *_: cases())


def case(name: str, clock: Clock, seconds: float, setup: float = 0.0) -> Case:
    """One in which `ours` and `plain` take half of some seconds each a turn."""

    def make(_: ExitStack) -> Loop:
        clock.takes(setup / 2)
        return Loop(lambda: clock.takes(seconds / 2), 10)

    return Case(name, {"ours": make, "plain": make}, "steps")


def raises(name: str, error: BaseException) -> Case:
    """One that cannot be measured."""

    def make(_: ExitStack) -> Loop:
        raise error

    return Case(name, {"ours": make, "plain": make})


def test_budget_is_shared_among_cases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a clock of the test's own."""
    clock = Clock()
    suite("atari", monkeypatch, lambda: [case("first", clock, 10)])
    suite("humanoid", monkeypatch, lambda: [case("second", clock, 10, setup=20), case("third", clock, 30)])
    arguments = ["atari", "humanoid", "--device", "cpu", "--out", str(tmp_path), "--repeats", "9", "--budget"]
    assert command.main([*arguments, "150"], clock) == 0
    # The first has 50 s: 5 rounds, of which one does not count. The second has 50, too, 20 of them for its setup.
    repeats = {row.case: row.repeats for name in ("atari", "humanoid") for row in written(name, tmp_path).itertuples()}
    assert repeats == {"first": 4, "second": 2, "third": 1}
    assert clock.now == 50 + 50 + 60  # the last needs a turn to say anything
    for budget, left_out in (("110", False), ("100", True)):  # after 100 s the third has had its round of warming up
        clock.now = 0.0
        assert command.main([*arguments, budget], clock) == 0
        text = (tmp_path / "humanoid-cpu.md").read_text()
        assert ("Not measured, no time was left: third (ours; plain)." in text) is left_out


def test_what_does_not_fit_into_a_budget_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys
) -> None:
    """Also where that shows only after the round that does not count; no row is half measured."""
    clock = Clock()
    suite("atari", monkeypatch, lambda: [case("slow", clock, 70), case("fits", clock, 10)])
    out = ["--device", "cpu", "--out", str(tmp_path)]
    assert command.main(["atari", "--budget", "60", *out], clock) == 1  # nothing was measured
    printed = capsys.readouterr().err.splitlines()
    assert printed == [f"atari: Not measured, no time was left: {name} (ours; plain)." for name in ("slow", "fits")]
    assert list(tmp_path.iterdir()) == []
    assert command.main(["atari", *out], clock) == 0  # without a budget all turns are taken
    assert set(written("atari", tmp_path).repeats) == {5}
    before = written("atari", tmp_path)
    assert command.main(["atari", "--budget", "1", *out], clock) == 1
    assert written("atari", tmp_path).equals(before)  # what an earlier command has written stays
    assert command.main(["atari", "--only", "fits", *out], clock) == 0
    assert written("atari", tmp_path).equals(before)
    assert set(pd.read_csv(tmp_path / "atari-cpu-fits.csv").case) == {"fits"}


@pytest.mark.parametrize("budget", ["-3", "0", "nan", "inf"])
def test_a_budget_is_a_positive_number(budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["core", f"--budget={budget}"])
    assert f"--budget {float(budget):g}: it must be a positive number of seconds" in capsys.readouterr().err


def test_all_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    """Of a whole benchmark, one of whose packages is missing, and of one case."""
    clock = Clock()

    def without_package() -> list[Case]:
        raise ModuleNotFoundError("No module named 'ale_py'")

    for name in ("core", "methods", "vision", "language"):
        suite(name, monkeypatch, list)
    suite("atari", monkeypatch, without_package)
    broken = raises("broken", ValueError("nothing here\nand more"))
    suite("humanoid", monkeypatch, lambda: [broken, case("whole", clock, 1)])
    assert command.main(["all", "--device", "cpu", "--out", str(tmp_path)], clock) == 1
    failures = [line for line in capsys.readouterr().err.splitlines() if "Failed" in line]
    missing, wrong = "ModuleNotFoundError: No module named 'ale_py'", "broken: ValueError: nothing here"
    assert failures == [f"atari: Failed: {missing}.", f"humanoid: Failed: {wrong}."]
    assert set(written("humanoid", tmp_path).case) == {"whole"}
    assert f"Failed: {wrong}." in (tmp_path / "humanoid-cpu.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"humanoid-cpu.csv", "humanoid-cpu.md"}


@pytest.mark.parametrize("how", [KeyboardInterrupt(), Interrupted(signal.SIGTERM)])
def test_what_is_complete_is_written_when_interrupted(
    how: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path, capsys
) -> None:
    clock = Clock()
    suite("atari", monkeypatch, lambda: [case("whole", clock, 1), raises("half", how), case("never", clock, 1)])
    suite("humanoid", monkeypatch, lambda: [case("later", clock, 1)])
    assert command.main(["atari", "humanoid", "--device", "cpu", "--out", str(tmp_path)], clock) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; what is complete is written"
    assert set(written("atari", tmp_path).case) == {"whole"}
    text = (tmp_path / "atari-cpu.md").read_text()
    assert all(f"Not measured, interrupted: {name} (ours; plain).\n" in text for name in ("half", "never"))
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
    everything = [Case(name, dict.fromkeys(members, lambda _: Loop(int))) for name, members in loops.items()]
    found = [kept for one in everything if (kept := one.chosen(pattern))]
    assert {one.name: tuple(one.loops) for one in found} == left


def test_a_pattern_that_fits_nothing_lists_the_names(tmp_path: Path, capsys) -> None:
    assert command.main(["core", "--device", "cpu", "--only", "ResNet-50", "--out", str(tmp_path)]) == 2
    error, *names = capsys.readouterr().err.splitlines()
    assert error == "error: --only ResNet-50 fits none of these:"
    assert "  ResNet-18, width 64 (plain loop; newton_schulz; polar_express)" in names
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
