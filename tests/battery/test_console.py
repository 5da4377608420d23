"""What happens on the terminal: closed and full outputs, Ctrl-C while Python imports, other locales."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_dirs, slow

SMOKE = ("scale=smoke", "method=none", "wandb.mode=disabled", "device=cpu", "threads=1")


def vision(data_dir: Path, outputs: Path, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.vision", *SMOKE, f"data_dir={data_dir}", f"outputs_dir='{outputs}'"]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("how", ["closed", slow("full")])
def test_an_output_that_nobody_reads_stops_no_run(how: str, data_dir: Path, tmp_path: Path) -> None:
    if how == "full":
        with open("/dev/full", "w") as full:
            process = vision(data_dir, tmp_path, stdout=full)
    else:
        process = vision(data_dir, tmp_path, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.close()
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, b"")
    (folder,) = run_dirs(tmp_path)
    assert json.loads((folder / "done").read_text())["final"] > 0


@pytest.mark.parametrize("module", ["experiments.vision", slow("scripts.report")])
def test_ctrl_c_while_importing_is_one_line(module: str) -> None:
    command = [sys.executable, "-m", module, "--help"]
    seen = []
    for seconds in (0.5, 1.0, 2.0, 4.0):  # PyTorch takes a second and more, or many on a busy machine
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
        )  # fmt: skip
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert errors in ("interrupted\n", "") or "runpy" in errors  # before Python has come to anything of ours
        seen.append(errors)
    assert "interrupted\n" in seen


@pytest.mark.slow
def test_a_locale_without_utf_8(data_dir: Path, tmp_path: Path) -> None:
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = vision(data_dir, tmp_path / "uen\u00ef", stdout=subprocess.PIPE, env=plain)
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, b""), printed
    (folder,) = run_dirs(tmp_path / "uen\u00ef")
    assert "finished in" in (folder / "log").read_text("utf-8")
    words = ["vision", str(tmp_path / "uen\u00ef"), "--out", str(tmp_path / "o")]
    command = [sys.executable, "-m", "scripts.report", *words]
    result = subprocess.run(command, cwd=REPOSITORY, env=plain, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    (table,) = (tmp_path / "o").glob("*.md")
    assert "No reset" in table.read_text("utf-8")


def test_wrong_opengl_is_named(humanoid: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "foo")
    status, printed = humanoid("method=none")  # type: ignore[operator]
    assert status == 1
    assert "error: MUJOCO_GL=foo is unknown; valid: egl, osmesa, glfw, glx, wgl, cgl, disable" in printed


def test_the_home_folder_is_meant_by_a_tilde(vision: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for words in (["outputs_dir=~/x"], ["-m", "seed=0", "outputs_dir=~/x"]):
        status, printed = vision("method=none", *words)  # type: ignore[operator]
        assert status == 0, printed
    assert len(run_dirs(tmp_path / "home/x")) == 1
    assert not (REPOSITORY / "~").exists()
