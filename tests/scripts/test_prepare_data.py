"""`python -m scripts.prepare_data` as a user runs it."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY


def prepare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.prepare_data", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_ready_data_is_verified(data_dir: Path) -> None:
    result = prepare("cifar10", "--data-dir", str(data_dir))
    assert result.returncode == 0
    assert "checksums right" in result.stdout


def test_unknown_data_set_and_unusable_folder(tmp_path: Path) -> None:
    result = prepare("mnist")
    assert result.returncode != 0
    assert "cifar10" in result.stderr
    (tmp_path / "file").touch()
    result = prepare("cifar10", "--data-dir", str(tmp_path / "file"))
    assert result.returncode == 1
    assert result.stderr.startswith("error: data_dir=")
