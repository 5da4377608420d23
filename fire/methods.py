"""Methods: what is done for a network's plasticity, at a boundary between two training distributions or in training.

A method is a dataclass of its settings; `@register` makes it known by name, to `build` and to the experiments' configs.
`reset` is what it does at a boundary, `during` what it does while the network trains. `Scope` says which modules of a
model it concerns, because that belongs to the model.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .checks import check_module, check_tensor, check_type, check_whole
from .during import During
from .matrices import storage_key, unwrap, weight_matrices
from .ranks import await_ranks
from .report import Recorder, ResetReport
from .scope import Scope

METHODS: dict[str, type["Method"]] = {}
"""Every method by name."""


def register(name: str) -> Callable[[type["Method"]], type["Method"]]:
    """Class decorator: make a method known as `name`."""

    check_type("name", name, str, "a string")

    def add(cls: type[Method]) -> type[Method]:
        if name in METHODS and METHODS[name].__qualname__ != cls.__qualname__:  # a notebook may define its own again
            raise ValueError(f"there is a method {name!r} already: {METHODS[name].__qualname__}")
        cls.method_name = name
        METHODS[name] = cls
        return cls

    return add


def build(name: str, **settings: object) -> "Method":
    """The method called `name` with `settings` for its fields.

    Raises:
        ValueError: no such method, or a setting out of range. TypeError: a setting it does not have.
    """
    check_type("name", name, str, "a string")
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; valid: {', '.join(sorted(METHODS))}")
    return METHODS[name](**settings)


@dataclass
class Method:
    """Base of all methods. A subclass implements `change`, what it does at a boundary, which `reset` measures, or
    `during`.

    Attributes:
        method_name: under which it is registered.
        resets_optimizer: whether it makes no sense without a new optimiser.
        needs_data: whether `reset` needs batches of the data to come.
        has_optimizer: whether it trains with an optimiser of its own.
    """

    method_name: ClassVar[str] = ""
    resets_optimizer: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    has_optimizer: ClassVar[bool] = False

    def check(self, model: nn.Module, scope: Scope) -> None:
        """Raise ValueError for a scope that does not fit the model or this method."""
        scope.check(model)

    def acts_in(self, phase: int) -> bool:
        """Whether it acts while the network trains on a phase; they count from 0."""
        return False

    def during(self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, seed: int = 0) -> During:
        """What it does while `model` trains on one phase; to be made for each phase in which it acts.

        Args:
            model, initial, scope: as of `reset`. Hooks are set now; a model that has run compiled does not know them
                before torch.compiler.reset().
            seed: of what it draws.
        """
        return During()

    def optimizer(self, plain: torch.optim.Optimizer, model: nn.Module, scope: Scope) -> torch.optim.Optimizer:
        """The optimiser that trains `model` in a phase in which it acts, in place of `plain`, a new one of the training
        loop; by default that one."""
        return plain

    def restructure(self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope) -> None:
        """Give `model` the modules it has after a reset, so that a state_dict from then fits: most methods change none.
        `reset` does this itself."""

    @torch.no_grad()
    def reset(
        self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope = Scope(),  # noqa: B008
        data: Iterable[Any] | None = None, loss: Callable[[Any], Tensor] | None = None,
    ) -> ResetReport:  # fmt: skip
        """Change `model` in place before it meets new data.

        Args:
            model: the network; its parameters keep their memory addresses.
            initial: `state_dict` of the same network at initialisation, on any device.
            scope: which modules are concerned.
            data, loss: where the method `needs_data`, batches of the data to come, and the mean loss of one, by `model`
                as it is, without torch.compile; other methods ignore them.

        Returns:
            The report, over all weight matrices of the model, also those that the method leaves alone.

        Raises:
            ValueError: `initial` does not belong to `model` or shares its memory, a pattern matches nothing, a
                non-finite weight, no weight that a method of weights could change, no data where they are needed.
            TypeError: an argument of another type.
            RuntimeError: `model` is DistributedDataParallel, and not all of its ranks have made the call.
        """
        check_module(model)
        check_type("scope", scope, Scope, "a fire.Scope")
        given, model = model, unwrap(model)
        check_initial(model, initial)
        self.check(model, scope)
        if self.needs_data and (data is None or loss is None):
            raise ValueError(f"{self.method_name} needs the data to come: reset(..., data=batches, loss=of_a_batch)")
        await_ranks(given)
        matrices, skipped = weight_matrices(model, fused=scope.fused, layouts=scope.layouts)
        names = {storage_key(tensor): names[0] for tensor, names in state_of(model)}
        full_reset = [m.layout(initial[names[storage_key(m.parameter)]]) for m in matrices]
        recorder = Recorder(self.method_name, matrices, skipped, full_reset, model)
        if data is None or loss is None:
            self.change(model, initial, scope, recorder)
        else:
            self.change_by_data(model, initial, scope, recorder, data, loss)
        return recorder.report()

    def change(self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, recorder: Recorder) -> None:
        """Write new weights into `model` through `recorder`, which measures them; by default none."""

    def change_by_data(
        self, model: nn.Module, initial: Mapping[str, Tensor], scope: Scope, recorder: Recorder, data: Iterable[Any],
        loss: Callable[[Any], Tensor],
    ) -> None:  # fmt: skip
        """`change`, of a method that `needs_data`."""
        self.change(model, initial, scope, recorder)


@register("none")
@dataclass
class NoReset(Method):
    """Train on with the weights as they are: warm start, the paper's "Base"."""


@dataclass
class TrainingMethod(Method):
    """Base of methods that act while the network trains, by `during`, and change nothing at a boundary.

    Attributes:
        first_phase: the first phase in which it acts: 0 from the start, 1 from the first boundary on.
    """

    first_phase: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        check_whole("first_phase", self.first_phase, 0)

    def acts_in(self, phase: int) -> bool:
        return phase >= self.first_phase


def check_initial(model: nn.Module, initial: Mapping[str, Tensor]) -> None:
    """Raise ValueError for initial weights that do not belong to `model`, or are its own tensors; TypeError for weights
    that are no tensors."""
    check_type("initial", initial, Mapping, "a state_dict")
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    for name, value in state.items():
        given = initial.get(name, value)
        check_type(f"initial[{name!r}]", given, Tensor, "a torch.Tensor")
        if value.dtype.is_floating_point:
            check_tensor(f"initial[{name!r}]", given)
    if any(name not in initial or initial[name].shape != value.shape for name, value in state.items()):
        raise ValueError("the initial weights are not of this model: other names or shapes")
    if any(value.numel() and storage_key(initial[name]) == storage_key(value) for name, value in state.items()):
        raise ValueError(
            "the initial weights are the model's own tensors, which have changed with it; keep "
            "copy.deepcopy(model.state_dict()) before training"
        )


def state_of(model: nn.Module) -> list[tuple[Tensor, list[str]]]:
    """Parameters and buffers of the model's state, each piece of memory once, with all its names."""
    state: dict[tuple, tuple[Tensor, list[str]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            state.setdefault(storage_key(tensor), (tensor, []))[1].append(name)
    return list(state.values())
