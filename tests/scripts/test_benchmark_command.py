"""The command line of the benchmarks: what it chooses, how it shares a budget, what it writes when something fails."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from experiments.common.errors import Interrupted
from scripts.benchmark import __main__ as command
from scripts.benchmark.plan import Case, Options, chosen
from scripts.benchmark.timing import Limit, alternate, rates
from tests.conftest import REPOSITORY
from tests.scripts.test_benchmark import written


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
