"""docs/frameworks.md with other people's packages, at their newest versions, beside the environment of the tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGES = (
    "lightning", "lightning-utilities", "pytorch-lightning", "torchmetrics", "peft", "accelerate",
    "stable-baselines3", "cloudpickle", "timm", "torchao",
)  # fmt: skip


@pytest.mark.slow
def test_other_peoples_packages(tmp_path: Path) -> None:
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    subprocess.run([*install, *PACKAGES], check=True)
    checks = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "tests/fire/frameworks.py"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(checks, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
