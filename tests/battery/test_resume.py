"""A resume relies on no file that has been damaged: it names the file and refuses."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.common import checkpoint
from experiments.common.errors import Interrupted
from experiments.common.experiment import Experiment
from experiments.common.files import checksum
from experiments.common.workspace import Workspace
from tests.conftest import numbers, run_dirs

Vision = Callable[..., tuple[int, str]]
WORDS = ("method=none", "checkpoint_seconds=0", "budget.epochs=[3,6]", "budget.test_every=[1,1]")


@pytest.fixture(scope="module")
def made() -> list[Path]:
    """The outputs of a run that was stopped, once one has been."""
    return []


@pytest.fixture
def stopped(vision: Vision, made: list[Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory, in tmp_path/outputs, of a run that was stopped when its metric log had six rows."""

    def stop(workspace: Workspace) -> None:
        if len(workspace.log.rows) >= 6:
            raise Interrupted(15)

    if not made:
        outputs = tmp_path_factory.mktemp("stopped")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Workspace, "stop_if_asked", stop)
            status, printed = vision(*WORDS, f"outputs_dir={outputs}")
        assert status == 143, printed
        made.append(outputs)
    shutil.copytree(made[0], tmp_path / "outputs")
    (folder,) = run_dirs(tmp_path / "outputs")
    return folder


def zeroed(content: bytes) -> bytes:
    return content[:300] + bytes(700) + content[1000:]


def swapped(content: bytes) -> bytes:
    """Of equal length, and every line valid."""
    return content.replace(b'"train/loss": 2', b'"train/loss": 1', 1)


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "log with zeros": ("metrics.jsonl", zeroed),
    "log with another number": ("metrics.jsonl", swapped),
    "log without its end": ("metrics.jsonl", lambda content: content[:-400]),
    "no log": ("metrics.jsonl", lambda content: b""),
    "no JSON": ("run.json", lambda content: b"damaged"),
    "no object": ("run.json", lambda content: b"[]"),
    "no identity": ("run.json", lambda content: content.replace(b'"identity"', b'"identitx"')),
    "no UTF-8": ("run.json", lambda content: b"\xff\xfe"),
    "another setting": ("run.json", lambda content: content.replace(b'"seed": 0', b'"seed": 7')),
    "count": ("overwrites", lambda content: b"many"),
    "done": ("done", lambda content: b"{"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_file_is_named(name: str, vision: Vision, stopped: Path) -> None:
    file, change = DAMAGE[name]
    path = stopped / file
    before = path.read_bytes() if path.exists() else b""
    after = change(before)
    assert after != before
    path.write_bytes(after)
    status, printed = vision(*WORDS)
    assert status == 1
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert f"damaged {path}: " in line
    assert "start over" in line
    assert "Traceback" not in printed
    assert path.read_bytes() == after  # nothing has been written over the evidence


@pytest.mark.parametrize("content", [b"damaged: [", b"", b"method: 3"])
def test_what_nothing_relies_on_is_written_again(content: bytes, vision: Vision, stopped: Path) -> None:
    (stopped / "config.yaml").write_bytes(content)
    assert vision(*WORDS)[0] == 0
    assert b"steps" not in content
    assert "learning_rate: 0.001" in (stopped / "config.yaml").read_text()


def test_missing_and_special_files(vision: Vision, stopped: Path) -> None:
    description = (stopped / "run.json").read_bytes()
    (stopped / "run.json").unlink()
    assert f"damaged {stopped / 'run.json'}: it is missing" in vision(*WORDS)[1]
    os.mkfifo(stopped / "run.json")
    assert f"cannot read {stopped / 'run.json'}: it is no regular file" in vision(*WORDS)[1]
    (stopped / "run.json").unlink()
    (stopped / "run.json").write_bytes(description)
    (stopped / "metrics.jsonl").unlink()
    (stopped / "metrics.jsonl").symlink_to("/dev/zero")
    assert f"cannot read {stopped / 'metrics.jsonl'}: it is no regular file" in vision(*WORDS)[1]


def test_shared_phase_with_a_damaged_log(vision: Vision, tmp_path: Path) -> None:
    vision("until=phase0", *WORDS)
    (log,) = (tmp_path / "outputs").glob("phases/*/metrics.jsonl")
    log.write_bytes(swapped(log.read_bytes()))
    status, printed = vision(*WORDS)
    assert status == 1
    assert f"error: damaged {log}: it has changed since its checkpoint was taken" in printed


def test_what_comes_after_the_checkpoint_may_be_lost(vision: Vision, stopped: Path, tmp_path: Path) -> None:
    with (stopped / "metrics.jsonl").open("ab") as file:
        file.write(b'{"phase": 1, "epoch": 99}\n{"pha\0\0')
    assert vision(*WORDS)[0] == 0
    assert vision(*WORDS, f"outputs_dir={tmp_path / 'whole'}")[0] == 0
    assert numbers(stopped) == numbers(run_dirs(tmp_path / "whole")[0])


def test_a_refused_checkpoint_is_no_reason_to_trust_it(vision: Vision, stopped: Path, tmp_path: Path) -> None:
    for path in stopped.glob("checkpoint-*.pt"):
        path.unlink()
    torch.save({"identity": Path("x")}, tmp_path / "evil.pt")
    path = stopped / f"checkpoint-000009-{checksum(tmp_path / 'evil.pt')[:16]}.pt"
    shutil.move(tmp_path / "evil.pt", path)
    status, printed = vision(*WORDS)
    assert status == 1
    assert f"error: {path} is refused: it is no file of plain values and tensors" in printed
    assert "weights_only" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("place", ["experiments.common.plasticity.sharpness", "fire.Fire.reset"])
def test_a_signal_ends_a_long_boundary_at_once(place: str, vision: Vision, tmp_path: Path) -> None:
    """Such as a projection of many steps; it resumes before the boundary."""

    def endless(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    words = ("method=fire", "sharpness=8", *WORDS[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, endless)
        started = time.monotonic()
        assert vision(*words)[0] == 143
        assert time.monotonic() - started < 30
    assert vision(*words)[0] == 0
    assert vision(*words, f"outputs_dir={tmp_path / 'whole'}")[0] == 0
    assert numbers(run_dirs(tmp_path / "outputs")[0]) == numbers(run_dirs(tmp_path / "whole")[0])


def test_a_signal_just_before_a_boundary_is_kept_until_the_state_is_saved(vision: Vision, tmp_path: Path) -> None:
    cross = Experiment.cross_boundary

    def after_a_signal(experiment: Experiment, append: Callable) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        cross(experiment, append)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "cross_boundary", after_a_signal)
        assert vision(*WORDS)[0] == 143
    (folder,) = run_dirs(tmp_path / "outputs")
    assert list(folder.glob("checkpoint-*.pt"))
    status, printed = vision(*WORDS)
    assert status == 0
    assert f"resuming {folder}" in printed


def test_a_checkpoint_of_an_earlier_version_knows_no_checksum(vision: Vision, stopped: Path) -> None:
    for path in stopped.glob("checkpoint-*.pt"):
        content = torch.load(path, weights_only=True)
        log = content.pop("log")
        path.unlink()
        last = checkpoint.save(stopped, content | {"log_bytes": log["bytes"], "log_rows": log["rows"]})
    assert last.exists()
    assert vision(*WORDS)[0] == 0


@pytest.mark.slow
def test_an_overwrite_may_be_killed_anywhere(vision: Vision, stopped: Path, tmp_path: Path) -> None:
    words = (*WORDS, "budget.epochs=[3,1]")
    assert vision(*words)[0] == 0
    (folder,) = {*run_dirs(tmp_path / "outputs")} - {stopped}
    whole = numbers(folder)
    unlink, count = Path.unlink, len(list(folder.iterdir()))
    for step in range(count):
        left = [step]

        def dies(path: Path, missing_ok: bool = False, left: list[int] = left) -> None:
            if folder in path.parents and not path.name.startswith("."):
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
            unlink(path, missing_ok=missing_ok)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "unlink", dies)
            vision(*words, "overwrite=true")
        status, printed = vision(*words)
        assert status == 0, printed
        assert numbers(folder) == whole
