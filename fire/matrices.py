"""Which matrices a model holds, and where: every weight as a stack of (out, in) matrices.

| module                                      | matrices                                                        |
|---------------------------------------------|-----------------------------------------------------------------|
| Linear                                      | one (out, in)                                                   |
| Conv1d/2d/3d                                | one (out, in) per kernel position; per group too where grouped  |
| ConvTranspose1d/2d/3d                       | the same, its weight being stored (in, out, ...)                |
| MultiheadAttention                          | query, key and value apart, and its output projection           |
| LSTM, GRU, RNN and their cells              | one (hidden, in) per gate, of inputs and of the state apart     |
| Bilinear                                    | one (in1, in2) per output                                       |
| Conv1D of transformers                      | one, stored (in, out)                                           |
| stacked experts of transformers             | one (out, in) per expert, as the module's sizes say             |
| any module with `in_features`,              | its `weight`, (..., out, in) or (..., in, out), one matrix per  |
| `out_features` and a `weight`               | leading index: stacked ensembles                                |

`layouts` says for any other weight where its matrices lie, and `fused` splits the rows of a weight that stores several
matrices on top of one another. A tensor shared by several modules is one matrix; so an embedding counts only where a
Linear shares its weight. Refused, by name, are depthwise convolutions (each matrix a single column: its polar factor
only keeps signs), parametrised and uninitialised weights, those whose values cannot be written one by one (expanded,
overlapping, wrapped, sharded, in 8 bits), and every tensor of two or more dimensions that no rule above covers.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate, combinations

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .checks import check_fused, check_layouts, check_module, check_patterns_type
from .rules import Rule, flattened, from_words, refusal, rule

FROZEN = "frozen: its requires_grad is False; frozen=True includes it"


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """A stack of matrices inside one parameter.

    Attributes:
        name: the parameter's dotted name, with the rows in brackets where it is one part of a fused weight.
        parameter: the tensor that holds it.
        layout: maps a tensor shaped like `parameter` to a view (*stack, out, in) of it.
        scale: FIRE's factor on the polar factor, sqrt(out / in) / kernel positions.
        kernel: which axes of the view's stack are kernel positions.
    """

    name: str
    parameter: Tensor
    layout: Callable[[Tensor], Tensor]
    scale: float
    kernel: tuple[int, ...] = ()

    @property
    def view(self) -> Tensor:
        """The matrices (*stack, out, in), sharing memory with `parameter`."""
        return self.layout(self.parameter.detach())

    def flat(self, tensor: Tensor) -> Tensor:
        """What `tensor`, shaped like `parameter`, is as matrices (batch, out, in * kernel positions), in which a
        convolution is one matrix (a group, if grouped). The order of columns is that in memory, so that nothing is
        copied where that can be."""
        order, shape = self._order(view := self.layout(tensor))
        return view.permute(order).reshape(-1, view.shape[-2], math.prod(shape[-1 - len(self.kernel) :]))

    def write_flat(self, tensor: Tensor, matrices: Tensor) -> None:
        """Copy matrices, in the order that `flat` gives those of `tensor`, into `tensor`."""
        order, shape = self._order(view := self.layout(tensor))
        view.permute(order).copy_(matrices.reshape(shape))

    def _order(self, view: Tensor) -> tuple[list[int], list[int]]:
        """The axes of a view as `flat` takes them: the stack, out, and those of the columns; and their sizes."""
        columns = sorted((*self.kernel, view.ndim - 1), key=lambda axis: view.stride(axis), reverse=True)
        order = [axis for axis in range(view.ndim - 1) if axis not in self.kernel] + columns
        return order, [view.shape[axis] for axis in order]


def weight_matrices(
    model: nn.Module,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    fused: Mapping[str, Sequence[int]] | None = None,
    layouts: Mapping[str, str] | None = None,
    frozen: bool = True,
) -> tuple[list[WeightMatrix], dict[str, str]]:
    """The weight matrices of `model` and, by name, the tensors refused with the reason.

    Args:
        model: any module; a wrapper of torch.compile or DistributedDataParallel is looked through.
        include: glob patterns over module names; a pattern covers the modules below one it matches. None: all.
        exclude: the same, taken out again.
        fused: pattern -> sizes of the parts stacked along a weight's rows, e.g. {"*.qkv": [768, 768, 768]}.
        layouts: pattern over parameter names -> a word for each dimension, e.g. {"*.kernel": "position in out"}: `out`
            and `in` are the matrix, `position` counts as kernel positions, any other word is a stack axis.
        frozen: whether weights whose `requires_grad` is False count.

    Raises:
        ValueError: a pattern matches nothing, one of `include`, `fused` or `layouts` meets nothing but refused tensors,
            or sizes or words that do not fit a weight.
        TypeError: an argument of another type.
    """
    check_module(model)
    check_patterns_type("include", include)
    check_patterns_type("exclude", exclude)
    check_fused(fused)
    check_layouts(layouts)
    fused, layouts = fused or {}, layouts or {}
    model = unwrap(model)
    modules = list(model.named_modules(remove_duplicate=False))
    holders = [name for name, module in modules if any(True for _ in _tensors(module))]
    if include is not None and not include:
        raise ValueError("include is empty and selects nothing; leave it out (None) to include everything")
    for option, patterns in (("include", include), ("exclude", exclude), ("fused", fused)):
        check_patterns(option, patterns or (), holders)

    places: dict[tuple, list[_Place]] = {}  # of a shared tensor, all
    for position, (name, module) in enumerate(modules):
        for suffix, parameter in _tensors(module):
            places.setdefault(storage_key(parameter), []).append(_Place(position, name, module, suffix, parameter))
    everything = [place.full_name for where in places.values() for place in where]
    for pattern in layouts:
        if not any(fnmatchcase(name, pattern) for name in everything):
            raise ValueError(f"layouts pattern {pattern!r} matches no parameter; there are: {examples(everything)}")
    overlapping = _overlaps([where[0] for where in places.values()])
    found: list[tuple[int, list[WeightMatrix]]] = []
    skipped: dict[str, str] = {}
    # Pattern -> whether it has met a matrix.
    met = {option: dict[str, bool]() for option in ("include", "fused", "layouts")}
    for where in places.values():
        first, names = where[0], [place.name for place in where]
        chosen = [place for place in where if include is None or matches(place.name, include)]
        layout = next((words for p, words in layouts.items() if any(fnmatchcase(o.full_name, p) for o in where)), None)
        if not chosen or (exclude and any(matches(name, exclude) for name in names)):
            _note(met, where, fused, layouts, (), True)  # of these nothing is asked
            continue
        if not frozen and not first.parameter.requires_grad:
            result: Rule | str = FROZEN
        elif first.full_name in overlapping:
            result = overlapping[first.full_name]
        else:
            result, chosen = _rule_of(chosen, layout)
        _note(met, where, fused, layouts, include or (), not isinstance(result, str))
        if isinstance(result, str):
            skipped[first.full_name] = result
            continue
        sizes = next((sizes for p, sizes in fused.items() if any(matches(n, [p]) for n in names)), None)
        # Its first name, also where a pattern matches another.
        found.append((chosen[0].position, _parts(first.full_name, first.parameter, result, sizes)))
    for option, patterns_met in met.items():
        if unmet := sorted(pattern for pattern, yes in patterns_met.items() if not yes):
            why = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise ValueError(f"{option} pattern {unmet[0]!r} selects no matrix ({why or 'all are excluded'})")
    return [matrix for _, parts in sorted(found, key=lambda each: each[0]) for matrix in parts], skipped


@dataclass(frozen=True, eq=False)
class _Place:
    """A parameter in a module."""

    position: int
    name: str
    module: nn.Module
    suffix: str
    parameter: Tensor

    @property
    def full_name(self) -> str:
        return f"{self.name}.{self.suffix}".lstrip(".")


def _rule_of(places: list[_Place], layout: str | None) -> tuple[Rule | str, list[_Place]]:
    """The first rule for a parameter at one of its places or, as a string, why there is none; and the places from there
    on."""
    for place in places:
        if why := refusal(place.module, place.suffix, place.parameter):
            return why, places
    if layout is not None:
        return from_words(layout, places[0].full_name, places[0].parameter), places
    results = [rule(place.module, place.suffix, place.parameter) for place in places]
    fitting = next((i for i, result in enumerate(results) if not isinstance(result, str)), 0)
    return results[fitting], places[fitting:]


def _note(
    met: dict[str, dict[str, bool]], where: Sequence[_Place], fused: Iterable[str], layouts: Iterable[str],
    include: Iterable[str], good: bool,
) -> None:  # fmt: skip
    """Note for each pattern that matches a tensor whether it has met a matrix."""
    for option, patterns in (("include", include), ("fused", fused)):
        for pattern in patterns:
            if any(matches(place.name, [pattern]) for place in where):
                met[option][pattern] = met[option].get(pattern, False) or good
    for pattern in layouts:
        if any(fnmatchcase(place.full_name, pattern) for place in where):
            met["layouts"][pattern] = met["layouts"].get(pattern, False) or good


def _overlaps(places: Sequence[_Place]) -> dict[str, str]:
    """The tensors that share some of their memory with another one, but not all of it in the same shape."""
    by_storage: dict[tuple, list[tuple[int, int, str]]] = {}
    for place in places:
        key = storage_key(place.parameter)
        if len(key) > 1 and place.parameter.numel():
            tensor, start = place.parameter, place.parameter.storage_offset()
            extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            by_storage.setdefault(key[:2], []).append((int(start), int(start + extent), place.full_name))
    found = {}
    for parts in by_storage.values():
        for (start, end, name), (other_start, other_end, other) in combinations(parts, 2):
            if start < other_end and other_start < end:
                found[name] = f"it shares memory with {other}, in another shape"
                found[other] = f"it shares memory with {name}, in another shape"
    return found


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
    try:
        where = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    except (RuntimeError, NotImplementedError):  # a wrapper, whose values lie in other tensors
        return (id(tensor),)
    return (*where, tuple(tensor.shape), tensor.stride())


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, parameter) of everything in `module` itself, not its children, that might be a matrix."""
    for name, parameter in module.named_parameters(recurse=False):
        if is_lazy(parameter) or parameter.ndim >= 2 or flattened(module, name, parameter):
            yield name, parameter


def _parts(name: str, parameter: Tensor, rule: Rule, sizes: Sequence[int] | None) -> list[WeightMatrix]:
    """The whole parameter as one WeightMatrix or, given `sizes`, one for each run of that many rows."""
    layout, kernel = rule
    *stack, out, fan_in = layout(parameter).shape
    positions = math.prod(stack[axis] for axis in kernel)
    if sizes is None:
        return [WeightMatrix(name, parameter, layout, math.sqrt(out / fan_in) / positions, kernel)]
    if sum(sizes) != out or min(sizes, default=0) < 1:
        raise ValueError(f"the fused sizes {list(sizes)} of {name} must be positive and add up to its {out} rows")
    parts = []
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        rows = slice(end - size, end)
        part = lambda w, rows=rows: layout(w)[..., rows, :]  # noqa: E731
        scale = math.sqrt(size / fan_in) / positions
        parts.append(WeightMatrix(f"{name}[{rows.start}:{end}]", parameter, part, scale, kernel))
    return parts
