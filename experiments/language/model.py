"""GPT as in the paper (nanoGPT's 124M network, after GPT-2): pre-norm transformer without biases, with a tied head.

A new model is a class with GPT's constructor and methods, in `MODELS`, and `configs/language/model/<name>.yaml`.
"""

import math

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from experiments.language.tokenizers import VOCABULARY


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


class Mlp(nn.Module):
    """Two linear layers, four times as wide between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Attention and MLP, each on a normalised input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, bias=False)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, bias=False)
        self.mlp = Mlp(width)

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
        logits = self.lm_head(self.features(tokens[:, :-1]))
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

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


def build(cfg: DictConfig) -> GPT:
    """The network of a configuration, on the CPU; its initial weights depend on the seed alone."""
    budget = cfg.budget
    vocabulary = math.ceil(VOCABULARY[cfg.tokenizer] / 64) * 64  # a multiple on which matrix units work best
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        return MODELS[cfg.model.name](budget.layers, budget.heads, budget.width, budget.block, vocabulary)
