"""FIRE in plain words: one matrix at a time, for the layers that most networks are made of.

`fire.fire_` computes the same faster and for more kinds of layers; tests compare the two.
"""

import torch
from torch import Tensor, nn


@torch.no_grad()
def reference_fire_(model: nn.Module, steps: int = 10) -> None:
    """Replace the weight of every Linear and Conv2d of `model` by what FIRE makes of it, in place."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(scaled_isometry(module.weight, steps))
        elif isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            for i in range(height):
                for j in range(width):
                    W = module.weight[:, :, i, j]
                    W.copy_(scaled_isometry(W, steps) / (height * width))


def scaled_isometry(W: Tensor, steps: int) -> Tensor:
    """About the isometry nearest to W (out, in), times sqrt(out / in), by Newton-Schulz iteration."""
    out, fan_in = W.shape
    X = W if out >= fan_in else W.T
    X = X / X.norm()
    for _ in range(steps):
        X = 1.5 * X - 0.5 * X @ (X.T @ X)
    return (X if out >= fan_in else X.T) * (out / fan_in) ** 0.5
