"""kill -9 in training, several processes, and what remains: the very same numbers."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Command, numbers, rows_so_far, run_dirs, slow, start, stopped_when, undisturbed

SETTINGS = (
    "scale=smoke", "method=fire", "checkpoint=best", "budget.iterations=[200,60]", "wandb.mode=disabled", "threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def reference(text_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The numbers of the run that nothing disturbed."""
    return undisturbed("language", tmp_path_factory.mktemp("reference"), *SETTINGS, f"data_dir={text_dir}")


def in_phase_0(outputs: Path) -> bool:
    return len(rows_so_far(outputs, "phases/*")) >= 20


def in_phase_1(outputs: Path) -> bool:
    return any(row["phase"] == 1 and "train/loss" in row for row in rows_so_far(outputs, "language/*/*"))


def writing_a_checkpoint(outputs: Path) -> bool:
    return in_phase_0(outputs) and bool(list(outputs.rglob(".checkpoint.*.tmp")))


def best_is_settled(outputs: Path) -> bool:
    return bool(list(outputs.rglob("kept-best-*.pt")))


def best_is_in_memory(outputs: Path) -> bool:
    return any("val/loss" in row for row in rows_so_far(outputs, "phases/*")) and not list(outputs.rglob("*.pt"))


@pytest.mark.parametrize(
    ("moment", "seconds"),
    [
        slow(in_phase_0, 0),
        (in_phase_1, 0),
        slow(writing_a_checkpoint, 0),
        slow(best_is_settled, 0),
        (best_is_in_memory, 1000),
    ],
)
def test_kill_9_and_resume(
    moment: Callable[[Path], bool], seconds: int, reference: list[dict], text_dir: Path, tmp_path: Path
) -> None:
    arguments = [*SETTINGS, f"outputs_dir={tmp_path}", f"data_dir={text_dir}", f"checkpoint_seconds={seconds}"]
    status, printed = stopped_when("language", moment, signal.SIGKILL, arguments, tmp_path)
    assert status == -signal.SIGKILL, printed
    process = start("language", *arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    (directory,) = run_dirs(tmp_path)
    assert numbers(directory) == reference
    assert not list(tmp_path.rglob("*.tmp"))


L2_INIT = ("method=l2_init", "method.coefficient=0.1", "method.first_phase=0")
REDO = ("method=redo", "method.tau=0.7", "method.period=7")
CBP = ("method=cbp", "method.replacement_rate=0.003", "method.maturity_threshold=5")
SNR = ("method=snr", "method.period=4", "method.percentile=0.5")
MUON = ("method=muon",)
PARSEVAL = ("method=parseval", "method.coefficient=1e-3", "method.first_phase=0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "moment"),
    [
        (L2_INIT, in_phase_0),
        (REDO, in_phase_1),
        ((*CBP, "method.first_phase=0"), in_phase_0),
        (SNR, in_phase_1),
        (MUON, in_phase_1),
        (PARSEVAL, in_phase_0),
    ],
)
def test_kill_9_while_a_method_acts(
    method: tuple[str, ...], moment: Callable[[Path], bool], text_dir: Path, tmp_path: Path
) -> None:
    arguments = [*SETTINGS, *method, "checkpoint=60k", f"data_dir={text_dir}", "checkpoint_seconds=0"]
    arguments.remove("method=fire")
    whole = undisturbed("language", tmp_path / "whole", *arguments)
    words = [*arguments, f"outputs_dir={tmp_path / 'killed'}"]
    assert stopped_when("language", moment, signal.SIGKILL, words, tmp_path / "killed")[0] == -signal.SIGKILL
    assert undisturbed("language", tmp_path / "killed", *arguments) == whole
    if "method=redo" in method or "method=cbp" in method:
        assert sum(row.get("method/units_reset", 0) for row in whole) > 0


@pytest.mark.slow
def test_signal_saves_and_says_how_to_go_on(reference: list[dict], text_dir: Path, tmp_path: Path) -> None:
    arguments = [*SETTINGS, f"outputs_dir={tmp_path}", f"data_dir={text_dir}"]
    status, printed = stopped_when("language", in_phase_0, signal.SIGTERM, arguments, tmp_path)
    assert status == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; to resume: python -m experiments.language scale=smoke" in printed
    process = start("language", *arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert numbers(run_dirs(tmp_path)[0]) == reference


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "experiments.language"]
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments], cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_two_processes_train_as_one(text_dir: Path, tmp_path: Path) -> None:
    """Same batches, same losses, one log: a sweep of two jobs, one of which fails."""
    arguments = ["-m", "scale=smoke", "device=cpu", "threads=1", "wandb.mode=disabled", f"data_dir={text_dir}"]
    arguments += ["method=fire", "method.steps=5,0", "checkpoint=30k,best"]
    together = torchrun(*arguments, f"outputs_dir={tmp_path / 'two'}")
    printed, _ = together.communicate(timeout=300)
    alone = start("language", *arguments, f"outputs_dir={tmp_path / 'one'}")
    assert "2 of 4 runs failed" in alone.communicate(timeout=300)[0]
    assert printed.count("2 of 4 runs failed") == 1, printed
    assert "256 a step in 2 processes, fp32 on cpu" in printed
    rows = [{d.parent.name: numbers(d) for d in run_dirs(tmp_path / count)} for count in ("one", "two")]
    assert rows[0].keys() == rows[1].keys()
    assert len(rows[0]) == 2
    for group, run in rows[0].items():
        assert len(rows[1][group]) == len(run)
        for one, two in zip(run, rows[1][group], strict=True):
            assert two == pytest.approx(one, rel=1e-4)


EQUAL = """
import sys
import torch
import torch.distributed as dist
from experiments.language.train import LanguageTraining
train = LanguageTraining.train
def compared(self, workspace, until_phase):
    train(self, workspace, until_phase)
    mine = torch.cat([p.detach().flatten() for p in self.model.parameters()])
    everywhere = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(everywhere, mine)
    if not torch.equal(*everywhere):
        raise RuntimeError("the processes have different weights")
LanguageTraining.train = compared
sys.argv[0] = "experiments/language/__main__.py"
from experiments.language.__main__ import LANGUAGE, launch
sys.exit(launch(LANGUAGE))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [L2_INIT, PARSEVAL, *((*other, "method.first_phase=0") for other in (CBP, REDO, SNR, MUON))],
    ids=lambda words: words[0],
)
def test_two_processes_act_alike(method: tuple[str, ...], language: Command, text_dir: Path, tmp_path: Path) -> None:
    """Both have the same weights to the bit, and the losses, the penalty and the number of units reset that one process
    has where it sees the whole batch at once."""
    script = tmp_path / "equal.py"
    script.write_text(EQUAL)
    arguments = [*method, "budget.iterations=[40,12]"]
    assert language(*arguments, "budget.micro_batch=8")[0] == 0
    settings = ["scale=smoke", "device=cpu", "threads=1", "wandb.mode=disabled", f"data_dir={text_dir}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    process = subprocess.run(
        [*launcher, *arguments, *settings, "budget.micro_batch=4", f"outputs_dir={tmp_path / 'two'}"],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=240,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    one, two = (numbers(run_dirs(tmp_path / outputs)[0]) for outputs in ("outputs", "two"))
    assert len(one) == len(two)
    if method[0] in (CBP[0], SNR[0]):  # from then on rounding grows fast, through units that have just been reset
        one, two = one[:10], two[:10]
        assert sum(row.get("method/units_reset", 0) for row in one) > 0
    for alone, shared in zip(one, two, strict=True):
        compared = [
            {key: row[key] for key in ("method/penalty", "method/units_reset", "train/loss", "val/loss") if key in row}
            for row in (alone, shared)
        ]
        # Rounding grows, and in the end a unit may fall on the other side of the threshold. Muon computes in bfloat16.
        rounding = 1e-3 if method[0] == "method=muon" else 1e-5
        assert compared[1] == pytest.approx(compared[0], rel=0.05 if alone["phase"] else rounding)


BREAK = """
import os, runpy, sys
from experiments.language.train import LanguageTraining
step = LanguageTraining.train_iteration
def breaks(self):
    if self.iteration == 3 and os.environ["RANK"] == os.environ["BROKEN_RANK"]:
        raise RuntimeError("out of memory")
    step(self)
LanguageTraining.train_iteration = breaks
sys.argv[0] = "experiments/language/__main__.py"
from experiments.language.__main__ import LANGUAGE, launch
sys.exit(launch(LANGUAGE))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_error_in_one_process_ends_all(rank: str, text_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BREAK)
    arguments = ["-m", "method=none,fire", "scale=smoke", "device=cpu", "threads=1", "wandb.mode=disabled"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    process = subprocess.run(
        [*launcher, *arguments, f"data_dir={text_dir}", f"outputs_dir={tmp_path}"],
        cwd=REPOSITORY, env={**os.environ, "BROKEN_RANK": rank, "PYTHONPATH": str(REPOSITORY)}, timeout=120,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode != 0
    assert "error: RuntimeError: out of memory" in process.stdout


@pytest.mark.slow
def test_two_processes_stop_and_go_on(text_dir: Path, tmp_path: Path) -> None:
    arguments = ["scale=smoke", "device=cpu", "threads=1", "wandb.mode=disabled", f"data_dir={text_dir}"]
    arguments += ["budget.iterations=[1500,10]", "checkpoint=30k", "method=none"]
    process = torchrun(*arguments, f"outputs_dir={tmp_path / 'stopped'}")
    while not in_phase_0(tmp_path / "stopped"):
        assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert "stopped by SIGTERM; to resume: torchrun --nproc-per-node=2 -m experiments.language scale=smoke" in printed
    assert list((tmp_path / "stopped").rglob("checkpoint-*.pt"))
    for folder in ("stopped", "whole"):
        process = torchrun(*arguments, f"outputs_dir={tmp_path / folder}")
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
    stopped, whole = (numbers(run_dirs(tmp_path / folder)[0]) for folder in ("stopped", "whole"))
    assert len(stopped) == len(whole)
    for one, two in zip(stopped, whole, strict=True):
        assert one == pytest.approx(two, rel=1e-3)
    info = json.loads((run_dirs(tmp_path / "whole")[0] / "run.json").read_text())
    assert info["values"]["processes"] == 2


def test_processes_must_share_evenly(text_dir: Path, tmp_path: Path) -> None:
    process = torchrun(
        "scale=smoke", "device=cpu", f"data_dir={text_dir}", "budget.micro_batch=8", f"outputs_dir={tmp_path}"
    )
    printed, _ = process.communicate(timeout=120)
    assert "error: budget.sequences=8 is not a multiple of budget.micro_batch=8 times 2 processes" in printed
