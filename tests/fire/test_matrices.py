"""Which tensors of a model are weight matrices, how they lie in it, and which are refused."""

import pytest
import torch
from torch import nn

import fire


def exact(W: torch.Tensor) -> torch.Tensor:
    """U V^T by SVD in float64, of each matrix of W (..., m, n)."""
    U, _, Vh = torch.linalg.svd(W.detach().double(), full_matrices=False)
    return U @ Vh


LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3), lambda w: w.permute(2, 0, 1), (6 / 4) ** 0.5 / 3),
    "conv3d": (nn.Conv3d(4, 6, (1, 2, 3)), lambda w: w.permute(2, 3, 4, 0, 1), (6 / 4) ** 0.5 / 6),
    "grouped": (nn.Conv2d(8, 12, 3, groups=4), lambda w: w.view(4, 3, 2, 3, 3).permute(0, 3, 4, 1, 2), 1.5**0.5 / 9),
    "transposed": (nn.ConvTranspose2d(4, 6, 2), lambda w: w.permute(2, 3, 1, 0), (6 / 4) ** 0.5 / 4),
    "transposed grouped": (
        nn.ConvTranspose2d(8, 12, 2, groups=2),
        lambda w: w.view(2, 4, 6, 2, 2).permute(0, 3, 4, 2, 1),
        (12 / 8) ** 0.5 / 4,
    ),
    "one row": (nn.Linear(7, 1), lambda w: w, (1 / 7) ** 0.5),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_kinds(kind: str) -> None:
    layer, view, scale = LAYERS[kind]
    expected = exact(view(layer.weight)) * scale
    (record,) = fire.fire_(layer, solver="svd").matrices
    assert record.scale == pytest.approx(scale)
    assert torch.allclose(view(layer.weight).double(), expected, atol=1e-6)


def test_one_row_head_keeps_its_direction() -> None:
    head = nn.Linear(7, 1)
    before = head.weight.detach().clone()
    fire.fire_(head)
    assert torch.allclose(head.weight, before / before.norm() * (1 / 7) ** 0.5, atol=1e-6)


class Ensemble(nn.Module):
    """Five linear layers in one tensor, stored (member, in, out) as in many SAC critics."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 4, 6
        self.weight = nn.Parameter(torch.randn(5, 4, 6))


def test_stacked_ensemble_is_many_matrices() -> None:
    model = Ensemble()
    expected = exact(model.weight) * (6 / 4) ** 0.5
    (record,) = fire.fire_(model, solver="svd").matrices
    assert record.shape == (5, 6, 4)
    assert torch.allclose(model.weight.double(), expected, atol=1e-6)


class Tied(nn.Module):
    """A language model's embedding and head sharing one tensor."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        if tied:
            self.head.weight = self.embedding.weight


def test_embedding_only_where_tied() -> None:
    model = Tied(tied=True)
    expected = exact(model.head.weight) * (20 / 8) ** 0.5
    report = fire.fire_(model, solver="svd")
    assert len(report.matrices) == 1
    assert not report.skipped
    assert torch.allclose(model.embedding.weight.double(), expected, atol=1e-6)
    loose = Tied(tied=False)
    before = loose.embedding.weight.clone()
    assert list(fire.fire_(loose).skipped) == ["embedding.weight"]
    assert torch.equal(loose.embedding.weight, before)
    excluded = Tied(tied=True)
    with pytest.raises(ValueError, match="no weight that FIRE can project"):
        fire.fire_(excluded, exclude=["head"])


def test_multihead_attention_is_split_by_type() -> None:
    attention = nn.MultiheadAttention(8, 2)
    expected = torch.cat([exact(part) for part in attention.in_proj_weight.chunk(3)])
    fire.fire_(attention, solver="svd")
    assert torch.allclose(attention.in_proj_weight.double(), expected, atol=1e-6)
    other = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    assert len(fire.fire_(other).matrices) == 4


def test_grouped_query_attention_sizes() -> None:
    model = nn.Sequential(nn.Linear(8, 16))
    parts = [exact(p) * (len(p) / 8) ** 0.5 for p in model[0].weight.split([8, 4, 4])]
    report = fire.fire_(model, solver="svd", fused={"0": [8, 4, 4]})
    assert [m.name for m in report.matrices] == ["0.weight[0:8]", "0.weight[8:12]", "0.weight[12:16]"]
    assert torch.allclose(model[0].weight.double(), torch.cat(parts), atol=1e-6)
    with pytest.raises(ValueError, match="add up to its 16 rows"):
        fire.fire_(model, fused={"0": [8, 4]})


def test_refused_by_name() -> None:
    model = nn.ModuleDict(
        {
            "depthwise": nn.Conv2d(4, 4, 3, groups=4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "old": nn.utils.spectral_norm(nn.Linear(4, 4)),
            "lazy": nn.LazyLinear(4),
            "odd": nn.ParameterList([nn.Parameter(torch.ones(3, 3))]),
            "plain": nn.Linear(4, 4),
        }
    )
    before = {name: p.clone() for name, p in model.named_parameters() if not nn.parameter.is_lazy(p)}
    report = fire.fire_(model)
    assert [m.name for m in report.matrices] == ["plain.weight"]
    reasons = {name.split(".")[0]: reason for name, reason in report.skipped.items()}
    assert "depthwise" in reasons["depthwise"]
    assert "parametrised" in reasons["normed"]
    assert "parametrised" in reasons["old"]
    assert "uninitialised" in reasons["lazy"]
    assert "no rule" in reasons["odd"]
    changed = [name for name, value in before.items() if not torch.equal(value, model.get_parameter(name))]
    assert changed == ["plain.weight"]
    with pytest.raises(ValueError, match="depthwise"):
        fire.fire_(model, include=["depthwise"])


def test_include_exclude() -> None:
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "head": nn.Linear(4, 2)})
    names = lambda **options: [m.name for m in fire.fire_(model, **options).matrices]  # noqa: E731
    assert names(include=["body"]) == ["body.0.weight", "body.1.weight"]
    assert names(exclude=["head"]) == ["body.0.weight", "body.1.weight"]
    assert names(include=["*.1", "head"]) == ["body.1.weight", "head.weight"]
    for option in ("include", "exclude"):
        with pytest.raises(ValueError, match=f"{option} pattern 'tail' matches no module.*body.0, body.1, head"):
            fire.fire_(model, **{option: ["tail"]})
    with pytest.raises(ValueError, match="fused pattern 'qkv'"):
        fire.fire_(model, fused={"qkv": [2, 2]})


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (1, 3, 5)), (nn.Conv2d(4, 6, (3, 2)), (1, 6, 24)), (nn.Conv2d(4, 6, 3, groups=2), (2, 3, 18)),
        (nn.ConvTranspose2d(4, 6, 3), (1, 6, 36)), (nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 3, 6)),
        (nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), (1, 6, 36)), (nn.Bilinear(2, 3, 4), (4, 2, 3)),
    ],
    ids=str,
)  # fmt: skip
def test_flat_matrices_and_back(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """A row of a convolution's one matrix is all that an output channel reads, in whatever order."""
    (matrix,), _ = fire.weight_matrices(layer)
    weight = matrix.parameter.detach()
    flat = matrix.flat(weight)
    assert flat.shape == shape
    rows = matrix.view.movedim(matrix.kernel, tuple(range(-len(matrix.kernel), 0))) if matrix.kernel else matrix.view
    expected = rows.reshape(shape).sort(-1).values
    assert torch.equal(flat.sort(-1).values, expected)
    copied = torch.zeros_like(weight, memory_format=torch.preserve_format)
    matrix.write_flat(copied, flat.clone())
    assert torch.equal(copied, weight)
