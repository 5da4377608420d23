"""Where the matrices lie in a weight: what is known of modules, and layouts given in words."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

Rule = tuple[Callable[[Tensor], Tensor], tuple[int, ...]]
"""Maps a parameter to a view (*stack, out, in); and which axes of the stack are kernel positions, over which the
matrices' effects add up."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3, "RNN": 1, "RNNCell": 1}
_EXPERTS = {"gate_up_proj": 2, "gate_proj": 1, "up_proj": 1, "down_proj": 1}
_FUSED_NAMES = ("qkv", "wqkv", "qkv_proj", "in_proj", "c_attn", "query_key_value", "gate_up", "gate_up_proj")


SUMMON = "where FSDP has sharded it, use FullyShardedDataParallel.summon_full_params"


def flattened(module: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether it is the part of FSDP's flat memory that one process has, of what were matrices."""
    of_matrix = name == "weight" and isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    return parameter.ndim < 2 and (of_matrix or name == "_flat_param")


def refusal(module: nn.Module, name: str, parameter: Tensor) -> str | None:
    """Why no matrix of a parameter can be projected, whatever its layout; None if one can."""
    if is_lazy(parameter):
        return "uninitialised: it has no values yet"
    if hasattr(parameter, "device_mesh"):
        return "sharded over devices: gather it first"
    if parameter.is_meta:
        offloaded = hasattr(module, "_hf_hook")
        return "offloaded by accelerate: load it first" if offloaded else "on the meta device: it has no values"
    kind = type(parameter.detach())  # those of torch._subclasses are fakes in which PyTorch traces
    if kind not in (Tensor, nn.Parameter) and not kind.__module__.startswith(
        "torch._subclasses"
    ):  # PyTorch's own fakes
        return f"a {kind.__name__}, which wraps its values in a way of its own"
    if parameter.numel() == 0:
        return f"empty; {SUMMON}"
    if flattened(module, name, parameter):
        return f"flat; {SUMMON}"
    if parameter.layout != torch.strided:
        return "sparse"
    if parameter.dtype not in DTYPES:
        return f"of dtype {parameter.dtype}: only float16, bfloat16, float32 and float64 are computed with"
    if 0 in [stride for stride, size in zip(parameter.stride(), parameter.shape, strict=True) if size > 1]:
        return "expanded: several of its entries are one number"
    if isinstance(module, parametrize.ParametrizationList) or name in ("weight_g", "weight_v", "weight_orig"):
        return "parametrised: the weight is computed from it"
    return None


def rule(module: nn.Module, name: str, parameter: Tensor) -> Rule | str:
    """Where the matrices of a parameter lie or, as a string, why that is not known."""
    kind = type(module).__name__
    declared = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "an embedding: projected only where a Linear shares its weight"
    if isinstance(module, nn.modules.conv._ConvNd) and name == "weight":
        return _convolution(module)
    if isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight":
        return lambda w: w.unflatten(0, (3, -1)), ()
    if isinstance(module, nn.MultiheadAttention) and name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return lambda w: w, ()
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and kind in _GATES:
        gates = 1 if name.startswith("weight_hr") else _GATES[kind]  # the projection of an LSTM has no gates
        return lambda w: w.unflatten(0, (gates, -1)), ()
    if isinstance(module, nn.Bilinear):
        return lambda w: w, ()  # a form (in1, in2) for each output
    if kind == "Conv1D" and name == "weight" and parameter.shape[1] == getattr(module, "nf", None):
        return lambda w: w.mT, ()  # of transformers: a linear layer stored (in, out)
    if name in _EXPERTS and parameter.ndim == 3:
        return _experts(module, name, parameter)
    if name == "weight" and tuple(parameter.shape[-2:]) == declared:
        return lambda w: w, ()
    if name == "weight" and tuple(parameter.shape[-2:]) == declared[::-1]:
        return lambda w: w.mT, ()
    return f"{kind}.{name} has no rule: which are its rows and columns is not known; say it with `layouts`"


def _convolution(module: nn.modules.conv._ConvNd) -> Rule | str:
    groups, dimensions = module.groups, len(module.kernel_size)
    if module.weight.ndim != 2 + dimensions:
        return f"of {module.weight.ndim} dimensions, where {type(module).__name__} has {2 + dimensions}"
    if groups > 1 and groups == module.in_channels:
        return "a depthwise convolution: its matrices are single columns, whose polar factor only keeps directions"
    # (groups * a, b, *kernel) -> (groups, *kernel, out, in); a is out, or in where the convolution is transposed.
    rows_columns = (2, 1) if module.transposed else (1, 2)
    order = (0, *range(3, 3 + dimensions), *rows_columns)
    return lambda w: w.unflatten(0, (groups, -1)).permute(order), tuple(range(1, 1 + dimensions))


def _experts(module: nn.Module, name: str, parameter: Tensor) -> Rule | str:
    """Stacked experts, as in transformers, by what the module says of their sizes."""
    hidden, inner = _first(module, "hidden_dim", "hidden_size"), _first(module, "intermediate_dim", "intermediate_size")
    if hidden is None or inner is None:
        return f"{type(module).__name__} does not say the sizes of its experts; say with `layouts` how they lie"
    out, fan_in = (hidden, inner) if name == "down_proj" else (_EXPERTS[name] * inner, hidden)
    fits = tuple(parameter.shape[1:]) == (out, fan_in), tuple(parameter.shape[1:]) == (fan_in, out)
    transposed = getattr(module, "is_transposed", None)
    if transposed is not None and fits[bool(transposed)]:
        return (lambda w: w.mT) if transposed else (lambda w: w), ()
    if fits.count(True) != 1:
        return f"{type(module).__name__}.{name} fits no order of rows and columns, or both; say it with `layouts`"
    return (lambda w: w) if fits[0] else (lambda w: w.mT), ()


def _first(module: nn.Module, *names: str) -> Any:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def from_words(layout: str, name: str, parameter: Tensor) -> Rule:
    """A layout in words, one for each dimension: `out` and `in` are the matrix, `position` counts as kernel positions,
    all others are stack axes.

    Raises:
        ValueError: words that do not fit the parameter.
    """
    words = layout.split()
    if len(words) != parameter.ndim or words.count("out") != 1 or words.count("in") != 1:
        raise ValueError(
            f"layout {layout!r} does not fit {name} {tuple(parameter.shape)}: it needs a word for each dimension, "
            "`out` and `in` once each"
        )
    stack = [i for i, word in enumerate(words) if word not in ("out", "in")]
    order = (*stack, words.index("out"), words.index("in"))
    kernel = tuple(axis for axis, i in enumerate(stack) if words[i] == "position")
    return lambda w: w.permute(order), kernel


def looks_fused(name: str, shape: Sequence[int]) -> bool:
    """Whether a weight may stack several matrices along its rows, by its name or by having three times as many rows as
    columns."""
    return shape[-2] == 3 * shape[-1] or any(part.lower() in _FUSED_NAMES for part in name.split("."))
