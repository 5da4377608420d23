"""Which matrices a model holds, and where: every weight as a stack of (out, in) matrices.

| module                                      | matrices                                                        |
|---------------------------------------------|-----------------------------------------------------------------|
| Linear                                      | one (out, in)                                                   |
| Conv1d/2d/3d                                | one (out, in) per kernel position; per group too where grouped  |
| ConvTranspose1d/2d/3d                       | the same, its weight being stored (in, out, ...)                |
| MultiheadAttention                          | query, key and value apart, and its output projection           |
| any module with `in_features`,              | its `weight`, (..., out, in) or (..., in, out), one matrix per  |
| `out_features` and a `weight`               | leading index: stacked ensembles                                |

`fused` splits the rows of a weight that stores several matrices on top of one another. A tensor shared by several
modules is one matrix; so an embedding counts only where a Linear shares its weight. Refused, by name, are depthwise
convolutions (each matrix a single column: its polar factor only keeps signs), parametrised and uninitialised weights,
and every tensor of two or more dimensions that no rule above covers.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fire.checks import check_fused, check_module, check_patterns_type


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """A stack of matrices inside one parameter.

    Attributes:
        name: the parameter's dotted name, with the rows in brackets where it is one part of a fused weight.
        parameter: the tensor that holds it.
        layout: maps a tensor shaped like `parameter` to a view (*stack, out, in) of it.
        scale: FIRE's factor on the polar factor, sqrt(out / in) / kernel positions.
    """

    name: str
    parameter: Tensor
    layout: Callable[[Tensor], Tensor]
    scale: float

    @property
    def view(self) -> Tensor:
        """The matrices (*stack, out, in), sharing memory with `parameter`."""
        return self.layout(self.parameter.detach())


def weight_matrices(
    model: nn.Module,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    fused: Mapping[str, Sequence[int]] | None = None,
) -> tuple[list[WeightMatrix], dict[str, str]]:
    """The weight matrices of `model` and, by name, the tensors refused with the reason.

    Args:
        model: any module; a wrapper of torch.compile or DistributedDataParallel is looked through.
        include: glob patterns over module names; a pattern covers the modules below one it matches. None: all.
        exclude: the same, taken out again.
        fused: pattern -> sizes of the parts stacked along a weight's rows, e.g. {"*.qkv": [768, 768, 768]}.

    Raises:
        ValueError: a pattern matches no module with weights, one of `include` selects nothing but refused or excluded
            tensors, or the sizes of a fused weight do not add up.
        TypeError: an argument of another type.
    """
    check_module(model)
    check_patterns_type("include", include)
    check_patterns_type("exclude", exclude)
    check_fused(fused)
    model = unwrap(model)
    modules = list(model.named_modules(remove_duplicate=False))
    holders = [name for name, module in modules if any(True for _ in _tensors(module))]
    if include is not None and not include:
        raise ValueError("include is empty and selects nothing; leave it out (None) to include everything")
    for option, patterns in (("include", include), ("exclude", exclude), ("fused", fused)):
        check_patterns(option, patterns or (), holders)

    places: dict[tuple, list[tuple[int, str, nn.Module, str, Tensor]]] = {}  # of a shared tensor, all
    for position, (name, module) in enumerate(modules):
        for suffix, parameter in _tensors(module):
            places.setdefault(storage_key(parameter), []).append((position, name, module, suffix, parameter))
    found: list[tuple[int, list[WeightMatrix]]] = []
    skipped: dict[str, str] = {}
    unmet = set(include or ())  # patterns that have selected no matrix yet
    for where in places.values():
        names = [name for _, name, _, _, _ in where]
        chosen = [place for place in where if include is None or matches(place[1], include)]
        if not chosen or (exclude and any(matches(name, exclude) for name in names)):
            continue
        full_name = f"{names[0]}.{where[0][3]}".lstrip(".")  # its first name, also where a pattern matches another
        rules = [(place, _rule(*place[2:])) for place in chosen]
        fitting = [(place, rule) for place, rule in rules if not isinstance(rule, str)]
        if not fitting:
            skipped[full_name] = str(rules[0][1])
            continue
        unmet -= {pattern for pattern in unmet for place, _ in fitting if matches(place[1], [pattern])}
        sizes = next((sizes for p, sizes in (fused or {}).items() if any(matches(n, [p]) for n in names)), None)
        (position, _, _, _, parameter), rule = fitting[0]
        found.append((position, _parts(full_name, parameter, rule, sizes)))
    if unmet:
        why = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ValueError(f"include pattern {sorted(unmet)[0]!r} selects no matrix ({why or 'all are excluded'})")
    return [matrix for _, parts in sorted(found, key=lambda each: each[0]) for matrix in parts], skipped


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module under torch.compile and DistributedDataParallel."""
    while isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model._orig_mod  # type: ignore[assignment]
    return model


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a glob pattern matches the dotted `name` of a module or of one it lies in."""
    parts = name.split(".")
    parents = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatchcase(parent, pattern) for pattern in patterns for parent in parents)


def check_patterns(
    option: str, patterns: Iterable[str], names: Sequence[str], what: str = "module with weights"
) -> None:
    """Raise ValueError, with examples of what there is, for a pattern that matches none of the module `names`."""
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            raise ValueError(f"{option} pattern {pattern!r} matches no {what}; there are: {examples(names)}")


def examples(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def storage_key(tensor: Tensor) -> tuple:
    """Equal for two tensors exactly if they are the same memory seen with the same shape: tied weights."""
    if tensor.is_meta or is_lazy(tensor) or hasattr(tensor, "device_mesh"):  # no memory to compare here
        return (id(tensor),)
    where = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    return (*where, tuple(tensor.shape), tensor.stride())


_Rule = tuple[Callable[[Tensor], Tensor], int]
"""How the matrices lie in a parameter, and over how many kernel positions their effect adds up."""


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, parameter) of everything in `module` itself, not its children, that might be a matrix."""
    for name, parameter in module.named_parameters(recurse=False):
        if is_lazy(parameter) or parameter.ndim >= 2:
            yield name, parameter


def _rule(module: nn.Module, name: str, parameter: Tensor) -> _Rule | str:
    """Where the matrices of a parameter lie or, as a string, why FIRE refuses it."""
    if is_lazy(parameter) or parameter.is_meta:
        return "uninitialised: it has no values yet"
    if hasattr(parameter, "device_mesh"):
        return "sharded over devices: gather it first"
    if parameter.numel() == 0:
        return "empty"
    if not parameter.dtype.is_floating_point:
        return f"of dtype {parameter.dtype}: only real floating-point weights have a rule"
    if isinstance(module, parametrize.ParametrizationList) or name in ("weight_g", "weight_v", "weight_orig"):
        return "parametrised: the weight is computed from it"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "an embedding: projected only where a Linear shares its weight"
    if isinstance(module, nn.modules.conv._ConvNd) and name == "weight":
        return _convolution_rule(module)
    if isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight":
        return lambda w: w.unflatten(0, (3, -1)), 1
    if isinstance(module, nn.MultiheadAttention) and name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return lambda w: w, 1
    declared = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if name == "weight" and tuple(parameter.shape[-2:]) == declared:
        return lambda w: w, 1
    if name == "weight" and tuple(parameter.shape[-2:]) == declared[::-1]:
        return lambda w: w.mT, 1
    return f"{type(module).__name__}.{name} has no rule: which are its rows and columns is not known"


def _convolution_rule(module: nn.modules.conv._ConvNd) -> _Rule | str:
    groups, dimensions = module.groups, len(module.kernel_size)
    if groups > 1 and groups == module.in_channels:
        return "a depthwise convolution: its matrices are single columns, whose polar factor only keeps directions"
    # (groups * a, b, *kernel) -> (groups, *kernel, out, in); a is out, or in where the convolution is transposed.
    rows_columns = (2, 1) if module.transposed else (1, 2)
    order = (0, *range(3, 3 + dimensions), *rows_columns)
    return lambda w: w.unflatten(0, (groups, -1)).permute(order), math.prod(module.kernel_size)


def _parts(name: str, parameter: Tensor, rule: _Rule, sizes: Sequence[int] | None) -> list[WeightMatrix]:
    """The whole parameter as one WeightMatrix or, given `sizes`, one for each run of that many rows."""
    layout, positions = rule
    out, fan_in = layout(parameter).shape[-2:]
    if sizes is None:
        return [WeightMatrix(name, parameter, layout, math.sqrt(out / fan_in) / positions)]
    if sum(sizes) != out or min(sizes, default=0) < 1:
        raise ValueError(f"the fused sizes {list(sizes)} of {name} must be positive and add up to its {out} rows")
    parts = []
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        rows = slice(end - size, end)
        part = lambda w, rows=rows: layout(w)[..., rows, :]  # noqa: E731
        scale = math.sqrt(size / fan_in) / positions
        parts.append(WeightMatrix(f"{name}[{rows.start}:{end}]", parameter, part, scale))
    return parts
