"""FIRE with other norms or part of the way, and its control: against the exact polar factor."""

import copy

import pytest
import torch
from torch import nn

import fire
from experiments.vision.models import build
from tests.fire.test_matrices import exact
from tests.fire.test_methods import initial_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("interpolation", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("norm", ["fire", "own"])
def test_norm_and_interpolation(norm: str, interpolation: float, dtype: torch.dtype) -> None:
    """Against the exact polar factor in float64, for a square, a wide and a convolution's matrices."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(8, 4), nn.Conv2d(4, 8, 3)).to(dtype)
    before = initial_of(model)
    report = fire.fire_(model, solver="svd", norm=norm, interpolation=interpolation)
    sfe = 0.0
    for layer, name, positions in ((model[0], "0.weight", 1), (model[1], "1.weight", 1), (model[2], "2.weight", 9)):
        W = before[name].double()
        W = W.permute(2, 3, 0, 1) if W.ndim == 4 else W
        Q = exact(W)
        length = torch.linalg.matrix_norm
        fires = torch.tensor((W.shape[-2] / W.shape[-1]) ** 0.5 / positions, dtype=torch.float64)
        factor = length(W) / length(Q) if norm == "own" else fires
        expected = W + interpolation * (factor.reshape(*factor.shape, 1, 1) * Q - W)
        got = layer.weight.double().permute(2, 3, 0, 1) if layer.weight.ndim == 4 else layer.weight.double()
        assert torch.allclose(got, expected, rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-12)
        sfe += float((expected - W).square().sum())
    assert report.sfe == pytest.approx(sfe, rel=1e-5)
    for matrix, (name, scale) in zip(report.matrices, (("0", 1), ("1", 0.5**0.5), ("2", 2**0.5 / 9)), strict=True):
        now = fire.metrics.dfi(next(m for m in fire.weight_matrices(model)[0] if m.name[0] == name).view, scale).sum()
        assert matrix.dfi_after == pytest.approx(float(now), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("steps", [5, 10])
def test_rescale_keeps_the_direction_and_takes_fires_norm(steps: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Conv2d(4, 8, 3), nn.Linear(3, 3))
    model[2].weight.data.zero_()
    before, projected = initial_of(model), copy.deepcopy(model)
    fire.fire_(projected, steps=steps)
    report = fire.build("rescale", steps=steps).reset(model, before)
    assert report.zero == ("2.weight",)
    for name in ("0.weight", "1.weight"):
        W, new, fired = (
            tensor.detach().double().reshape(*tensor.shape[:2], -1).movedim(-1, 0)
            for tensor in (before[name], model.state_dict()[name], projected.state_dict()[name])
        )
        length = torch.linalg.matrix_norm
        assert torch.allclose(length(new), length(fired), rtol=1e-5)
        assert torch.allclose(new, W * (length(fired) / length(W))[:, None, None], rtol=1e-5, atol=1e-7)
    assert not model[2].weight.any()
    assert torch.equal(model[0].bias, before["0.bias"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rescale_a_convolution_by_one_factor(dtype: torch.dtype, device: str) -> None:
    """Each group gets FIRE's norm, its kernel positions do not; other weights stay."""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 2), nn.Conv2d(4, 5, 1)
    model = nn.Sequential(*convolutions, nn.Linear(5, 4)).to(device, dtype)
    model[0].weight.data[:, :, 1, 1] = 0
    start = initial_of(model)
    report = fire.build("rescale_convolution").reset(model, start)
    assert report.touched == 4
    scaled = initial_of(model)
    model.load_state_dict(start)
    fire.fire_(model)
    fired = initial_of(model)
    assert torch.equal(scaled["4.weight"], start["4.weight"])
    assert torch.equal(scaled["0.bias"], start["0.bias"])
    near = 1e-5 if dtype != torch.bfloat16 else 1e-2
    for name, groups in ("0.weight", 1), ("1.weight", 2), ("2.weight", 1), ("3.weight", 1):
        W, new, other = (state[name].double().unflatten(0, (groups, -1)).flatten(1) for state in (start, scaled, fired))
        norms = [matrix.norm(dim=1, keepdim=True) for matrix in (W, new, other)]
        torch.testing.assert_close(norms[1], norms[2], rtol=near, atol=0)
        torch.testing.assert_close(new, W * (norms[1] / norms[0]), rtol=near, atol=1e-6)


@pytest.mark.parametrize("size", [1e160, 1e-170])
def test_rescale_convolutions_of_any_size(size: float) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3).double()
    start = initial_of(model)
    fire.build("rescale_convolution").reset(model, start)
    expected = model.weight.detach().clone()
    model.weight.data = size * start["weight"]
    fire.build("rescale_convolution").reset(model, start)
    torch.testing.assert_close(model.weight.detach(), expected)


def test_resnet18_computes_the_same_after_its_convolutions_are_rescaled() -> None:
    """Where batch norm estimates its statistics again; after `rescale` it does not."""
    torch.manual_seed(0)
    model = build("resnet18", 10, (3, 32, 32), 4, seed=0).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30
    start, images = initial_of(model), torch.randn(16, 3, 32, 32, dtype=torch.float64)
    logits = []
    for method in ("none", "rescale_convolution", "rescale"):
        model.load_state_dict(start)
        fire.build(method).reset(model, start)
        logits.append(model.train()(images).detach())
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-8, atol=1e-8)
    assert (logits[2] - logits[0]).abs().max() > 0.1


def test_rescale_convolution_without_a_convolution() -> None:
    with pytest.raises(ValueError, match="rescale_convolution finds no convolution in Linear"):
        fire.build("rescale_convolution").reset(nn.Linear(3, 3), initial_of(nn.Linear(3, 3)))
