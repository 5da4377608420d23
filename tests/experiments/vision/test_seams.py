"""A data set and a network added through the seams alone: a registration and a YAML file for each."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from experiments.common.config import compose_domain
from experiments.common.fetch import Files
from experiments.vision import models
from experiments.vision.config import VisionConfig
from experiments.vision.data import DataSet, Split
from experiments.vision.datasets import DATA_SETS
from tests.conftest import Command, numbers, run_dirs

COUNT, CLASSES = 480, 4
LABELS = np.arange(COUNT) % CLASSES


def stripes() -> bytes:
    """Dark noise with a bright stripe, whose place is the class."""
    images = (np.arange(COUNT * 64) * 7919 % 101).astype(np.uint8).reshape(COUNT, 1, 8, 8)
    for image, label in zip(images, LABELS, strict=True):
        image[0, 2 * label : 2 * label + 2] += 150
    return images.tobytes()


def read(folder: Path) -> tuple[Split, Split]:
    images = np.fromfile(folder / "images.bin", np.uint8).reshape(COUNT, 1, 8, 8)
    return (images[:400], LABELS[:400]), (images[400:], LABELS[400:])


STRIPES = DataSet(
    classes=CLASSES,
    shape=(1, 8, 8),
    mean=(0.34,),
    std=(0.28,),
    train_images=400,
    test_images=80,
    files=Files(
        "The stripes",
        "stripes",
        {"images.bin": hashlib.sha256(stripes()).hexdigest()},
        {"arithmetic": lambda _data_dir, _temporary: [("images.bin", stripes())]},
        megabytes=0,
    ),
    read=read,
)


class Block(nn.Module):
    """A pre-norm block: attention with one head, then two layers with a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.gelu, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.out(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))
        return x + self.down(self.gelu(self.up(self.norm2(x))))


class Tokens(nn.Module):
    """A small vision transformer: patches of 4 x 4, a class token, two blocks."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, wide = shape
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 1 + height * wide // 16, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1) + self.position
        return self.norm(self.blocks(x)[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def plain(classes: int, shape: tuple[int, int, int], width: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU(), nn.Linear(width, classes))


YAML = {
    "data/stripes.yaml": "name: stripes\n",
    "model/plain.yaml": "name: plain\n",
    "model/tokens.yaml": """\
name: tokens
scope:
  include: ["blocks.*.q", "blocks.*.k"]
  units:
    blocks.*.gelu: {incoming: blocks.*.up, outgoing: [blocks.*.down]}
""",
}


@pytest.fixture
def added(
    command_line: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Trains on the stripes; the summary of the run, and its metric rows."""
    monkeypatch.setitem(DATA_SETS, "stripes", STRIPES)
    monkeypatch.setitem(models.MODELS, "tokens", Tokens)
    monkeypatch.setitem(models.MODELS, "plain", plain)
    for name, text in YAML.items():
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def train(*arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        status, printed = command_line("vision", tmp_path)(
            f"hydra.searchpath=[pkg://configs.shared,file://{tmp_path}/configs]", "data=stripes", "budget.width=16",
            "budget.train_images=null", "budget.test_images=null", "budget.epochs=[5,8]", "budget.batch_size=16",
            "optimizer.learning_rate=3e-3", *arguments,
        )  # fmt: skip
        assert status == 0, printed
        assert ": 400 images, " in printed
        (directory,) = run_dirs(tmp_path / "outputs")
        return json.loads((directory / "done").read_text()), numbers(directory)

    return train


@pytest.mark.parametrize("model", ["resnet18", "tokens", "plain"])
def test_new_data_set_and_model_train(added: Callable[..., Any], model: str) -> None:
    width = ["budget.width=4"] if model == "resnet18" else []
    _, rows = added(f"model={model}", *width)
    assert rows[-1]["test/accuracy"] > 0.9  # by chance: 0.25
    measured = [row for row in rows if "plasticity/dormant" in row]
    assert len(measured) == 3  # both phases, and after the reset
    for row in measured:
        values = {key: value for key, value in row.items() if key.startswith("plasticity/")}
        assert len(values) >= 8
        assert all(math.isfinite(value) for value in values.values())
        assert 1 <= row["plasticity/srank"] <= (32 if model == "resnet18" else 16)


def test_data_ordered_by_class(added: Callable[..., Any]) -> None:
    _, rows = added("model=tokens", "benchmark.order=classes", "benchmark.fractions=[0.5,1.0]", "method=none")
    first = [row for row in rows if row["phase"] == 0][-1]
    assert first["train/accuracy"] > 0.9
    assert 0.45 <= first["test/accuracy"] <= 0.55  # two of the four classes
    assert rows[-1]["test/accuracy"] > 0.9


def test_penultimate_activations() -> None:
    images = torch.randn(6, 1, 8, 8)
    resnet = models.build("resnet18", 4, (1, 8, 8), 2, seed=0)
    features, outputs = models.activations(resnet, images)
    assert features.shape == (6, 16)
    assert torch.equal(features, outputs[-1].values)
    sequential = plain(4, (1, 8, 8), 5)
    features, outputs = models.activations(sequential, images)
    assert torch.equal(features, sequential[:3](images))
    assert len(outputs) == 1
    with torch.no_grad():
        vit = Tokens(4, (1, 8, 8), 8)
        features, outputs = models.activations(vit, images)
        assert torch.equal(vit.head(features), vit(images))
        assert [(output.values.shape, output.unit_axis) for output in outputs] == [((6, 5, 32), -1)] * 2
    with pytest.raises(ValueError, match=r"no module such as nn\.ReLU"):
        models.activations(nn.Flatten(), images)


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 9), ("plain_cnn", 5), ("tokens", 2)])
def test_units_name_layers_that_fit_together(name: str, layers: int) -> None:
    """Each pattern, with a block's number in place of its star."""
    if name == "tokens":
        scope, model = OmegaConf.create(YAML["model/tokens.yaml"]).scope, Tokens(4, (1, 8, 8), 8)
    else:
        scope = compose_domain("vision", VisionConfig, ["outputs_dir=outputs", f"model={name}"]).model.scope
        model = models.build(name, 4, (3, 32, 32), 2, seed=0)
    modules = dict(model.named_modules())
    found = 0
    for pattern, around in scope.units.items():
        numbers = [str(i) for i in range(8)] if "*" in pattern else [""]
        for number in numbers:
            if pattern.replace("*", number) in modules:
                found += 1
                incoming = modules[around.incoming.replace("*", number)]
                for outgoing in around.outgoing:
                    columns = modules[outgoing.replace("*", number)].weight.shape[1]
                    assert columns == len(incoming.weight) * (4 if (name, outgoing) == ("plain_cnn", "10") else 1)
                if around.get("norm"):
                    assert modules[around.norm.replace("*", number)].weight.shape == incoming.weight.shape[:1]
    assert found == layers
