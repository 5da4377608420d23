"""What a reset did and how plastic a network is, as metrics for the log."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import fire
from experiments.common.errors import UserError
from fire import metrics


def of_reset(report: fire.ResetReport) -> dict[str, Any]:
    """The metrics of a reset."""
    return {
        "reset/sfe": report.sfe,
        **({} if report.sfe_normalised is None else {"reset/sfe_normalised": report.sfe_normalised}),
        "reset/dfi_before": report.dfi_before,
        "reset/dfi_after": report.dfi_after,
        "reset/seconds": report.seconds,
        "reset/tensors": report.touched,
    }


@torch.no_grad()
def of_network(
    model: nn.Module, scope: fire.Scope, features: Tensor, activations: Sequence[fire.Activation]
) -> dict[str, float | int]:
    """Signs of plasticity of `model`.

    Args:
        model: the network.
        scope: its scope, which knows the fused weights.
        features: penultimate activations of fixed samples, (samples, units).
        activations: outputs of all nonlinearities on those samples.
    """
    isometry = metrics.isometry(model, scope.fused)
    return {
        "plasticity/dfi": isometry["dfi"],
        "plasticity/dfi_normalised": isometry["dfi_normalised"],
        "plasticity/dfi_raw": isometry["dfi_raw"],
        "plasticity/anisotropy": isometry["anisotropy"],
        "plasticity/effective_rank": metrics.effective_rank(features),
        "plasticity/stable_rank": metrics.stable_rank(features),
        "plasticity/srank": metrics.srank(features),
        "plasticity/dormant": metrics.dormant_ratio(activations),
        "plasticity/weight_norm": metrics.weight_norm(model),
    }


@contextmanager
def training_statistics(model: nn.Module) -> Iterator[None]:
    """Training mode inside, in which batch normalisation uses the statistics of its input; the running ones, which
    after a reset are still those of the old weights, stay as they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def sharpness(model: nn.Module, loss: Callable[[Any], Tensor], batches: Sequence[Any]) -> dict[str, float]:
    """Largest Hessian eigenvalue, in the parameters of `model`, of the mean loss over all samples of some batches.

    Args:
        loss: mean loss of a batch.
        batches: tuples or tensors whose first part has the samples in its first dimension; the last may be smaller.

    Raises:
        UserError: the curvature is not finite.
    """
    started = time.perf_counter()
    sizes = [len(batch[0]) if isinstance(batch, tuple) else len(batch) for batch in batches]
    weights = [size * len(batches) / sum(sizes) for size in sizes]
    losses = [lambda b=batch, w=weight: w * loss(b) for batch, weight in zip(batches, weights, strict=True)]
    try:
        with training_statistics(model):
            value, error = metrics.sharpness(losses, [p for p in model.parameters() if p.requires_grad])
    except ValueError as problem:
        raise UserError(f"sharpness: {problem}") from problem
    return {
        "plasticity/sharpness": value,
        "plasticity/sharpness_error": error,
        "speed/sharpness_seconds": time.perf_counter() - started,
    }
