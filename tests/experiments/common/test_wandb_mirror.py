"""Weights & Biases: what an offline run holds, and that the service's absence stops nothing."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2

from experiments.common import wandb_mirror
from experiments.common.errors import Interrupted
from experiments.common.workspace import Workspace
from experiments.vision.domain import VISION
from tests.conftest import numbers, run_dirs, start

Vision = Callable[..., tuple[int, str]]


def records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """The records of an offline run file: protobuf messages in LevelDB's log framing after a header of 7 bytes."""
    content, position, parts = path.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while position + 7 <= len(content):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_offline_run_holds_config_group_metrics_and_summary(
    vision: Vision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key is configured there: auto means offline
    status, printed = vision("-m", "method=none,fire", "wandb.mode=auto", "wandb.tags=[mine]")
    assert status == 0, printed
    assert printed.count("Weights & Biases: offline, in ") == 2
    ids = set()
    for directory in run_dirs(tmp_path / "outputs"):
        (file,) = directory.glob("wandb/offline-run-*/*.wandb")
        found = list(records(file))
        run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
        ids.add(run.run_id)
        assert (run.project, run.run_group) == ("fire", "vision-warm_start-cifar10-resnet18-smoke")
        assert directory.name.startswith(run.display_name)
        assert {"vision", "smoke", "mine"} <= set(run.tags)
        config = {item.key: item.value_json for item in run.config.update}
        assert config["seed"] == "0"
        assert config["phase_version"] == str(VISION.phase_version)
        metric = next(r.metric for r in found if r.WhichOneof("record_type") == "metric" and r.metric.glob_name == "*")
        assert metric.step_metric == "epoch"
        history = [
            {(item.key or item.nested_key[0]): item.value_json for item in r.history.item}
            for r in found
            if r.WhichOneof("record_type") == "history"
        ]
        rows = numbers(directory)
        assert [float(row["test/accuracy"]) for row in history] == [row["test/accuracy"] for row in rows]
        assert [int(row["_step"]) for row in history] == list(range(len(rows)))
        summary = {
            item.key or item.nested_key[0]: item.value_json
            for r in found
            if r.WhichOneof("record_type") == "summary"
            for item in r.summary.update
        }
        assert float(summary["final"]) == rows[-1]["test/accuracy"]
        assert any(r.WhichOneof("record_type") == "exit" and r.exit.exit_code == 0 for r in found)
    assert len(ids) == 2  # two runs of one sweep never merge


def test_a_run_that_was_stopped_leaves_one_folder_with_all_rows(vision: Vision, tmp_path: Path) -> None:
    """W&B cannot add to what an earlier process wrote offline, so a run is written when it has finished."""
    words = ("method=none", "wandb.mode=offline", "checkpoint_seconds=0", "budget.epochs=[3,4]")

    def stop(workspace: Workspace) -> None:
        if len(workspace.log.rows) in (2, 5) and len(workspace.log.rows) not in seen:
            seen.append(len(workspace.log.rows))
            raise Interrupted(15)

    seen: list[int] = []
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Workspace, "stop_if_asked", stop)
            assert vision(*words)[0] == 143
    assert not list((tmp_path / "outputs").rglob("*.wandb"))
    status, printed = vision(*words)
    assert status == 0, printed
    (file,) = (tmp_path / "outputs").rglob("*.wandb")
    found = [r for r in records(file) if r.WhichOneof("record_type") == "history"]
    assert len(found) == len(numbers(run_dirs(tmp_path / "outputs")[0])) == 8


def test_nonsense_in_variables_is_named(vision: Vision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "on")
    status, printed = vision("method=none", "wandb.mode=auto")
    assert status == 0
    assert "warning: WANDB_MODE=on is unknown, so offline; valid: online, offline, disabled" in printed
    for word, mode in (("dryrun", "offline"), ("OFFLINE", "offline"), ("run", "online"), ("disabled", "disabled")):
        monkeypatch.setenv("WANDB_MODE", word)
        assert wandb_mirror._resolve_mode("auto") == mode
    monkeypatch.setattr(wandb_mirror, "_unreachable", False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "nonsense")
    monkeypatch.setattr(wandb_mirror, "INIT_TIMEOUT_SECONDS", 2)
    status, printed = vision("method=fire", "wandb.mode=online")
    assert status == 0
    (warning,) = [line for line in printed.splitlines() if "could not start:" in line]
    assert "WANDB_BASE_URL=nonsense" in warning


def test_an_upload_that_breaks_off_is_a_warning(
    vision: Vision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*_: object) -> None:
        raise ConnectionError("broken off")

    monkeypatch.setattr("wandb.sdk.wandb_run.Run.finish", break_off)
    status, printed = vision("method=none", "wandb.mode=offline")
    assert status == 0
    assert "warning: Weights & Biases could not finish: broken off" in printed


@pytest.mark.slow
def test_unreachable_service_is_a_warning(data_dir: Path, tmp_path: Path) -> None:
    process = start(
        "vision",
        "scale=smoke", "threads=1", f"data_dir={data_dir}", f"outputs_dir={tmp_path}",
        WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9",
    )  # fmt: skip
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert "warning: Weights & Biases could not start: " in printed
    assert "Weights & Biases: offline, in " in printed, printed


def test_misconfigured_service_is_a_warning(vision: Vision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "not a key")
    monkeypatch.setattr(wandb_mirror, "_unreachable", False)
    status, printed = vision("wandb.mode=online")
    assert status == 0
    assert "warning: Weights & Biases could not start: " in printed


def test_disabled_never_imports_wandb(data_dir: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from experiments.common.launch import launch; from experiments.vision.domain import VISION; "
        "status = launch(VISION); "
        "sys.exit(status or 'wandb' in sys.modules)"
    )
    arguments = ["scale=smoke", "threads=1", "wandb.mode=disabled", f"data_dir={data_dir}", f"outputs_dir={tmp_path}"]
    assert subprocess.run([sys.executable, "-c", code, *arguments], check=False).returncode == 0
