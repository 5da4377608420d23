"""The vision experiment on a GPU: the same curves within rounding, whichever way the network is executed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fire
from experiments.common.config import Runtime
from experiments.vision.models import build
from tests.conftest import needs_cuda, numbers, run_dirs

Vision = Callable[..., tuple[int, str]]
DEVICE = "cuda"


def curve(vision: Vision, outputs: Path, *arguments: str) -> list[float]:
    """Training losses of a run on the GPU."""
    status, printed = vision(f"device={DEVICE}", f"outputs_dir={outputs}", *arguments)
    assert status == 0, printed
    (directory,) = run_dirs(outputs)
    return [row["train/loss"] for row in numbers(directory) if "train/loss" in row]


@needs_cuda
@pytest.mark.parametrize("method", [m for m in fire.METHODS if m != "plasticity_injection"])
def test_equals_the_cpu_within_rounding(method: str, vision: Vision, tmp_path: Path) -> None:
    on_gpu = curve(vision, tmp_path / "gpu", f"method={method}", "compile=false")
    on_cpu = curve(vision, tmp_path / "cpu", f"method={method}", "device=cpu")
    assert on_gpu == pytest.approx(on_cpu, rel=0.02)


@needs_cuda
@pytest.mark.parametrize("settings", ["compile=true", "compile=graphs", "precision=tf32", "precision=bf16"])
def test_ways_to_execute_agree(settings: str, vision: Vision, tmp_path: Path) -> None:
    eager = curve(vision, tmp_path / "eager", "compile=false")
    others = [settings] if "compile" in settings else [settings, "compile=false"]
    other = curve(vision, tmp_path / "other", *others)
    assert other == pytest.approx(eager, rel=0.1 if "bf16" in settings else 0.03)


@needs_cuda
def test_interrupted_run_goes_on(vision: Vision, tmp_path: Path) -> None:
    whole = curve(vision, tmp_path / "whole")
    status, printed = vision(f"device={DEVICE}", f"outputs_dir={tmp_path / 'parts'}", "until=phase0")
    assert status == 0, printed
    assert curve(vision, tmp_path / "parts") == pytest.approx(whole, rel=0.03)


@needs_cuda
def test_sharpness(vision: Vision, tmp_path: Path) -> None:
    curve(vision, tmp_path, "sharpness=64", "compile=graphs")
    (boundary,) = [row for row in numbers(run_dirs(tmp_path)[0]) if "reset/sfe" in row]
    assert boundary["plasticity/sharpness"] > 0


def check_projection_in_place(device: str, compile: str) -> None:
    """A network compiled before the reset computes with the weights after it."""
    model = build("resnet18", 8, 10, seed=0).to(device).eval()
    compiled = Runtime(device, "fp32", compile, 0).compiled(model)
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        for _ in range(3):  # CUDA graphs are captured in the second call and replayed in the third
            before = compiled(images).clone()
        fire.fire_(compiled, solver="polar_express")
        after, expected = compiled(images).clone(), model(images)
    assert not torch.allclose(before, expected, rtol=0.1)
    assert torch.allclose(after, expected, rtol=1e-3, atol=1e-4)
    assert fire.metrics.isometry(model)["dfi"] < 1e-6


@needs_cuda
@pytest.mark.parametrize("compile", ["true", "graphs"])
def test_projection_under_a_compiled_model(compile: str) -> None:
    torch._dynamo.utils.counters.clear()
    check_projection_in_place("cuda", compile)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0  # what is compiled is captured too


@pytest.mark.slow
def test_projection_under_a_compiled_model_on_the_cpu() -> None:
    check_projection_in_place("cpu", "true")


@needs_cuda
def test_projection_under_a_captured_graph() -> None:
    model = torch.nn.Linear(256, 256, device="cuda")
    images = torch.randn(64, 256, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        model(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = model(images)
    fire.fire_(model, solver="polar_express")
    graph.replay()
    assert torch.allclose(output, model(images).detach(), rtol=1e-3, atol=1e-4)
