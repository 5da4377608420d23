"""DASH against the definition, vector by vector in float64, and what it leaves as it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fire
from tests.fire.test_during import ConvNet, network
from tests.fire.test_methods import initial_of, perturbed

ALPHA, LAMBDA = 0.3, 0.05


def problem(kind: str) -> tuple[nn.Module, dict[str, Tensor], list[Tensor], Callable[[Any], Tensor]]:
    """A network, its initial weights, batches and their loss."""
    model, initial, _, x = network(kind)
    model.train()
    return model, initial, [x, 2 * x + 1, x.flip(0)[: len(x) // 2] - 1], lambda batch: model(batch).sin().mean()


def gradients(model: nn.Module, batches: list[Tensor], training: bool) -> dict[str, Tensor]:
    """The average negative gradient, of a copy in this mode."""
    other = copy.deepcopy(model).train(training)
    found = {name: torch.zeros_like(p) for name, p in other.named_parameters()}
    for batch in batches:
        other.zero_grad()
        other(batch).sin().mean().backward()
        for name, p in other.named_parameters():
            found[name] = (1 - ALPHA) * found[name] + ALPHA * -p.grad
    return found


def factor(g: Tensor, w: Tensor) -> float:
    """Of one vector; that of a unit that never fires has no gradient."""
    norms = float(g.norm()) * float(w.norm())
    return min(max(float(g @ w) / norms if norms else 0.0, LAMBDA), 1.0)


def shrunk(model: nn.Module, average: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state that DASH leaves, by loops over vectors."""
    state = initial_of(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        weight, g = state[f"{name}.weight"], average[f"{name}.weight"]
        for out in range(len(weight)):
            if isinstance(module, nn.Linear):
                weight[out] *= factor(g[out], weight[out])
            else:
                for into in range(weight.shape[1]):
                    weight[out, into] *= factor(g[out, into].flatten(), weight[out, into].flatten())
        if module.bias is not None:
            bias = state[f"{name}.bias"]
            bias *= factor(average[f"{name}.bias"], bias)
    return state


@pytest.mark.parametrize("variant", ["published", "as_published_code"])
@pytest.mark.parametrize("kind", ["mlp", "tokens", "conv"])
def test_the_plain_algorithm(kind: str, variant: str) -> None:
    model, initial, batches, loss = problem(kind)
    before = initial_of(model)
    expected = shrunk(model, gradients(model, batches, training=variant == "published"))
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    report = fire.build("dash", alpha=ALPHA, lambda_=LAMBDA, variant=variant).reset(
        model, initial, data=iter(batches), loss=loss
    )
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "bn" not in name}  # neither norms nor running statistics
    assert report.touched == len(changed)
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == pointers[name]
        torch.testing.assert_close(tensor, expected[name], rtol=1e-10, atol=1e-12, msg=name)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    error = sum((expected[n] - before[n]).square().sum() for n, p in model.named_parameters() if p.ndim > 1)
    assert report.sfe == pytest.approx(float(error), rel=1e-9)


def test_the_variants_differ_where_there_is_batch_normalisation() -> None:
    for kind, differs in (("mlp", False), ("conv", True)):
        after = []
        for variant in ("published", "as_published_code"):
            model, initial, batches, loss = problem(kind)
            fire.Dash(ALPHA, LAMBDA, variant).reset(model, initial, data=batches, loss=loss)
            after.append(model.state_dict())
        assert any(not torch.equal(tensor, after[1][name]) for name, tensor in after[0].items()) == differs


def test_directions_decide() -> None:
    """A vector along which the loss falls stays; one against it, or without a gradient, becomes lambda times as long.
    The square of so small a gradient is 0 in float32."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2))
    before = initial_of(perturbed(model))
    model[1].bias.requires_grad_(False)
    sign = torch.tensor([1.0, 1.0, -1.0, 0.0])[:, None]

    def loss(scale: float) -> Tensor:
        return -scale * (sign * model[0].weight.square()).sum()

    fire.Dash(0.5, 0.25).reset(torch.compile(model, backend="eager"), before, data=[1e-30, 2e-30], loss=loss)
    kept = torch.tensor([1.0, 1.0, 0.25, 0.25])[:, None]
    torch.testing.assert_close(model[0].weight.detach(), kept * before["0.weight"])
    torch.testing.assert_close(model[1].weight.detach(), 0.25 * before["1.weight"])
    assert torch.equal(model[1].bias, before["1.bias"])  # not trained


def test_modes_of_single_layers_return() -> None:
    model, initial, batches, loss = problem("conv")
    model.bn1.eval()
    model.conv2.train(False)
    fire.Dash(ALPHA, LAMBDA).reset(model, initial, data=batches, loss=loss)
    assert {name for name, module in model.named_modules() if not module.training} == {"bn1", "conv2"}


def test_nothing_changes_where_the_loss_fails() -> None:
    model, initial, batches, _ = problem("conv")
    before = initial_of(model)

    def loss(batch: Tensor) -> Tensor:
        if batch is batches[1]:
            raise RuntimeError("no more memory")
        return model(batch).mean()

    with pytest.raises(RuntimeError, match="no more memory"):
        fire.Dash(ALPHA, LAMBDA, "published").reset(model.eval(), initial, data=batches, loss=loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_other_methods_ignore_the_data() -> None:
    model = ConvNet()
    initial = initial_of(perturbed(copy.deepcopy(model)))

    def loss(batch: Any) -> Tensor:
        raise AssertionError

    assert fire.ShrinkPerturb(0.5).reset(model, initial, data=[1], loss=loss).touched > 0
