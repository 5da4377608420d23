"""Metrics against their definitions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fire
from fire import metrics


def test_sfe_and_dfi_of_known_matrices() -> None:
    W = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert metrics.sfe(W, torch.zeros(3, 2)) == pytest.approx(5)
    assert float(metrics.dfi(W)) == pytest.approx(9)  # sigma^2 = 4, 1
    assert float(metrics.dfi(W.T)) == pytest.approx(9)  # on the smaller side, whichever that is
    assert float(metrics.dfi(3 * W, scale=3)) == pytest.approx(9)
    assert metrics.dfi(torch.stack([W, 0 * W])).tolist() == pytest.approx([9, 2])


def test_dfi_agrees_with_float64() -> None:
    W = torch.randn(7, 50, 12, generator=torch.Generator().manual_seed(0))
    for size in (1e-30, 1e-3, 1.0, 1e3, 1e15):
        G = (size * W.double()).mT @ (size * W.double()) - torch.eye(12)
        assert torch.allclose(metrics.dfi(size * W), G.square().sum((-2, -1)), rtol=1e-5)
    # Of an isometry, no more is seen than float32 rounds.
    Q = torch.linalg.qr(torch.randn(256, 256, dtype=torch.float64)).Q
    assert float(metrics.dfi(Q.float())) < 1e-10


def test_isometry_of_a_model() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, (1, 2)), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.stack([torch.eye(2) / 2, torch.zeros(2, 2)], dim=-1).unsqueeze(2))
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0]]))
    values = metrics.isometry(model)
    # Scales 1/2 and sqrt(1/4): the first slice and the row (2^2 - 1)^2 = 9 away; the zero slice 2.
    assert values["dfi"] == pytest.approx(0 + 2 + 9)
    assert values["dfi_normalised"] == pytest.approx((0 + 2 / 2 + 9) / 3)
    assert values["dfi_raw"] == pytest.approx(2 * 0.75**2 + 2 + 0)
    assert values["anisotropy"] == pytest.approx(0, abs=1e-12)  # the zero slice is left out


@pytest.mark.parametrize("factor", [1e-20, 0.3, 7.0, 1e15])
def test_anisotropy_is_of_the_singular_values_whatever_the_norm(factor: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 5, bias=False), nn.Linear(5, 9, bias=False))
    with torch.no_grad():
        expected = 0.0
        for layer in model:
            sigma = torch.linalg.svdvals(layer.weight.double())
            expected += float(1 - sigma.square().sum() ** 2 / (5 * sigma.pow(4).sum())) / 2
            layer.weight.mul_(factor)
    assert metrics.isometry(model)["anisotropy"] == pytest.approx(expected, rel=1e-5)
    fire.fire_(model, solver="svd")
    for layer in model:
        layer.weight.data.mul_(factor)
    assert metrics.isometry(model)["anisotropy"] < 1e-12
    for layer in model:
        layer.weight.data.copy_(torch.outer(torch.arange(1.0, 1 + len(layer.weight)), torch.ones(layer.in_features)))
    assert metrics.isometry(model)["anisotropy"] == pytest.approx(1 - 1 / 5)
    for layer in model:
        layer.weight.data.zero_()
    assert metrics.isometry(model)["anisotropy"] == 0


def test_ranks_of_known_spectra() -> None:
    A = torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0]))
    assert metrics.stable_rank(A) == pytest.approx(6 / 4)
    assert metrics.effective_rank(A) == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
    assert metrics.srank(A) == 3
    assert metrics.srank(A, delta=0.24) == 3
    assert metrics.srank(A, delta=0.26) == 2
    assert metrics.srank(A, delta=0.5) == 1
    assert (metrics.stable_rank(0 * A), metrics.effective_rank(0 * A), metrics.srank(0 * A)) == (0, 0, 0)
    assert metrics.effective_rank(torch.eye(5)) == pytest.approx(5)


def test_dormant_ratio_counts_units_over_samples_and_positions() -> None:
    # Scores relative to the mean .67: 2.99, 0, .015
    dense = metrics.Activation("dense", torch.tensor([[1.0, 0.0, 0.01], [3.0, 0.0, 0.01]]), -1)
    assert metrics.dormant_ratio([dense], tau=0.0) == pytest.approx(1 / 3)
    assert metrics.dormant_ratio([dense], tau=0.025) == pytest.approx(2 / 3)
    values = torch.zeros(2, 2, 3, 3)
    values[:, 0, 1, 1] = 1
    conv = metrics.Activation("conv", values, 1)
    assert metrics.dormant_ratio([conv]) == pytest.approx(1 / 2)
    assert metrics.dormant_ratio([metrics.Activation("silent", torch.zeros(4, 3), -1)]) == 1
    assert metrics.dormant_ratio([dense, conv], tau=0.0) == pytest.approx(2 / 5)


def test_dormant_ratio_of_tokens_and_of_a_convolution_over_time() -> None:
    """Half of the units are silent; the axis of tokens or time, as long as that of the units, is not theirs."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Conv1d(4, 4, 1), nn.ReLU())
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([1.0, -1.0, 2.0, -1.0]))
    with metrics.record_activations(model, unit_axis={"3": 1}) as recorded:
        model(torch.randn(5, 4, 3))
    assert [(a.name, tuple(a.values.shape), a.unit_axis) for a in recorded] == [
        ("1", (5, 4, 4), -1),
        ("3", (5, 4, 4), 1),
    ]
    assert [metrics.dormant_ratio([a]) for a in recorded] == [0.5, 0.5]
    with pytest.raises(ValueError, match="unit_axis pattern 'conv' matches no module that is recorded"):
        metrics.record_activations(model, unit_axis={"conv": 1}).__enter__()


def test_recorded_activations_and_weight_norm() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Tanh())
    with metrics.record_activations(model) as outputs:
        result = model(torch.ones(5, 2))
    assert [(output.name, tuple(output.values.shape)) for output in outputs] == [("1", (5, 3)), ("3", (5, 2))]
    assert torch.equal(outputs[1].values, result)
    model(torch.ones(1, 2))
    assert len(outputs) == 2  # the hooks are gone
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert metrics.weight_norm(model) == pytest.approx(float(flat.norm()))


def exact_hessian(model: nn.Module, loss: Callable[[nn.Module], torch.Tensor]) -> torch.Tensor:
    """(count, count), by differentiating every entry of the gradient."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(model), parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradients])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True) for entry in flat]
    return torch.stack([torch.cat([r.flatten() for r in row]) for row in rows])


@pytest.mark.parametrize("norm", [False, True])
def test_sharpness_is_the_top_eigenvalue_of_the_exact_hessian(norm: bool) -> None:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(8) if norm else nn.Identity()
    model = nn.Sequential(nn.Linear(5, 8), middle, nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(16, 5), torch.randint(3, (16,))) for _ in range(3)]
    losses = [lambda x=x, y=y: nn.functional.cross_entropy(model(x), y) for x, y in batches]
    hessian = sum(exact_hessian(model, lambda _, f=f: f()) for f in losses) / 3  # type: ignore[misc]
    eigenvalues = torch.linalg.eigvalsh(hessian.double())
    value, error = metrics.sharpness(losses, model.parameters(), tol=1e-4)
    assert value == pytest.approx(float(eigenvalues[-1]), rel=1e-3)
    assert error <= 1e-4 * value
    # The largest, not the largest in size: of minus the loss it is minus the smallest.
    value, _ = metrics.sharpness([lambda f=f: -f() for f in losses], model.parameters(), tol=1e-4)
    assert value == pytest.approx(-float(eigenvalues[0]), rel=1e-2, abs=1e-4)
    head = hessian[-27:, -27:].double()  # with respect to the last layer alone: 3 x 8 weights and 3 biases
    value, _ = metrics.sharpness(losses, model[3].parameters(), tol=1e-4)
    assert value == pytest.approx(float(torch.linalg.eigvalsh(head)[-1]), rel=1e-3)


def test_sharpness_of_attention() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x, y = torch.randn(4, 5, 8), torch.randn(4, 5, 8)

    def loss() -> torch.Tensor:
        return (attention(x, x, x, need_weights=False)[0] - y).square().mean()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        eigenvalues = torch.linalg.eigvalsh(exact_hessian(attention, lambda _: loss()).double())
    value, _ = metrics.sharpness([loss], attention.parameters(), tol=1e-3)  # whatever kernel is the default
    assert value == pytest.approx(float(eigenvalues[-1]), rel=1e-2)


def test_sharpness_of_a_quadratic_and_without_anything() -> None:
    x = nn.Parameter(torch.ones(4))
    scale = torch.tensor([3.0, -5.0, 0.5, 1.0])
    value, error = metrics.sharpness([lambda: (scale * x.square()).sum() / 2], [x])
    assert (value, error) == (pytest.approx(3.0, rel=1e-3), pytest.approx(0, abs=0.05))
    assert metrics.sharpness([lambda: x.sum()], [x])[0] == 0
    with pytest.raises(ValueError, match="at least one batch"):
        metrics.sharpness([], [x])
    with pytest.raises(ValueError, match="not finite"):
        metrics.sharpness([lambda: (x * float("inf")).square().sum()], [x])
