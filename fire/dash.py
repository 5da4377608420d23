"""DASH (Shin et al. 2024): weights that the loss of the data to come does not point along are shrunk."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .checks import check_number, check_variant
from .gram import double
from .matrices import unwrap, weight_matrices
from .methods import Method, register
from .report import Recorder
from .scope import Scope


@register("dash")
@dataclass
class Dash(Method):
    """DASH, direction-aware shrinking (Shin et al. 2024, algorithm 1): every weight vector is multiplied by its cosine
    similarity with the negative gradient of the loss on the data to come, at least by `lambda_`.

    The gradient is an exponential average over one pass through the data, g <- (1 - alpha) g + alpha (-gradient) from
    zero, at weights that stay as they are. A vector is a row (out) of a linear layer, the kernel of each (out, in) of a
    convolution, or a whole bias of either. Normalisation layers stay. A vector without a gradient is multiplied by
    `lambda_`.

    Memory: the average and one gradient, each as large as the parameters, and what a step of training keeps. Under
    DistributedDataParallel all ranks must pass over the same data.

    Attributes:
        alpha: share of the newest batch in the average, in (0, 1].
        lambda_: the least factor, in [0, 1].
        variant: published: the gradient of training, in which batch normalisation takes the statistics of a batch.
            as_published_code: in evaluation mode, with running statistics. FIRE's authors' code takes the mode that the
            last epoch has left: evaluation in the continual benchmark, where every epoch is tested, but training in
            the warm start, whose last epochs are not.
    """

    needs_data: ClassVar[bool] = True

    alpha: float
    lambda_: float
    variant: str = "published"

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, 1)
        check_number("lambda_", self.lambda_, 0, 1)
        if self.alpha == 0:
            raise ValueError("alpha must be positive: with 0 the data would not count")
        check_variant(self.variant)

    def check(self, model: nn.Module, scope: Scope) -> None:
        """Raise ValueError where there is nothing to shrink, too."""
        super().check(model, scope)
        if not _vectors(model, scope):
            raise ValueError(f"dash finds no weight matrix that is trained in {type(unwrap(model)).__name__}")

    def change_by_data(
        self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, recorder: Recorder, data: Iterable[Any],
        loss: Callable[[Any], Tensor],
    ) -> None:  # fmt: skip
        """Pass over the data once, then shrink."""
        vectors = _vectors(model, scope)
        with undisturbed(model, training=self.variant == "published"):
            average = negative_gradient([each.parameter for each in vectors], data, loss, self.alpha)
        for each, direction in zip(vectors, average, strict=True):
            new = each.parameter.detach().clone()
            each.layout(new).mul_(each.cosine(direction).clamp(self.lambda_, 1).to(new))
            recorder.write_tensor(each.parameter, new)


class Vectors(NamedTuple):
    """The weight vectors of a parameter: along `axes` of its view `layout`."""

    parameter: Tensor
    layout: Callable[[Tensor], Tensor]
    axes: tuple[int, ...]

    def cosine(self, direction: Tensor) -> Tensor:
        """Cosine similarity of each vector with that of `direction`, shaped like the parameter; 0 for a zero vector.
        The axes of the vectors have size 1. In float64, where the square of a small gradient does not vanish."""
        w, g = (self.layout(double(tensor)) for tensor in (self.parameter.detach(), direction))
        norms = [x.square().sum(self.axes, keepdim=True).sqrt() for x in (w, g)]
        return ((w * g).sum(self.axes, keepdim=True) / (norms[0] * norms[1])).nan_to_num(0.0)


def _vectors(model: nn.Module, scope: Scope) -> list[Vectors]:
    """The weight vectors that are trained: of all matrices, and of the biases of linear layers and convolutions."""
    matrices, _ = weight_matrices(model, layouts=scope.layouts, frozen=False)
    vectors = [Vectors(m.parameter, m.layout, m.kernel or (-1,)) for m in matrices]
    layers = [m for m in unwrap(model).modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    biases = [m.bias for m in layers if m.bias is not None and m.bias.requires_grad]
    return vectors + [Vectors(bias, lambda tensor: tensor, (0,)) for bias in biases]


@contextmanager
def undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside; afterwards the modes, and the running statistics, are as they were."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for buffer, before in buffers:
            buffer.copy_(before)


def negative_gradient(
    parameters: Sequence[Tensor], data: Iterable[Any], loss: Callable[[Any], Tensor], alpha: float
) -> list[Tensor]:
    """The exponential average, from zero, of the negative gradient over batches.

    Raises:
        ValueError: there is no batch, or the average is not finite.
    """
    average, batches = [torch.zeros_like(p, memory_format=torch.preserve_format) for p in parameters], 0
    for batch in data:
        with torch.enable_grad():
            gradient = torch.autograd.grad(loss(batch), parameters, allow_unused=True, materialize_grads=True)
        torch._foreach_mul_(average, 1 - alpha)
        torch._foreach_sub_(average, gradient, alpha=alpha)
        batches += 1
    if not batches:
        raise ValueError("dash needs at least one batch of the data to come")
    if not math.isfinite(nn.utils.get_total_norm(average)):
        raise ValueError("the gradient of the loss on the data to come is not finite; nothing has been changed")
    return average
