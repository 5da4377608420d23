"""Resets of whole models: what they touch, what they leave alone, what they report."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fire
from scripts.benchmark.peak_memory import peak_of_new_storage
from tests.conftest import needs_cuda
from tests.fire.test_matrices import Tied, exact

GOLDEN = np.load(Path(__file__).with_name("fire_golden.npz"))


def initial_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def perturbed(model: nn.Module) -> nn.Module:
    """The model with every parameter and float buffer moved, as training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model


@pytest.mark.parametrize("key", [k for k in GOLDEN if k.startswith(("conv2d", "linear")) and k.endswith("input")])
def test_layers_as_published(key: str) -> None:
    W = torch.from_numpy(GOLDEN[key])
    layer: nn.Module = nn.Linear(W.shape[1], W.shape[0])
    if W.ndim == 4:
        layer = nn.Conv2d(W.shape[1], W.shape[0], W.shape[2:])  # type: ignore[arg-type]
    layer.weight.data.copy_(W)
    fire.fire_(layer, steps=10)
    assert torch.allclose(
        layer.weight, torch.from_numpy(GOLDEN[key.replace("input", "output_steps10")]), rtol=0, atol=1e-5
    )


def test_fused_qkv_as_published() -> None:
    key = "fused_qkv/96x32"
    model = nn.ModuleDict({"c_attn": nn.Linear(32, 96), "other": nn.Linear(32, 32)})
    model["c_attn"].weight.data.copy_(torch.from_numpy(GOLDEN[f"{key}/input"]))
    fire.fire_(model, steps=5, fused={"c_attn": [32, 32, 32]})
    expected = torch.from_numpy(GOLDEN[f"{key}/output_steps5"])
    assert torch.allclose(model["c_attn"].weight, expected, rtol=0, atol=1e-5)


def test_in_place_and_only_weight_matrices(device: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)).to(device)
    perturbed(model)
    before = initial_of(model)
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    report = fire.fire_(model, solver="svd")
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == pointers[name]
        assert torch.equal(tensor, before[name]) == (name not in ("0.weight", "4.weight"))
    conv = exact(before["0.weight"].permute(2, 3, 0, 1)).permute(2, 3, 0, 1) * (8 / 3) ** 0.5 / 9
    assert torch.allclose(model[0].weight.double(), conv, atol=1e-6)
    assert report.touched == 2
    assert [m.shape for m in report.matrices] == [(1, 3, 3, 8, 3), (4, 8)]
    sfe = sum(float((before[n] - model.state_dict()[n]).double().square().sum()) for n in ("0.weight", "4.weight"))
    assert report.sfe == pytest.approx(sfe, rel=1e-5)
    assert report.dfi_after < 1e-9 < report.dfi_before


def test_zero_and_rank_deficient_are_reported(device: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).to(device)
    model[0].weight.data.zero_()
    model[1].weight.data.copy_(torch.ones(4, 4))
    report = fire.fire_(model, solver="polar_express")
    assert report.zero == ("0.weight",)
    assert report.rank_deficient == ("1.weight",)
    assert str(report).splitlines()[1:3] == ["zero: 0.weight", "rank-deficient: 1.weight"]
    assert torch.equal(model[0].weight.cpu(), torch.zeros(4, 4))
    assert torch.allclose(model[1].weight.cpu(), torch.full((4, 4), 0.25), atol=1e-6)
    # The paper's few steps keep a null space without looking for it.
    report = fire.fire_(model)
    assert report.rank_deficient is None
    assert report.zero == ("0.weight",)
    assert torch.linalg.matrix_rank(model[1].weight.detach()) == 1


def test_bfloat16_model_and_channels_last() -> None:
    model = nn.Conv2d(16, 16, 3).to(memory_format=torch.channels_last)
    reference = nn.Conv2d(16, 16, 3)
    reference.load_state_dict(model.state_dict())
    pointer = model.weight.data_ptr()
    fire.fire_(model)
    fire.fire_(reference)
    assert model.weight.data_ptr() == pointer
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(model.weight, reference.weight, atol=1e-6)
    half = nn.Linear(32, 32).bfloat16()
    expected = fire.polar(half.weight.detach().float())
    fire.fire_(half)
    assert torch.equal(half.weight, expected.bfloat16())


def test_frozen_weights_and_optimiser_references() -> None:
    model = nn.Linear(4, 4)
    model.requires_grad_(False)
    before = model.weight.clone()
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    with pytest.raises(ValueError, match="weight: frozen: its requires_grad is False; frozen=True includes it"):
        fire.fire_(model)
    fire.fire_(model, frozen=True)
    assert not torch.equal(model.weight, before)
    assert optimizer.param_groups[0]["params"][0] is model.weight


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("method", "settings"),
    [("none", {}), ("shrink_perturb", {"coefficient": 0.3}), ("full_reset", {}), ("fire", {"solver": "svd"})],
)
def test_methods(method: str, settings: dict, device: str) -> None:
    model = small().to(device)
    initial = initial_of(small())  # kept on the CPU
    perturbed(model)
    before = initial_of(model)
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    report = fire.build(method, **settings).reset(model, initial)
    after = model.state_dict()
    assert [tensor.data_ptr() for tensor in after.values()] == pointers
    parameters = dict(model.named_parameters())
    for name, tensor in after.items():
        expected = before[name]
        if method == "full_reset":
            expected = initial[name].to(device)
        elif method == "shrink_perturb" and name in parameters:
            expected = 0.7 * before[name] + 0.3 * initial[name].to(device)
        if method != "fire" or name not in ("0.weight", "3.weight", "4.weight"):
            assert torch.allclose(tensor, expected, atol=1e-6), name
    weights = [name for name in parameters if parameters[name].ndim >= 2]
    assert [m.name for m in report.matrices] == weights
    assert report.sfe == pytest.approx(sum(fire.metrics.sfe(before[n], after[n]) for n in weights), rel=1e-4, abs=1e-9)
    assert report.dfi_after == pytest.approx(fire.metrics.isometry(model)["dfi"], rel=1e-4, abs=1e-9)
    full = sum(fire.metrics.sfe(before[n], initial[n]) for n in weights)
    assert report.sfe_normalised == pytest.approx(report.sfe / full, rel=1e-4)
    assert (method != "full_reset") or report.sfe_normalised == pytest.approx(1)
    assert (report.method, report.touched) == (
        method,
        {"none": 0, "shrink_perturb": 8, "full_reset": 11, "fire": 3}[method],
    )


@pytest.mark.parametrize("method", [fire.Fire(solver="svd"), fire.ShrinkPerturb(0.8)])
def test_scope_sends_linear_layers_to_their_initial_weights(method: fire.Method) -> None:
    model = small()
    initial = initial_of(model)
    perturbed(model)
    before = initial_of(model)
    method.reset(model, initial, fire.Scope(reset=["3", "4"], exclude=["3", "4"]))
    for name, tensor in model.state_dict().items():
        if name.startswith(("3", "4")):
            assert torch.equal(tensor, initial[name])
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_tied_weights_are_one_by_whatever_name() -> None:
    def reset(method: fire.Method, scope: fire.Scope) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        model = Tied(tied=True)
        initial = initial_of(model)
        perturbed(model)
        before = model.head.weight.detach().clone()
        method.reset(model, initial, scope)
        return model, before, initial["head.weight"]

    model, _, initial = reset(fire.Fire(), fire.Scope(reset=["head"]))
    assert torch.equal(model.head.weight, initial)
    model, before, initial = reset(fire.ShrinkPerturb(0.5), fire.Scope())
    assert torch.allclose(model.head.weight, 0.5 * (before + initial), atol=1e-6)

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 8)
            self.b = nn.Linear(4, 8)
            self.b.weight = nn.Parameter(self.a.weight.detach())  # another Parameter, the same memory

    model = Shared()
    initial = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    before = model.a.weight.detach().clone()
    fire.ShrinkPerturb(0.5).reset(model, initial)
    assert torch.allclose(model.a.weight, 0.5 * before)
    report = fire.Fire(solver="svd").reset(model, initial, fire.Scope(include=["b"], fused={"b": [4, 4]}))
    assert [m.name for m in report.matrices] == ["a.weight[0:4]", "a.weight[4:8]"]
    assert torch.allclose(model.b.weight.double(), torch.cat([exact(part) for part in before.split(4)]), atol=1e-6)


def test_float64_model_to_a_tolerance_float32_cannot_reach() -> None:
    model = nn.Linear(16, 16, dtype=torch.float64)
    assert fire.fire_(model, solver="polar_express", tol=1e-13).dfi_after < 1e-22
    with pytest.raises(ValueError, match="tol must lie in"):
        fire.fire_(nn.Linear(16, 16), solver="polar_express", tol=1e-13)


def test_scale_is_as_precise_as_the_weights() -> None:
    model = nn.Linear(64, 30).double()
    expected = exact(model.weight) * (30 / 64) ** 0.5
    torch.set_default_dtype(torch.bfloat16)
    try:
        report = fire.fire_(model, solver="svd")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.allclose(model.weight, expected, atol=1e-14)
    assert report.dfi_after < 1e-26


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_empty_weight_is_skipped() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 0))
    assert fire.fire_(model).skipped["1.weight"].startswith("empty; where FSDP has sharded it, use FullySharded")


def test_compiled_model_is_looked_through() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    compiled = torch.compile(model)
    report = fire.fire_(compiled, include=["1"])
    assert [m.name for m in report.matrices] == ["1.weight"]


def test_importing_fire_loads_nothing_beyond_torch() -> None:
    import subprocess
    import sys

    heavy = "'hydra', 'omegaconf', 'wandb', 'pandas', 'matplotlib', 'scipy', 'torch._dynamo'"
    code = f"import sys, fire; print([m for m in ({heavy}) if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("solver", ["newton_schulz", "polar_express"])
@pytest.mark.parametrize(
    ("count", "shape"),
    [(12, (512, 512)), (5, (512, 512)), (3, (768, 768)), (2, (1024, 1024)), (1, (1536, 1536)), (1, (9000, 300))],
)
def test_memory_is_bounded_by_the_largest_group(solver: str, count: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(shape[1], shape[0], bias=False) for _ in range(count))
    group = 4 * count * shape[0] * shape[1]
    peak = peak_of_new_storage(lambda: fire.fire_(model, solver=solver))
    # A single square matrix needs its Gram matrix and a Cholesky factor beside it.
    assert group < peak < (3.5 if (solver, count, shape) == ("polar_express", 1, (1536, 1536)) else 3) * group


@needs_cuda
@pytest.mark.parametrize("solver", ["newton_schulz", "polar_express"])
def test_memory_on_the_gpu(solver: str) -> None:
    model = nn.ModuleList(nn.Linear(512, 512, bias=False) for _ in range(28)).to("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fire.fire_(model, solver=solver)
    assert 28 * 4 * 512**2 < torch.cuda.max_memory_allocated() - before < 3 * 28 * 4 * 512**2


def test_initial_weights_that_are_the_models_own_are_refused() -> None:
    """They have changed with it, so nothing would be reset, without a word."""
    model = nn.Linear(3, 3)
    initial = model.state_dict()
    perturbed(model)
    for method in (fire.FullReset(), fire.ShrinkPerturb(coefficient=0.5)):
        with pytest.raises(ValueError, match="the initial weights are the model's own tensors"):
            method.reset(model, initial)
