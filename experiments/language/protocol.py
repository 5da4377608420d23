"""The protocol of a run: optimiser, learning rate, and which checkpoints of phase 0 are kept to branch from.

Phase 0 keeps its `best` checkpoint and one at every tenth thousand of the paper's iterations, in proportion at other
scales.
"""

import math

import torch
from omegaconf import DictConfig
from torch import nn

PAPER_ITERATIONS = 97_282  # of phase 0
PERIODIC = [f"{thousands}k" for thousands in range(10, 100, 10)]


def kept_at(checkpoint: str, iterations: int) -> int:
    """The iteration of phase 0 after which a periodic checkpoint is kept."""
    return max(1, round(int(checkpoint[:-1]) * 1000 / PAPER_ITERATIONS * iterations))


def learning_rate(iteration: int, iterations: int, cfg: DictConfig) -> float:
    """Linear warm-up, then a cosine to a tenth of the highest rate at the end of the phase."""
    highest = cfg.budget.learning_rate
    warmup = min(cfg.optimizer.warmup_fraction * iterations, cfg.optimizer.warmup_limit)
    if iteration < warmup:
        return highest * (iteration + 1) / (warmup + 1)
    cosine = 0.5 * (1 + math.cos(math.pi * (iteration - warmup) / max(iterations - warmup, 1)))
    return highest * (0.1 + 0.9 * cosine)


def new_optimizer(model: nn.Module, cfg: DictConfig) -> torch.optim.Optimizer:
    """AdamW with empty moments; matrices decay, vectors do not."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": cfg.optimizer.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.budget.learning_rate, betas=tuple(cfg.optimizer.betas), fused=True)
