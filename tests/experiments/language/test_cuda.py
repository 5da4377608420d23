"""The language experiment on a GPU: the same curves within rounding, whichever way the network is executed."""

from pathlib import Path

import pytest
import torch

import fire
from tests.conftest import Command, needs_cuda, numbers, run_dirs


def rows(language: Command, outputs: Path, *arguments: str) -> list[dict]:
    """The log of a run, on the GPU unless said otherwise."""
    given = [] if any(argument.startswith("device=") for argument in arguments) else ["device=cuda"]
    status, printed = language(f"outputs_dir={outputs}", *given, *arguments)
    assert status == 0, printed
    (directory,) = run_dirs(outputs)
    return numbers(directory)


def losses(log: list[dict]) -> list[float]:
    return [row["train/loss"] for row in log if "train/loss" in row]


@needs_cuda
@pytest.mark.parametrize("method", [m for m in fire.METHODS if m != "plasticity_injection"])
def test_equals_the_cpu_within_rounding(method: str, language: Command, tmp_path: Path) -> None:
    coefficient = ["method.coefficient=0.5"] if method == "shrink_perturb" else []
    on_gpu = rows(language, tmp_path / "gpu", f"method={method}", "compile=false", *coefficient)
    on_cpu = rows(language, tmp_path / "cpu", f"method={method}", "device=cpu", *coefficient)
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), rel=0.02)


@needs_cuda
@pytest.mark.parametrize(
    "settings", ["compile=true", "compile=graphs", "precision=tf32", "precision=bf16", "precision=fp16"]
)
def test_ways_to_execute_agree(settings: str, language: Command, tmp_path: Path) -> None:
    eager = rows(language, tmp_path / "eager", "compile=false")
    others = [settings] if "compile" in settings else [settings, "compile=false"]
    others += ["budget.micro_batch=8"] if "graphs" in settings else []
    other = rows(language, tmp_path / "other", *others)
    assert losses(other) == pytest.approx(losses(eager), rel=0.1 if "16" in settings else 0.03)


@needs_cuda
def test_loss_scaling_is_saved_and_goes_on(language: Command, tmp_path: Path) -> None:
    arguments = ("precision=fp16", "compile=false")
    whole = rows(language, tmp_path / "whole", *arguments)
    status, printed = language("device=cuda", f"outputs_dir={tmp_path / 'parts'}", "until=phase0", *arguments)
    assert status == 0, printed
    (path,) = (tmp_path / "parts").rglob("kept-60k-*.pt")
    assert torch.load(path, weights_only=True)["state"]["scaler"]["scale"] > 1
    assert losses(rows(language, tmp_path / "parts", *arguments)) == pytest.approx(losses(whole), rel=0.03)


@needs_cuda
def test_share_of_the_peak_is_logged(language: Command, tmp_path: Path) -> None:
    log = rows(language, tmp_path, "precision=bf16", "compile=false")
    known = any(name in torch.cuda.get_device_name() for name in ("A100", "H100", "H200"))
    trained = [row for row in log if "train/loss" in row]
    assert all(("speed/mfu" in row) == known for row in trained) or not known
