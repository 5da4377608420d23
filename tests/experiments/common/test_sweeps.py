"""Sweeps: what a recipe's jobs are, several at once, what a failure does, and the end of a sweep that was killed."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.common.config import CONFIGS, compose_domain
from experiments.common.schema import later_keys
from experiments.vision.config import VisionConfig
from hydra_plugins.fire_experiments.launcher import places
from hydra_plugins.fire_experiments.parallel import Slot, first_of_each_phase_0, run_parallel
from tests.conftest import REPOSITORY, interrupt, jobs_of, numbers, rows_so_far, run_dirs, start, undisturbed

Vision = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def own_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for the sweeps that someone runs on this machine."""
    (tmp_path / "locks").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "locks"))
    monkeypatch.setattr("tempfile.tempdir", None)


def jobs(recipe: str, *overrides: str) -> list[tuple[int, str]]:
    return [(cfg.seed, cfg.method.name) for cfg in jobs_of("vision", recipe, *overrides)]


FIG5A = ["none", "full_reset", "fire_steps5", "fire", "fire_steps20", "fire_steps30", "fire_steps40", "fire_exact"]


def test_a_recipe_finishes_whole_comparisons_early() -> None:
    assert jobs("fig5a_cifar10") == [(seed, method) for seed in (0, 1, 2) for method in FIG5A]
    settings = [(cfg.method.get("steps"), cfg.method.get("solver")) for cfg in jobs_of("vision", "fig5a_cifar10")[:8]]
    fires = [(steps, "newton_schulz") for steps in (5, 10, 20, 30, 40)]
    assert settings == [(None, None), (None, None), *fires, (10, "polar_express")]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["seed=7", "method=none"], [(7, "none")]),
        (["seed=7"], [(7, method) for method in FIG5A]),
        (["seed=7,8", "method=full_reset"], [(7, "full_reset"), (8, "full_reset")]),
        (["seed=7", "method=none,shrink_perturb"], [(7, "none"), (7, "shrink_perturb")]),  # one that it does not name
    ],
)
def test_command_line_overrides_a_recipe(overrides: list[str], expected: list[tuple]) -> None:
    assert jobs("fig5a_cifar10", *overrides) == expected


@pytest.mark.parametrize("path", sorted((CONFIGS / "shared" / "method").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_method_is_named_as_its_file(path: Path) -> None:
    """By that name its runs are filed."""
    words = ["method.coefficient=0.5"] if path.stem in ("shrink_perturb", "l2_init", "parseval") else []
    assert compose_domain("vision", VisionConfig, [f"method={path.stem}", *words]).method.name == path.stem


def test_first_one_job_for_each_phase_0() -> None:
    sweep = [[f"seed={seed}", f"method={method}"] for seed in (0, 1) for method in ("none", "fire", "full_reset")]
    assert first_of_each_phase_0(sweep, later_keys(VisionConfig)) == [0, 3, 1, 4, 2, 5]
    sweep = [[f"sharpness={count}", f"method.steps={steps}"] for count in (0, 8) for steps in (5, 10)]
    assert first_of_each_phase_0(sweep, later_keys(VisionConfig)) == [0, 1, 2, 3]
    sweep = [
        [f"budget.width={width}", f"optimizer_at_boundary={what}"] for width in (4, 8) for what in ("keep", "reset")
    ]
    assert first_of_each_phase_0(sweep, later_keys(VisionConfig)) == [0, 2, 1, 3]


def test_a_device_each_and_a_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    slots, at_once, threads = places("cpu", 4)
    assert ([slot.name for slot in slots], at_once, threads) == (["cpu-0", "cpu-1", "cpu-2", "cpu-3"], 4, 2)
    assert len(places("cpu", 0)[0]) == 8
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,-1,1")  # CUDA stops at the -1
    slots, at_once, threads = places("auto", 3)
    assert [(slot.name, slot.environment["CUDA_VISIBLE_DEVICES"]) for slot in slots] == [
        ("cuda-3-0", "3"), ("cuda-5-0", "5"), ("cuda-3-1", "3"), ("cuda-5-1", "5"),
    ]  # fmt: skip
    assert at_once == 3
    assert all(slot.overrides == ["device=cuda"] for slot in slots)  # never unnoticed on the CPU
    assert threads == 2
    assert [slot.name for slot in places("cuda", 0)[0]] == ["cuda-3-0", "cuda-5-0"]
    assert [slot.name for slot in places("cuda", 2)[0]] == ["cuda-3-0", "cuda-5-0"]
    slots, at_once, _ = places("cuda", 1)  # which may be either, as another sweep leaves it
    assert ([slot.name for slot in slots], at_once) == (["cuda-3-0", "cuda-5-0"], 1)
    # Two containers call different GPUs 0; their locks go by what the driver calls them.
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '3, GPU-aa'\necho '5, GPU-bb'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert [slot.name for slot in places("cuda", 2)[0]] == ["GPU-aa-0", "GPU-bb-0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert [slot.name for slot in places("auto", 1)[0]] == ["cpu-0"]


def test_a_device_is_taken_by_one_sweep() -> None:
    name = f"test-{os.getpid()}"
    slot = Slot(name, {}, [])
    other = (
        "import sys; from hydra_plugins.fire_experiments.parallel import Slot; "
        f"sys.exit(not Slot({name!r}, {{}}, []).take())"
    )  # fmt: skip
    assert slot.take()
    assert subprocess.run([sys.executable, "-c", other], cwd=REPOSITORY, check=False).returncode == 1
    slot.lock.release()
    assert subprocess.run([sys.executable, "-c", other], cwd=REPOSITORY, check=False).returncode == 0


def test_a_job_goes_where_no_other_sweep_is(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydra_plugins.fire_experiments.parallel.logger", logging.getLogger("of this test"))
    caplog.set_level(logging.INFO)
    held = Slot("first", {}, [])
    assert held.take()
    release = threading.Timer(60, held.lock.release)  # so that a job that waits for it fails the test
    release.start()
    outcomes: dict[int, dict] = {}
    slots = [Slot(name, {}, []) for name in ("first", "b", "c")]
    run_parallel("vision", [["--version"], ["--version"]], (), slots, 1, outcomes)
    release.cancel()
    held.lock.release()
    started = re.findall(r"\[(\d)\] started on (\w+)", caplog.text)
    assert started == [("0", "b"), ("1", "b")]  # one at once
    assert [outcomes[number]["result"] for number in (0, 1)] == ["ended with status 0"] * 2


@pytest.mark.slow
def test_several_at_once_end_like_one_after_the_other(vision: Vision, tmp_path: Path) -> None:
    sweep = ("-m", "method=none,fire", "seed=0,1")
    status, printed = vision(*sweep, "jobs=2", "wandb.mode=offline")
    assert status == 0, printed
    together = {d.name: numbers(d) for d in run_dirs(tmp_path / "outputs")}
    assert len(together) == 4
    assert len(list((tmp_path / "outputs").glob("phases/*/kept-end-*.pt"))) == 2
    assert all(f"[{number}] started on cpu-{number}: " in printed for number in (0, 1))
    ids = {file.name.split("-")[-2:][0] for file in tmp_path.rglob("*.wandb")}
    assert len(list(tmp_path.rglob("*.wandb"))) == 4
    assert len(ids) == 4  # runs of one sweep never merge
    table = printed[printed.rindex("run ") :].splitlines()
    assert [line.split("  ")[0] for line in table[2:6]] == [
        f"method={method} seed={seed}" for method in ("none", "fire") for seed in (0, 1)
    ]
    assert vision(*sweep, f"outputs_dir={tmp_path / 'one'}")[0] == 0
    assert {d.name: numbers(d) for d in run_dirs(tmp_path / "one")} == together

    status, printed = vision(*sweep, "jobs=2", "wandb.mode=offline")
    assert status == 0
    assert len(re.findall(r"\[\d\] done before: ", printed)) == 4


@pytest.mark.slow
def test_threads_that_are_given_win_over_a_share_of_the_cores(vision: Vision, tmp_path: Path) -> None:
    status, printed = vision("-m", "threads=1,2", "method=none", "budget.train_images=100", "jobs=2")
    assert status == 0, printed
    configs = [(d / "config.yaml").read_text() for d in run_dirs(tmp_path / "outputs")]
    assert sorted(re.search(r"^threads: (\d)", config, re.MULTILINE)[1] for config in configs) == ["1", "2"]


@pytest.mark.parametrize(
    ("domain", "words", "environment", "said"),
    [
        ("vision", ["-m", "seed=0,1"], {"RANK": "1"}, "RANK=1, but vision trains in one process: start it without tor"),
        ("atari", ["seed=0"], {"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but atari trains in one process"),
        ("language", ["seed=0"], {"RANK": "x"}, "RANK=x must be a whole number; torchrun sets it"),
        ("language", ["seed=0"], {"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2, but MASTER_ADDR is not set"),
        ("language", ["-m", "seed=0,1", "jobs=2"], {"WORLD_SIZE": "2"}, "jobs=2 starts processes; use either torchrun"),
    ],
)
def test_several_processes_where_there_is_one(
    domain: str, words: list[str], environment: dict[str, str], said: str, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    status, printed = request.getfixturevalue(domain)(*words)
    assert status != 0
    assert f"error: {said}" in printed
    assert "Traceback" not in printed


def test_a_failed_job_is_told_at_once_and_stops_no_other(vision: Vision, tmp_path: Path) -> None:
    """What fails is unforeseen, so its traceback must be found in its run directory."""
    vision("method=none", "seed=0", "threads=1")
    (kept,) = (tmp_path / "outputs/phases").glob("*/kept-end-*.pt")
    kept.unlink()
    kept.mkdir()
    status, printed = vision("-m", "method=fire", "seed=0,1", "jobs=2")
    assert status == 1
    failure = next(line for line in printed.splitlines() if line.startswith("[0] error: IsADirectoryError"))
    assert printed.index(failure) < printed.index("[1] finished in ")
    log = Path(re.search(r"traceback in (\S+error\.log)\)", failure)[1])
    assert log.parent.name.startswith("fire-s0-")
    assert "Traceback (most recent call last)" in log.read_text()
    table = printed[printed.rindex("run ") :].splitlines()
    assert [line.split()[1] for line in table[2:4]] == ["failed", "done"]
    assert "error: 1 of 2 runs failed" in printed


def sweep_arguments(outputs: Path, data_dir: Path) -> list[str]:
    return [
        "-m", "method=none,fire", "seed=0,1", "scale=smoke", "budget.train_images=1000", "budget.epochs=[3,4]",
        "budget.test_every=[1,1]", "jobs=2", "wandb.mode=disabled", "checkpoint_seconds=0", f"outputs_dir={outputs}",
        f"data_dir={data_dir}",
    ]  # fmt: skip


@pytest.mark.slow
def test_preempted_cluster_job_is_put_back_and_resumes(data_dir: Path, tmp_path: Path) -> None:
    """With the part of submitit, which speaks to SLURM, that starts jobs on this machine."""
    settings = [
        "method=fire", "seed=0", "scale=smoke", "budget.train_images=1000", "budget.epochs=[3,6]", "threads=1",
        "budget.test_every=[1,1]", "wandb.mode=disabled", "checkpoint_seconds=0", f"data_dir={data_dir}",
    ]  # fmt: skip
    cluster = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=60"]
    outputs = tmp_path / "cluster"
    process = start("vision", "-m", *settings, *cluster, f"outputs_dir={outputs}")
    deadline = time.monotonic() + 240
    while len(rows_so_far(outputs, "vision/*/*")) < 5:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (holder,) = outputs.glob("vision/*/*/holder")
    first = int(holder.read_text().split()[1])
    os.kill(first, signal.SIGUSR2)  # as SLURM before it takes the machine away
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert int(holder.read_text().split()[1]) != first
    (directory,) = run_dirs(outputs)
    assert f"resuming {directory}" in (directory / "log").read_text()
    assert numbers(directory) == undisturbed("vision", tmp_path / "alone", *settings)


def table_of_sweep(outputs: Path, data_dir: Path) -> list[str]:
    """Run a sweep, or what is left of it; the lines of its report but for clock readings."""
    process = start("vision", *sweep_arguments(outputs, data_dir))
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    subprocess.run(
        [sys.executable, "-m", "scripts.report", "vision", str(outputs), "--out", str(outputs / "report")],
        cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    (file,) = (outputs / "report").glob("*.csv")
    return [line for line in file.read_text().splitlines() if not re.search(r"speed/|reset/seconds", line)]


@pytest.fixture(scope="module")
def undisturbed_table(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return table_of_sweep(tmp_path_factory.mktemp("undisturbed"), data_dir)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_interrupted_sweep_goes_on_to_the_same_csv(
    how: int, undisturbed_table: list[str], data_dir: Path, tmp_path: Path
) -> None:
    """Both while several jobs run; the same command then ends with the same table as an undisturbed sweep's."""
    process = start("vision", *sweep_arguments(tmp_path, data_dir))
    status, printed = interrupt(process, lambda: len(rows_so_far(tmp_path, "vision/*/*")) >= 5, how)
    assert status == (-how if how == signal.SIGKILL else 128 + how), printed
    assert len(undisturbed_table) > 100
    assert table_of_sweep(tmp_path, data_dir) == undisturbed_table  # at once: what was killed may still be saving
