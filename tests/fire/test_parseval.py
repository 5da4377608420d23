"""Parseval's penalty: against the plain formula in float64, captured, compiled, and what it costs."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fire
from experiments.humanoid.models import StackedLayerNorm, StackedLinear
from scripts.benchmark.peak_memory import peak_of_new_storage
from tests.fire.test_during import network
from tests.fire.test_methods import initial_of, perturbed
from tests.tape import Tape, launches


def deviation(matrix: Tensor) -> Tensor:
    """||W W^T - I||_F^2."""
    return torch.norm(matrix @ matrix.T - torch.eye(len(matrix), dtype=matrix.dtype)) ** 2


def plain(model: nn.Module, parts: Callable[[str, Tensor], list[Tensor]] = lambda name, weight: [weight]) -> Tensor:
    """The sum over layers, as it is defined; `parts` cuts a weight where it is several matrices."""
    total = torch.zeros((), dtype=torch.float64)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.requires_grad:
            for part in parts(name, module.weight):
                total = total + deviation(part.reshape(len(part), -1))
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            total = total + (module.weight**2 - 1).norm() ** 2
    return total


def check(model: nn.Module, expected: Tensor, scope: fire.Scope) -> None:
    """Value and gradient of the penalty are those of a plain sum."""
    during = fire.build("parseval", coefficient=0.3).during(model, initial_of(perturbed(copy.deepcopy(model))), scope)
    penalty = during.penalty()
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.3 * expected.item(), rel=1e-12)
    assert during.metrics() == {"method/penalty": pytest.approx(0.3 * expected.item(), rel=1e-12)}
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    right = torch.autograd.grad(0.3 * expected, parameters, allow_unused=True)
    found = torch.autograd.grad(2 * penalty, parameters, allow_unused=True)
    for name, one, other in zip(names, found, right, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, 2 * other, rtol=1e-11, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_the_plain_formula(kind: str) -> None:
    model, _, scope, _ = network(kind)
    check(model, plain(model), scope)
    check(model.to(memory_format=torch.channels_last), plain(model), scope)


def test_fused_tied_frozen_and_tall_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(9, 4), nn.Linear(4, 12), nn.LayerNorm(12), nn.Linear(12, 4), nn.Linear(4, 9, bias=False),
        nn.Embedding(3, 4), nn.Linear(3, 3),
    ).double()  # fmt: skip
    model[0].weight = model[4].weight  # a tall one, which counts once
    model[6].requires_grad_(False)
    scope = fire.Scope(fused={"1": [4, 4, 4]})
    check(model, plain(model, lambda name, weight: list(weight.split(4)) if name == "1" else [weight]), scope)


def test_autocast_changes_nothing() -> None:
    model, _, scope, _ = network("mlp")
    model = model.float()
    during = fire.build("parseval", coefficient=0.3).during(model, initial_of(perturbed(copy.deepcopy(model))), scope)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            penalty = during.penalty()
            assert penalty is not None
            found.append([penalty, *torch.autograd.grad(penalty, [*model.parameters()], allow_unused=True)])
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_stacked_layers() -> None:
    """SimBa's two critics are one network, whose layers are (members, in, out)."""
    torch.manual_seed(0)
    model = nn.Sequential(StackedLinear(2, 5, 3), StackedLayerNorm(2, 3), StackedLinear(2, 3, 4)).double()
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight)
    nn.init.normal_(model[1].weight)
    expected = sum(deviation(W.T) for layer in (model[0], model[2]) for W in layer.weight)
    check(model, expected + (model[1].weight ** 2 - 1).norm() ** 2, fire.Scope())


def test_gradients_of_both_orders() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 4, bias=False).double()
    start = {"weight": torch.zeros(4, 3, dtype=torch.float64)}
    during = fire.Parseval(0.3).during(layer, start, fire.Scope())
    (slope,) = torch.autograd.grad(during.penalty(), [layer.weight], create_graph=True)
    direction = torch.randn_like(layer.weight)
    (curvature,) = torch.autograd.grad((slope * direction).sum(), [layer.weight])
    with torch.no_grad():
        layer.weight += 1e-6 * direction
    (after,) = torch.autograd.grad(during.penalty(), [layer.weight])
    torch.testing.assert_close((after - slope.detach()) / 1e-6, curvature, rtol=1e-4, atol=1e-4)


def test_an_isometry_costs_nothing_and_the_penalty_leads_there() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4, bias=False).double()
    initial = initial_of(model)
    during = fire.Parseval(1.0).during(model, initial, fire.Scope())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        during.penalty().backward()
        optimizer.step()
    assert during.penalty().item() == pytest.approx(0, abs=1e-20)
    torch.testing.assert_close(torch.linalg.svdvals(model.weight.detach()), torch.ones(4, dtype=torch.float64))


def test_few_operations() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(20)))
    during = fire.Parseval(0.1).during(model, initial_of(model), fire.Scope())
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    counted = launches(lambda: torch.autograd.grad(during.penalty(), weights))
    products = sum(count for name, count in counted.items() if "bmm" in name)
    assert products == 3 * 20
    assert sum(counted.values()) - products < 15, counted  # of 40 tensors


def test_a_tall_weight_needs_the_small_gram_matrix() -> None:
    model = nn.Linear(4, 2000, bias=False)
    during = fire.Parseval(0.1).during(model, initial_of(model), fire.Scope())
    assert peak_of_new_storage(lambda: during.penalty().backward()) < 8 * model.weight.numel() * 4


def test_captured() -> None:
    """The captured penalty and its gradient are of the weights at the replay."""
    model, initial, scope, _ = network("conv")
    during = fire.Parseval(0.3).during(model, initial, scope)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with Tape() as tape:  # which refuses to wait
        during.penalty().backward()
    perturbed(model)
    for p in model.parameters():
        p.grad.zero_()
    tape.replay()
    weights = [p for p in model.parameters() if p.grad.any()]
    assert len(weights) == 5  # three layers and two norms
    for p, right in zip(weights, torch.autograd.grad(0.3 * plain(model), weights), strict=True):
        torch.testing.assert_close(p.grad, right)


def test_compiled() -> None:
    model, initial, scope, x = network("conv")
    during = fire.Parseval(0.3).during(model, initial, scope)
    loss = torch.compile(lambda x: model(x).square().mean() + during.penalty(), backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(loss(x), list(model.parameters()))
    right = torch.autograd.grad(model(x).square().mean() + during.penalty(), list(model.parameters()))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)
