"""GPT as in the paper (nanoGPT's 124M network, after GPT-2): pre-norm transformer without biases, with a tied head; its
optimiser and learning rate, and what GPUs make of it.

A new model is a class with GPT's constructor and methods, in `MODELS`, and `configs/language/model/<name>.yaml`.
"""

import math
import re
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.common.runtime import Runtime
from experiments.language.tokenizers import VOCABULARY

# Dense operations a second in bf16 and fp16, by the makers' data sheets; the first name that fits counts.
PEAK_16_BIT = {
    "B200": 2250e12, "H200": 989e12, "GH200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "A10": 125e12,
}  # fmt: skip
# In order: the first one that can compute a call does.
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
]  # fmt: skip


class Attention(nn.Module):
    """Causal self-attention; query, key and value are one linear layer, in that order."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (batch, time, width) -> the same
        batch, time, width = x.shape
        by_head = (batch, time, self.heads, width // self.heads)
        query, key, value = (part.view(by_head).transpose(1, 2) for part in self.c_attn(x).split(width, dim=2))
        mixed = self.attend(query, key, value)  # (batch, heads, time, width / heads)
        return self.c_proj(mixed.transpose(1, 2).reshape(batch, time, width))

    @staticmethod
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention; all (batch, heads, time, width / heads)."""
        if query.device.type != "cpu" or query.dtype == torch.float32:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        # PyTorch's fused kernel for the CPU is slow in half precision: a whole training step takes 1.7 times as long
        # with it as with these products (measured on 2 cores with AMX, PyTorch 2.15).
        time = query.shape[-2]
        future = torch.full((time, time), float("-inf"), device=query.device).triu(1)
        scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
        return torch.softmax(scores.float() + future, dim=-1).to(value.dtype) @ value


class Block(nn.Module):
    """Attention and an MLP four times as wide inside, each on a normalised input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, bias=False)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, bias=False)
        inner, outer = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.mlp = nn.Sequential(OrderedDict(c_fc=inner, gelu=nn.GELU(), c_proj=outer))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A language model over `vocabulary` tokens that sees up to `block` of them.

    Names follow GPT-2's. Weights are drawn from N(0, 0.02), those that write to the residual stream from N(0, 0.02 /
    sqrt(2 layers)).
    """

    def __init__(self, layers: int, heads: int, width: int, block: int, vocabulary: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(block, width)
        self.h = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, bias=False)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deviation = 0.02 / math.sqrt(2 * layers) if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(parameter, std=deviation)

    def features(self, tokens: Tensor) -> Tensor:
        """What the head sees of tokens (batch, time): (batch, time, width)."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean cross entropy, in nats, of each next token of sequences (batch, time + 1)."""
        return F.cross_entropy(self.logits(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())

    def logits(self, tokens: Tensor) -> Tensor:
        """Scores (batch, time, vocabulary) of the token after each of tokens (batch, time)."""
        return self.lm_head(self.features(tokens))

    def operations_per_token(self) -> float:
        """Floating point operations a trained token costs: 6 for each weight of a matrix and 12 for each layer, unit of
        width and position attended to (PaLM, appendix B); embedding look-ups are free."""
        matrices = sum(p.numel() for p in self.parameters() if p.dim() == 2) - self.wpe.weight.numel()
        block, width = self.wpe.weight.shape
        return 6 * matrices + 12 * len(self.h) * width * block


MODELS: dict[str, type[GPT]] = {"gpt": GPT}
"""Networks by name."""


def construct(cfg: DictConfig) -> GPT:
    """The network of a configuration, with weights from PyTorch's generator."""
    budget = cfg.budget
    vocabulary = math.ceil(VOCABULARY[cfg.tokenizer] / 64) * 64  # a multiple on which matrix units work best
    return MODELS[cfg.model.name](budget.layers, budget.heads, budget.width, budget.block, vocabulary)


def build(cfg: DictConfig) -> GPT:
    """The network of a configuration, on the CPU; its initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        return construct(cfg)


def new_optimizer(model: nn.Module, cfg: DictConfig) -> torch.optim.Optimizer:
    """AdamW with empty moments; matrices decay, vectors do not."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": cfg.optimizer.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.budget.learning_rate, betas=tuple(cfg.optimizer.betas), fused=True)


def new_scaler(runtime: Runtime) -> torch.amp.GradScaler:
    """Loss scaling of fp16, at its first value; in other precisions it does nothing."""
    return torch.amp.GradScaler(runtime.device, enabled=runtime.precision == "fp16")


def learning_rate(iteration: int, iterations: int, cfg: DictConfig) -> float:
    """Linear warm-up, then a cosine to a tenth of the highest rate at the end of the phase."""
    highest = cfg.budget.learning_rate
    warmup = min(cfg.optimizer.warmup_fraction * iterations, cfg.optimizer.warmup_limit)
    if iteration < warmup:
        return highest * (iteration + 1) / (warmup + 1)
    cosine = 0.5 * (1 + math.cos(math.pi * (iteration - warmup) / max(iterations - warmup, 1)))
    return highest * (0.1 + 0.9 * cosine)


def preferred_attention(device: str, length: int) -> AbstractContextManager[object]:
    """Context of a forward pass over sequences of `length`, in which Hopper GPUs compute attention by cuDNN.

    For training there it is 1.7 to 2.3 times as fast as FlashAttention 2, by others' measurements. PyTorch puts it
    first by itself where cuDNN is newer than 9.15.0; older ones are wrong for lengths that 128 does not divide.
    """
    if device != "cuda" or length % 128 or torch.cuda.get_device_capability()[0] != 9:
        return nullcontext()
    return sdpa_kernel(CUDNN_FIRST, set_priority=True)


def peak_rate(runtime: Runtime, name: str | None = None) -> float | None:
    """Operations a second of one device at its best, None where unknown (CPUs, other GPUs, float32). The device is that
    called `name`; None asks PyTorch."""
    if runtime.device != "cuda" or runtime.precision == "fp32":
        return None
    name = name or torch.cuda.get_device_name()
    found = next((rate for part, rate in PEAK_16_BIT.items() if re.search(rf"\b{part}\b", name)), None)
    return found / 2 if found and runtime.precision == "tf32" else found
