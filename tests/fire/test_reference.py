"""`fire_` against the algorithm in plain words."""

import copy

import pytest
import torch
from torch import nn

import fire
from experiments.vision import models
from fire.reference import reference_fire_


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("network", ["resnet18", "mlp"])
def test_fire_is_the_plain_algorithm(network: str, steps: int, device: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(12, 50), nn.ReLU(), nn.Linear(50, 50), nn.Linear(50, 1))
    if network == "resnet18":
        plain = models.build("resnet18", 10, (3, 32, 32), 8, seed=0)
    plain.double()
    ours, single = copy.deepcopy(plain).to(device), copy.deepcopy(plain).float().to(device)
    before = copy.deepcopy(plain.state_dict())
    reference_fire_(plain, steps)
    fire.fire_(ours, steps=steps)
    fire.fire_(single, steps=steps)
    for name, expected in plain.state_dict().items():
        for model, error in ((ours, 1e-12), (single, 1e-5)):
            got = model.state_dict()[name].cpu()
            torch.testing.assert_close(got, expected, rtol=0, atol=error, check_dtype=False)
        assert torch.equal(expected, before[name]) != (expected.ndim in (2, 4))
