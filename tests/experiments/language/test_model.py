"""The network against an independent GPT-2, and what a reset finds in it."""

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import fire
from experiments.common.runtime import Runtime
from experiments.language import model
from experiments.language.model import PEAK_16_BIT, peak_rate

LAYERS, HEADS, WIDTH, BLOCK, VOCABULARY = 3, 4, 48, 32, 128


def network() -> model.GPT:
    torch.manual_seed(0)
    return model.GPT(LAYERS, HEADS, WIDTH, BLOCK, VOCABULARY)


def tokens(count: int = 5) -> Tensor:
    return torch.randint(0, VOCABULARY, (count, BLOCK + 1), generator=torch.Generator().manual_seed(1))


def test_agrees_with_transformers() -> None:
    """GPT2LMHeadModel with the same weights gives the same scores, loss and gradients."""
    ours = network()
    with torch.no_grad():
        for parameter in ours.parameters():  # far from what any initialisation would hide
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=BLOCK, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, layer_norm_epsilon=1e-5,
        )
    )  # fmt: skip
    state = {}
    for name, value in theirs.state_dict().items():
        own = name.removeprefix("transformer.")
        if own.endswith("bias"):
            state[name] = torch.zeros_like(value)
        else:
            weight = ours.state_dict()[own]
            state[name] = weight.T if own.startswith("h.") and value.dim() == 2 else weight  # theirs are transposed
    theirs.load_state_dict(state)
    sequences = tokens()
    labels = sequences[:, 1:]
    output = theirs(sequences[:, :-1])
    loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    mine = ours(sequences)
    assert (ours.logits(sequences[:, :-1]) - output.logits).abs().max() < 1e-4
    assert float(mine) == pytest.approx(float(loss), abs=1e-4)
    mine.backward()
    loss.backward()
    for name, value in theirs.named_parameters():
        own = name.removeprefix("transformer.")
        if not own.endswith("bias"):
            gradient = ours.get_parameter(own).grad
            expected = value.grad.T if own.startswith("h.") and value.dim() == 2 else value.grad
            assert (gradient - expected).norm() < 1e-4 * expected.norm(), own


def test_sees_no_future(device: str) -> None:
    gpt, sequences = network().to(device), tokens(1)[:, :-1].to(device)
    changed = sequences.clone()
    changed[0, 20:] = 0
    one, two = gpt.logits(sequences), gpt.logits(changed)
    assert torch.allclose(one[:, :20], two[:, :20], atol=1e-6)
    assert not torch.allclose(one[:, 20:], two[:, 20:], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_on_the_cpu_in_half_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 16, 8, generator=generator) for _ in range(3)]
    expected = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
    computed = model.Attention.attend(*(part.to(dtype) for part in parts))
    assert computed.dtype == dtype
    assert torch.allclose(computed.float(), expected, atol=0.03)


def test_initial_weights_are_gpt2s() -> None:
    gpt = model.GPT(12, 12, 192, 64, 512)
    for name, parameter in gpt.named_parameters():
        if parameter.dim() == 2:
            expected = 0.02 / 24**0.5 if name.endswith("c_proj.weight") else 0.02
            assert float(parameter.std()) == pytest.approx(expected, rel=0.03), name
        else:
            assert (parameter == 1).all()
    assert sum(p.numel() for p in model.GPT(12, 12, 768, 1024, 50304).parameters()) == 124_373_760


def test_fire_projects_query_key_value_apart_and_the_tied_head_once() -> None:
    gpt = network()
    before = {name: value.clone() for name, value in gpt.state_dict().items()}
    fused = {"*.c_attn": [WIDTH] * 3}
    report = fire.fire_(gpt, solver="svd", fused=fused)
    assert len(report.matrices) == 6 * LAYERS + 1
    assert gpt.lm_head.weight.data_ptr() == gpt.wte.weight.data_ptr()
    for part, old in zip(gpt.h[0].attn.c_attn.weight.chunk(3), before["h.0.attn.c_attn.weight"].chunk(3), strict=True):
        left, _, right = torch.linalg.svd(old.double())
        assert torch.allclose(part.double(), left @ right, atol=1e-5)
    head = gpt.lm_head.weight.double()
    assert torch.allclose(head.T @ head, torch.eye(WIDTH, dtype=torch.float64) * VOCABULARY / WIDTH, atol=1e-4)
    assert torch.equal(gpt.wpe.weight, before["wpe.weight"])
    assert torch.equal(gpt.ln_f.weight, before["ln_f.weight"])


def test_operations_and_peaks() -> None:
    gpt = model.GPT(12, 12, 768, 1024, 50304)
    matrices = 12 * 12 * 768**2 + 50304 * 768
    assert gpt.operations_per_token() == 6 * matrices + 12 * 12 * 768 * 1024
    assert peak_rate(Runtime("cuda", "bf16", "true", 0), "NVIDIA H200") == 989e12
    assert peak_rate(Runtime("cuda", "tf32", "true", 0), "NVIDIA A100-SXM4-40GB") == 156e12
    for unknown in ("NVIDIA Unheard-of", "NVIDIA RTX A1000", "NVIDIA A10G"):
        assert peak_rate(Runtime("cuda", "bf16", "true", 0), unknown) is None
    assert peak_rate(Runtime("cuda", "fp32", "true", 0), "NVIDIA H200") is None
    assert peak_rate(Runtime("cpu", "bf16", "false", 2)) is None
    assert PEAK_16_BIT["H100 PCIe"] == peak_rate(Runtime("cuda", "fp16", "true", 0), "NVIDIA H100 PCIe")
