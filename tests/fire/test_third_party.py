"""Where the matrices of other people's models lie, how much of them is covered, and what is left alone."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import fire

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 50, "head_dim": 8,
}  # fmt: skip


def isometric(W: Tensor, positions: int = 1) -> bool:
    """Whether W (out, in) is an isometry times sqrt(out / in) / positions."""
    out, fan_in = W.shape
    sigma = torch.linalg.svdvals(W.detach().double()) / math.sqrt(out / fan_in) * positions
    return bool((sigma - 1).abs().max() < 1e-4)


def exact(model: nn.Module, **options: object) -> fire.ResetReport:
    return fire.fire_(model, solver="svd", **options)  # type: ignore[arg-type]


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=60, n_positions=16))


def test_gpt2_of_transformers_is_covered() -> None:
    model = gpt2()
    report = exact(model, fused={"*.c_attn": [48, 48, 48]})
    assert not report.maybe_fused
    assert report.coverage > 0.95  # all but the positions
    assert set(report.skipped) == {"transformer.wpe.weight"}
    matrices = sum(m.numel() for n, m in model.named_parameters() if m.ndim == 2 and "wpe" not in n)
    assert report.weights - model.transformer.wpe.weight.numel() == matrices
    block = model.transformer.h[0]
    for part in block.attn.c_attn.weight.split(48, dim=1):  # stored (in, out)
        assert isometric(part.T)
    assert isometric(block.mlp.c_fc.weight.T)
    assert isometric(model.lm_head.weight)  # which is the embedding
    text = str(report)
    assert "of the weights with two or more dimensions are written as matrices" in text
    assert "left out: transformer.wpe.weight: an embedding" in text


def test_a_weight_that_looks_fused_is_named() -> None:
    report = exact(gpt2())
    assert report.maybe_fused == tuple(f"transformer.h.{i}.attn.c_attn.weight" for i in range(2))
    assert "may stack several matrices, which `fused` would split: transformer.h.0.attn.c_attn.weight" in str(report)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_stacked_experts(kind: str) -> None:
    torch.manual_seed(0)
    experts = {"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    model = {
        "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SMALL, **experts)),
        "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **experts)),
        "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**SMALL, **experts)),
    }[kind]()
    report = exact(model)
    (name,) = [n for n, _ in model.named_parameters() if n.endswith("gate_up_proj")]
    stacked, down = model.get_parameter(name), model.get_parameter(name.replace("gate_up", "down"))
    for expert in stacked:
        assert isometric(expert.T if kind == "gpt_oss" else expert)
    for expert in down:
        assert isometric(expert.T if kind == "gpt_oss" else expert)
    shapes = {m.name: m.shape for m in report.matrices}
    assert shapes[name] == (3, 96, 32)
    assert shapes[name.replace("gate_up", "down")] == (3, 32, 48)
    assert report.coverage > 0.8
    assert name in report.maybe_fused


def test_square_experts_are_never_guessed() -> None:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**{**SMALL, "intermediate_size": 16}, num_local_experts=2))
    name = next(n for n, _ in model.named_parameters() if n.endswith("gate_up_proj"))  # (2, 2 * 16, 32)
    module = model.get_submodule(name.rpartition(".")[0])
    known = getattr(module, "is_transposed", None) is not None
    report = exact(model)
    assert (name in report.skipped) != known
    if known:
        assert isometric(model.get_parameter(name)[0])
    else:
        assert "say it with `layouts`" in report.skipped[name]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_gate_by_gate(kind: type[nn.RNNBase]) -> None:
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    torch.manual_seed(0)
    layer = kind(6, 5, num_layers=2, bidirectional=True)
    x = torch.randn(3, 2, 6)
    layer(x)
    biases = {name: bias.detach().clone() for name, bias in layer.named_parameters() if "bias" in name}
    report = exact(layer)
    assert report.coverage == 1
    for name, weight in layer.named_parameters():
        if "weight" in name:
            for gate in weight.unflatten(0, (gates, -1)):
                assert isometric(gate), name
    assert all(torch.equal(layer.get_parameter(name), bias) for name, bias in biases.items())
    cell = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}[kind](6, 5)
    assert [m.shape for m in exact(cell).matrices] == [(gates, 5, 6), (gates, 5, 5)]
    assert all(isometric(gate) for gate in cell.weight_hh.unflatten(0, (gates, -1)))


def test_lstm_with_a_projection_and_bilinear() -> None:
    layer = nn.LSTM(6, 5, proj_size=3)
    shapes = {m.name: m.shape for m in exact(layer).matrices}
    assert shapes == {"weight_ih_l0": (4, 5, 6), "weight_hh_l0": (4, 5, 3), "weight_hr_l0": (1, 3, 5)}
    form = nn.Bilinear(4, 3, 5)
    assert [m.shape for m in exact(form).matrices] == [(5, 4, 3)]
    assert all(isometric(W) for W in form.weight)


class Odd(nn.Module):
    """Weights in layouts of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(9, 6, 4))  # (position, in, out)
        self.experts = nn.Parameter(torch.randn(2, 8, 5))  # (expert, in, out), out being two matrices
        self.linear = nn.Linear(4, 4)


def test_layouts_in_words() -> None:
    model = Odd()
    assert set(exact(Odd()).skipped) == {"kernel", "experts"}
    layouts = {"kernel": "position in out", "experts": "expert in out"}
    report = exact(model, layouts=layouts)
    assert [m.shape for m in report.matrices] == [(9, 4, 6), (2, 5, 8), (4, 4)]
    assert all(isometric(W.T, positions=9) for W in model.kernel)
    assert all(isometric(W.T) for W in model.experts)
    holder = nn.ModuleDict({"odd": Odd()})
    exact(holder, layouts={"odd.experts": "expert in out"}, fused={"odd": [2, 3]}, exclude=["odd.linear"])
    assert all(isometric(part.T) for W in holder["odd"].experts for part in W.split([2, 3], dim=1))


def test_a_pattern_that_meets_only_refused_tensors_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"fused pattern 'wte' selects no matrix \(wte.weight: an embedding"):
        fire.fire_(nn.ModuleDict({"wte": nn.Embedding(6, 4), "head": nn.Linear(4, 4)}), fused={"wte": [3, 3]})


def test_frozen_weights_are_left_alone() -> None:
    """As the base of LoRA."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.endswith("q_proj.weight")
    before = copy.deepcopy(model.state_dict())
    report = exact(model)
    assert [m.name for m in report.matrices] == ["model.layers.0.self_attn.q_proj.weight"]
    assert report.skipped["model.layers.0.mlp.up_proj.weight"].startswith("frozen: its requires_grad is False")
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["model.layers.0.self_attn.q_proj.weight"]
    assert next(iter(report.skipped)) in ("model.layers.0.mlp.gate_proj.weight", "model.embed_tokens.weight",
                                          "model.layers.0.mlp.up_proj.weight", "lm_head.weight")  # fmt: skip
    assert exact(model, frozen=True).coverage > 0.8


def test_what_cannot_be_written_entry_by_entry_is_refused_before_anything_changes() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(5, 5)
            self.second.weight = nn.Parameter(self.first.weight.detach().t())
            self.expanded = nn.Linear(3, 3)
            self.expanded.weight = nn.Parameter(torch.randn(3, 1).expand(3, 3))
            self.small = nn.Linear(3, 3)
            self.small.weight = nn.Parameter(self.small.weight.detach().to(torch.float8_e4m3fn))

    model = Tied()
    before = model.first.weight.detach().clone()
    report = exact(model)
    assert [m.name for m in report.matrices] == ["third.weight"]
    assert report.skipped == {
        "first.weight": "it shares memory with second.weight, in another shape",
        "second.weight": "it shares memory with first.weight, in another shape",
        "expanded.weight": "expanded: several of its entries are one number",
        "small.weight": "of dtype torch.float8_e4m3fn: only float16, bfloat16, float32 and float64 are computed with",
    }
    assert torch.equal(model.first.weight, before)
    with pytest.raises(ValueError, match=r"pattern 'second' selects no matrix \(second.weight: it shares"):
        exact(model, include=["second"])
    exact(model, exclude=["second", "first", "expanded", "small"])


def test_wrapper_tensors_are_refused() -> None:
    class Wrapped(Tensor):
        """As torchao's quantised weights: no memory of its own."""

        @staticmethod
        def __new__(cls, inner: Tensor) -> "Wrapped":
            return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner: Tensor) -> None:
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten.detach.default:
                return Wrapped(args[0].inner)
            raise NotImplementedError(f"{func}")

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight = nn.Parameter(Wrapped(torch.randn(3, 3)), requires_grad=False)
    report = exact(model, frozen=True)
    assert report.skipped == {"0.weight": "a Wrapped, which wraps its values in a way of its own"}
    exact(model, exclude=["0"])
