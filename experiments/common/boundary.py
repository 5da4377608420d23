"""The moment between two phases: apply the reset method, and measure the network before and after."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import fire
from experiments.common.errors import UserError
from fire import metrics

logger = logging.getLogger("fire")


def check_scope(method: fire.Method, model: nn.Module, scope: fire.Scope) -> None:
    """Raise UserError, before training starts, for a scope that does not fit `model` or `method`."""
    try:
        method.check(model, scope)
    except ValueError as error:
        raise UserError(f"model.scope: {error}") from error


def cross(method: fire.Method, model: nn.Module, initial: Mapping[str, Tensor], scope: fire.Scope) -> dict[str, Any]:
    """Reset `model` in place and return the metrics of the reset.

    Raises:
        UserError: a pattern of the scope that matches nothing, or a weight that is not finite.
    """
    try:
        report = method.reset(model, initial, scope)
    except ValueError as error:
        raise UserError(f"method={method.method_name}: {error}") from error
    logger.info(
        "reset %s: SFE %.4g, DfI %.4g -> %.4g, %d tensors, %.2f s",
        method.method_name, report.sfe, report.dfi_before, report.dfi_after, report.touched, report.seconds,
    )  # fmt: skip
    normalised = report.sfe_normalised
    return {
        "reset/sfe": report.sfe,
        **({} if normalised is None else {"reset/sfe_normalised": normalised}),
        "reset/dfi_before": report.dfi_before,
        "reset/dfi_after": report.dfi_after,
        "reset/seconds": report.seconds,
        "reset/tensors": report.touched,
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


def sharpness(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> dict[str, float]:
    """Largest Hessian eigenvalue of the mean of `losses`, one for each fixed batch, in the parameters of `model`.

    Raises:
        UserError: the curvature is not finite.
    """
    started = time.perf_counter()
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


@torch.no_grad()
def plasticity(
    model: nn.Module, scope: fire.Scope, features: Tensor, activations: Iterable[fire.Activation | Tensor]
) -> dict[str, float | int]:
    """Signs of plasticity of `model`.

    Args:
        model: the network.
        scope: its reset scope, which knows the fused weights.
        features: penultimate activations of a fixed probe, (samples, units).
        activations: outputs of all nonlinearities on that probe, as recorded or each (samples, units, ...).
    """
    isometry = metrics.isometry(model, scope.fused)
    return {
        "plasticity/dfi": isometry["dfi"],
        "plasticity/dfi_normalised": isometry["dfi_normalised"],
        "plasticity/dfi_raw": isometry["dfi_raw"],
        "plasticity/effective_rank": metrics.effective_rank(features),
        "plasticity/stable_rank": metrics.stable_rank(features),
        "plasticity/srank": metrics.srank(features),
        "plasticity/dormant": metrics.dormant_ratio(activations),
        "plasticity/weight_norm": metrics.weight_norm(model),
    }
