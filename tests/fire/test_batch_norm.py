"""Running statistics after a reset."""

import copy

import pytest
import torch
from torch import nn

import fire


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))


def test_statistics_are_those_of_the_new_weights() -> None:
    model = network()
    batches = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(i)) + i for i in range(4)]
    model.train()
    for batch in batches:
        model(batch)
    fire.fire_(model)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    model.eval()
    assert fire.refresh_batch_norm(model, [(batch, "label") for batch in batches]) == 1
    with torch.no_grad():
        each = [model[0](batch) for batch in batches]
    means = torch.stack([hidden.mean((0, 2, 3)) for hidden in each]).mean(0)
    variances = torch.stack([hidden.var((0, 2, 3)) for hidden in each]).mean(0)
    assert torch.allclose(model[1].running_mean, means, atol=1e-5)
    assert torch.allclose(model[1].running_var, variances, rtol=1e-4)
    assert not model.training
    assert model[1].momentum == 0.1
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())


def test_nothing_to_refresh() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="at least one batch"):
        fire.refresh_batch_norm(model, [])
    assert str(model.state_dict()) == str(before)
    assert fire.refresh_batch_norm(nn.Linear(2, 2), iter([])) == 0
