"""The vision experiment on a GPU: the same curves within rounding, whichever way the network is executed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fire
from experiments.common.errors import Interrupted
from experiments.common.runtime import Runtime
from experiments.vision.models import build
from tests.conftest import needs_cuda, numbers, run_dirs
from tests.experiments.vision.conftest import Storage, trained, training
from tests.experiments.vision.test_learner import CBP, L2_INIT, REDO, SNR

Vision = Callable[..., tuple[int, str]]
DEVICE = "cuda"


def curve(vision: Vision, outputs: Path, *arguments: str) -> list[float]:
    """Training losses of a run on the GPU."""
    status, printed = vision(f"device={DEVICE}", f"outputs_dir={outputs}", *arguments)
    assert status == 0, printed
    (directory,) = run_dirs(outputs)
    return [row["train/loss"] for row in numbers(directory) if "train/loss" in row]


@needs_cuda
@pytest.mark.parametrize("method", [m for m in fire.METHODS if m not in ("plasticity_injection", "redo", "cbp", "snr")])
def test_equals_the_cpu_within_rounding(method: str, vision: Vision, tmp_path: Path) -> None:
    """But for those that reset units: one at the threshold is reset on one of them alone."""
    words = (f"method={method}", *(["method.coefficient=1e-3"] if method == "l2_init" else []))
    on_gpu = curve(vision, tmp_path / "gpu", *words, "compile=false")
    on_cpu = curve(vision, tmp_path / "cpu", *words, "device=cpu")
    assert on_gpu == pytest.approx(on_cpu, rel=0.02)


@needs_cuda
@pytest.mark.parametrize(
    ("compile", "precision"),
    [("true", "fp32"), ("graphs", "fp32"), ("graphs", "bf16"), ("false", "bf16"), ("false", "tf32")],
)
def test_ways_to_execute_agree(compile: str, precision: str, vision: Vision, tmp_path: Path) -> None:
    settings = ("budget.train_images=700", "method=fire")  # the last batch of an epoch has 6 images, then 60
    eager = curve(vision, tmp_path / "eager", "compile=false", *settings)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    other = curve(vision, tmp_path / "other", f"compile={compile}", f"precision={precision}", *settings)
    assert other == pytest.approx(eager, rel=0.1 if precision == "bf16" else 0.03)
    # Compiled once, whatever the batch's size, and after the reset still the same.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (compile != "false")
    assert not torch._dynamo.utils.counters["graph_break"]


@needs_cuda
@pytest.mark.parametrize("at_boundary", ["keep", "reset"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [("method=fire",), L2_INIT, REDO, CBP, SNR], ids=" ".join)
def test_captured_run_equals_eager(method: tuple[str, ...], precision: str, at_boundary: str, uncompiled: None) -> None:
    settings = (*method, f"precision={precision}", f"optimizer_at_boundary={at_boundary}")
    eager = trained(training("false", *settings, device=DEVICE), Storage())
    captured = trained(training("graphs", *settings, device=DEVICE), Storage())
    # The same kernels; some add in an order that differs from call to call, and what that rounds grows with the steps.
    for key in ("train/loss", "test/loss"):
        one, other = ([row[key] for row in rows if key in row] for rows in (eager, captured))
        assert other == pytest.approx(one, rel=0.1 if precision == "bf16" else 0.03)
    assert [row["epoch"] for row in captured] == [1, 2, 2, 3, 4]


@needs_cuda
def test_captured_run_goes_on_in_the_middle_of_an_epoch(uncompiled: None) -> None:
    whole = trained(training("graphs", device=DEVICE), Storage())
    first, second = Storage(stop_at=8), Storage()
    with pytest.raises(Interrupted):
        trained(training("graphs", device=DEVICE), first)
    rest = training("graphs", device=DEVICE)
    rest.load_state_dict(first.state)
    rows = first.numbers() + trained(rest, second)
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in whole]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == pytest.approx(
        [row["train/loss"] for row in whole if "train/loss" in row], rel=0.03
    )


@needs_cuda
def test_an_epoch_waits_for_the_device_at_its_end_alone(uncompiled: None) -> None:
    one = training("graphs", device=DEVICE).learner
    order = torch.randperm(200, device=DEVICE)
    for indices in order.split(64):  # captures, which may wait
        one.update(indices, 0.001)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for indices in order.split(64):
            one.update(indices, 0.002)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert one.read_totals()["steps"] == 8


@needs_cuda
def test_test_pass_sees_new_weights(uncompiled: None) -> None:
    one = training("graphs", device=DEVICE).learner
    before = one.test()
    fire.fire_(one.model)
    with torch.no_grad():
        for buffer in one.model.buffers():
            buffer.add_(1)
    after = one.test()
    eager = training("false", device=DEVICE).learner
    eager.model.load_state_dict(one.model.state_dict())
    assert after["test/loss"] == pytest.approx(eager.test()["test/loss"], rel=1e-4)
    assert after["test/loss"] != pytest.approx(before["test/loss"], rel=1e-4)


@needs_cuda
def test_interrupted_run_goes_on(vision: Vision, tmp_path: Path) -> None:
    whole = curve(vision, tmp_path / "whole")
    status, printed = vision(f"device={DEVICE}", f"outputs_dir={tmp_path / 'parts'}", "until=phase0")
    assert status == 0, printed
    assert curve(vision, tmp_path / "parts") == pytest.approx(whole, rel=0.03)
    (directory,) = run_dirs(tmp_path / "parts")
    assert json.loads((directory / "run.json").read_text())["values"]["compile"] == "graphs"  # the default


@needs_cuda
def test_sharpness(vision: Vision, tmp_path: Path, uncompiled: None) -> None:
    curve(vision, tmp_path, "sharpness=64", "compile=graphs")
    (boundary,) = [row for row in numbers(run_dirs(tmp_path)[0]) if "reset/sfe" in row]
    assert boundary["plasticity/sharpness"] > 0


def check_projection_in_place(device: str, compile: str) -> None:
    """A network compiled before the reset computes with the weights after it."""
    model = build("resnet18", 10, (3, 32, 32), 8, seed=0).to(device).eval()
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
