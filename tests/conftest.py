"""Shared fixtures: the real data set, and the command line as a user calls it."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from experiments.common.launch import launch
from experiments.vision.config import VisionConfig
from experiments.vision.data import prepare_cifar10
from experiments.vision.train import run

REPOSITORY = Path(__file__).parents[1]
# Wall-clock readings: the only numbers two equal runs may differ in.
CLOCK = ("speed/", "reset/seconds")
_CUDA = (pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))


def needs_cuda(test: Callable) -> Callable:
    """Mark a test that needs a GPU."""
    for mark in _CUDA:
        test = mark(test)
    return test


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=_CUDA)])
def device(request: pytest.FixtureRequest) -> str:
    """The test runs on the CPU and, where there is one, on a GPU."""
    return request.param


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real CIFAR-10, fetched once a machine."""
    folder = Path(os.environ.get("FIRE_DATA", "~/.cache/fire")).expanduser()
    prepare_cifar10(folder)
    return folder


@pytest.fixture
def vision(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """`vision("method=fire", ...)` runs the command line in this process at the smoke scale and returns its exit
    status and what it printed; runs go to `tmp_path/outputs`."""

    def call(*arguments: str) -> tuple[int, str]:
        GlobalHydra.instance().clear()
        given = {argument.split("=")[0] for argument in arguments}
        defaults = {
            "scale": "smoke",
            "outputs_dir": str(tmp_path / "outputs"),
            "data_dir": str(data_dir),
            "wandb.mode": "disabled",
            "device": "cpu",  # on which equal runs are equal to the bit
            "threads": "1",  # these networks are too small for more, and a busy machine would make more crawl
        }
        extra = [f"{key}={value}" for key, value in defaults.items() if key not in given]
        monkeypatch.setattr(sys, "argv", [str(REPOSITORY / "experiments/vision/__main__.py"), *arguments, *extra])
        status = launch("vision", VisionConfig, run)
        return status, capsys.readouterr().out

    yield call
    logging.getLogger("fire").handlers = []


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m experiments.vision` in a process of its own, on the CPU."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.vision", *arguments],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
    )  # fmt: skip


def run_dirs(outputs: Path) -> list[Path]:
    """Run directories below an outputs folder."""
    return sorted(path.parent for path in outputs.glob("vision/*/*/run.json"))


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    """The metric rows of a run without clock readings."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(CLOCK)} for row in rows]
