"""The layers around a network's units, by the names in a scope."""

import pytest
import torch
from torch import nn

import fire
from tests.fire.test_during import ConvNet, network


class Blocks(nn.Module):
    """Two residual blocks of the usual kind, a shared activation, and layers that no unit can be of."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvNet() for _ in range(2))
        self.shared = self.blocks[0].relu1
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.weighted = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


def test_units_of_blocks() -> None:
    units = {
        f"blocks.*.relu{i}": {
            "incoming": f"blocks.*.conv{i}",
            "norm": f"blocks.*.bn{i}",
            "outgoing": [f"blocks.*.{reader}"],
        }
        for i, reader in ((1, "conv2"), (2, "head"))
    }
    model = Blocks()
    layers = fire.unit_layers(torch.compile(model), units)
    found = [(layer.name, layer.size, layer.axis) for layer in layers]
    assert found == [(f"blocks.{i}.relu{j}", size, 1) for j, size in ((1, 4), (2, 6)) for i in (0, 1)]
    assert layers[3].outgoing[0] is model.blocks[1].head.weight
    assert list(layers[1].drawn) == ["blocks.1.conv1.weight", "blocks.1.conv1.bias"]
    norm = [f"blocks.1.bn2.{key}" for key in ("weight", "bias", "running_mean", "running_var")]
    assert list(layers[3].restored) == norm
    with pytest.raises(ValueError, match=r"shared is blocks.0.relu1, which has its units already"):
        fire.Scope(units={**units, "shared": {"incoming": "grouped", "outgoing": ["weighted"]}}).check(model)


@pytest.mark.parametrize(
    ("pattern", "changes", "message"),
    [
        ("relu9", {}, "units pattern 'relu9' matches no module"),
        (
            "blocks.*.relu1",
            {"incoming": "blocks.*.conv9"},
            "units of blocks.0.relu1: incoming 'blocks.0.conv9' is no module of the model",
        ),
        ("blocks.*.relu1", {"norm": "*.*.bn1"}, r"norm '\*.\*.bn1' has more \* than"),
        ("blocks.0.relu1", {"norm": "blocks.0.bn2"}, r"bn2.weight has shape \(6,\), but blocks.0.conv1 has 4 units"),
        ("blocks.0.relu1", {"incoming": "blocks.0.bn1"}, "incoming blocks.0.bn1 must be a Linear or Conv"),
        ("blocks.0.relu1", {"incoming": "weighted"}, "incoming weighted must be a Linear or Conv with a plain weight"),
        ("blocks.0.relu1", {"outgoing": ["blocks.0.conv1"]}, "reads 2 features, but blocks.0.conv1 has 4 units"),
        ("blocks.0.relu1", {"outgoing": ["grouped"]}, "outgoing grouped is a grouped convolution"),
        ("blocks.0.relu1", {"outgoing": "blocks.0.conv2"}, "outgoing must be a list of names"),
        ("blocks.0.relu1", {"outgoing": []}, "outgoing must be a list of names"),
        ("blocks.0.relu1", {"reader": "head"}, "unexpected keyword argument 'reader'"),
    ],
)
def test_units_that_do_not_fit(pattern: str, changes: dict, message: str) -> None:
    star = "*" if "*" in pattern else "0"
    around = {"incoming": f"blocks.{star}.conv1", "outgoing": [f"blocks.{star}.conv2"], **changes}
    with pytest.raises(ValueError, match=message):
        fire.Scope(units={pattern: around}).check(Blocks())


def test_an_activation_of_another_size_is_an_error() -> None:
    model, initial, _, x = network("mlp")
    scope = fire.Scope(units={"second": {"incoming": "first", "outgoing": ["second"]}})
    fire.ReDo().during(model, initial, scope)
    with pytest.raises(ValueError, match="its output has 3, not 6"):
        model(x)
