"""Arguments refused before anything is computed: TypeError for a wrong type, ValueError for a wrong value."""

import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

VARIANTS = ("published", "as_published_code")
"""A method as its own paper has it, or as FIRE's authors' code does it, to which the FIRE paper's numbers belong."""


def check_variant(value: Any) -> None:
    """Raise ValueError for what is none of `VARIANTS`."""
    if value not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {value!r}")


def check_type(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    """Raise TypeError unless `value` is of `kind`, which is `expected` in words."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")


def check_module(model: Any) -> None:
    """Raise TypeError for what is no module."""
    check_type("model", model, nn.Module, "a torch.nn.Module")


def check_tensor(name: str, value: Any, dimensions: int = 0) -> None:
    """Raise TypeError for what is no real floating-point tensor, ValueError for one of fewer `dimensions`."""
    check_type(name, value, Tensor, "a torch.Tensor")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be of a real floating-point dtype, got {value.dtype}")
    if value.ndim < dimensions:
        raise ValueError(f"{name} must have at least {dimensions} dimensions, got shape {tuple(value.shape)}")


def check_finite(name: str, value: Tensor) -> None:
    """Raise ValueError for a tensor with a non-finite entry."""
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} of shape {tuple(value.shape)} holds a non-finite entry")


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise TypeError for what is no number, ValueError for one that is not finite or not in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    if not low <= float(value) <= high:
        valid = f"lie in [{low:g}, {high:g}]" if math.isfinite(high) else f"be at least {low:g}"
        raise ValueError(f"{name} must {valid}, got {value!r}")


def check_whole(name: str, value: Any, low: int, high: float = math.inf) -> None:
    """Raise TypeError for what is no whole number, ValueError for one that is not in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if not low <= int(value) <= high:
        valid = f"in [{low}, {high:.0f}]" if math.isfinite(high) else f"of at least {low}"
        raise ValueError(f"{name} must be a whole number {valid}, got {value!r}")


def check_patterns_type(name: str, value: Any) -> None:
    """Raise TypeError for what is neither None nor a collection of strings; a single string would be one of letters."""
    if value is None:
        return
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
        raise TypeError(f"{name} must be a list of patterns, got {value!r}")
    for pattern in value:
        if not isinstance(pattern, str):
            raise TypeError(f"{name} must be a list of patterns, got {pattern!r} in it")


def check_layouts(value: Any) -> None:
    """Raise TypeError for what is neither None nor a mapping of patterns to words."""
    if value is None:
        return
    check_type("layouts", value, Mapping, "a mapping of patterns to a word for each dimension")
    for pattern, words in value.items():
        check_type(f"layouts[{pattern!r}]", words, str, "a word for each dimension, such as 'expert in out'")


def check_fused(value: Any) -> None:
    """Raise TypeError for what is neither None nor a mapping of patterns to lists of whole numbers."""
    if value is None:
        return
    check_type("fused", value, Mapping, "a mapping of patterns to lists of row sizes")
    for pattern, sizes in value.items():
        listed = isinstance(sizes, Sequence) and not isinstance(sizes, str)
        if not listed or not all(isinstance(size, Integral) for size in sizes):
            raise TypeError(f"fused[{pattern!r}] must be a list of row sizes, got {sizes!r}")
