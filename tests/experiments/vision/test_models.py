"""ResNet-18 against torchvision's."""

import torch
import torchvision
from torch import nn

from experiments.vision.models import build


def test_same_function_as_torchvisions_resnet18() -> None:
    ours = build("resnet18", 10, (3, 32, 32), 64, seed=0)
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    source, target = list(ours.state_dict().values()), list(theirs.state_dict().values())
    assert [t.shape for t in source] == [t.shape for t in target]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), source, strict=True)))
    images = torch.randn(4, 3, 32, 32)
    assert torch.allclose(ours(images), theirs(images), atol=1e-5)
    assert sum(p.numel() for p in ours.parameters()) == 11_436_618


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = build("resnet18", 10, (3, 32, 32), 4, seed=0).state_dict()
    state = torch.get_rng_state()
    again = build("resnet18", 10, (3, 32, 32), 4, seed=0).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(
        one["stem.0.weight"], build("resnet18", 10, (3, 32, 32), 4, seed=1).state_dict()["stem.0.weight"]
    )
