"""Which modules of a model the methods concern."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .checks import check_fused, check_layouts, check_patterns_type, check_type
from .matrices import WeightMatrix, check_patterns, examples, matches, unwrap, weight_matrices
from .units import unit_layers


@dataclass(frozen=True)
class Scope:
    """Which modules of a model the methods concern, as glob patterns over module names.

    Attributes:
        include, exclude: what `fire` projects; None includes every weight matrix.
        reset: modules that `fire`, `rescale` and `shrink_perturb` send to their initial weights (DQN's linear
            layers).
        fused, layouts, frozen: as of `fire_`: weights that stack several matrices, where matrices lie, and whether
            weights that are not trained are projected too.
        inject: modules that plasticity injection puts a second head beside.
        adam: modules that `muon` leaves to Adam, such as the head.
        units: pattern of activations -> the layers around them (`unit_layers`), for methods that reset units, e.g.
            {"blocks.*.relu1": {"incoming": "blocks.*.conv1", "norm": "blocks.*.bn1", "outgoing": ["blocks.*.conv2"]}}.

    Raises:
        TypeError: a string where a list belongs, or another wrong type.
    """

    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    reset: Sequence[str] = ()
    inject: Sequence[str] = ()
    adam: Sequence[str] = ()
    fused: Mapping[str, Sequence[int]] = field(default_factory=dict)
    layouts: Mapping[str, str] = field(default_factory=dict)
    frozen: bool = False
    units: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "reset", "inject", "adam"):
            check_patterns_type(name, getattr(self, name))
        check_fused(self.fused)
        check_layouts(self.layouts)
        check_type("units", self.units, Mapping, "a mapping of patterns to the layers around them")
        for pattern, around in self.units.items():
            check_type(f"units[{pattern!r}]", around, Mapping, "a mapping with incoming, outgoing and norm")

    def matrices(self, model: nn.Module) -> tuple[list[WeightMatrix], dict[str, str]]:
        """The matrices that are projected, and by name the tensors refused with the reason (`weight_matrices`)."""
        return weight_matrices(
            model, include=self.include, exclude=self.exclude, fused=self.fused, layouts=self.layouts,
            frozen=self.frozen,
        )  # fmt: skip

    def check(self, model: nn.Module) -> tuple[list[WeightMatrix], dict[str, str]]:
        """Raise ValueError for a pattern that matches nothing in `model`, or sizes that do not fit it; returns its
        `matrices`."""
        found = self.matrices(model)
        modules = unwrap(model).named_modules(remove_duplicate=False)
        with_state = [name for name, module in modules if [*module.parameters(False), *module.buffers(False)]]
        check_patterns("reset", self.reset, with_state)
        check_patterns("adam", self.adam, with_state)
        children = [name for name, _ in unwrap(model).named_modules() if name]
        for pattern in self.inject:
            if not any(fnmatchcase(name, pattern) for name in children):
                raise ValueError(f"inject pattern {pattern!r} matches no module; there are: {examples(children)}")
        unit_layers(model, self.units)
        return found

    def resets(self, names: Iterable[str]) -> bool:
        """Whether `reset` covers a module that a tensor belongs to, by any of the tensor's names."""
        return bool(self.reset) and any(matches(name.rpartition(".")[0], self.reset) for name in names)
