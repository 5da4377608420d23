"""The units of a network: for each activation, the layer before it and those that read it.

A unit is an output feature of a linear layer or an output channel of a convolution. It is reset by drawing its incoming
weights afresh and setting its outgoing ones to zero. Which layers those are, the scope of a model says.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from fire.matrices import unwrap

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
"""Names under which optimisers keep running means of a parameter's gradient."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Units:
    """Names of the layers around an activation; each `*` stands for what the same-numbered `*` of the activation's
    pattern matched.

    Attributes:
        incoming: the Linear or Conv whose outputs are the units.
        outgoing: every layer that reads the units.
        norm: the normalisation layer between `incoming` and the activation, if any.
    """

    incoming: str
    outgoing: Sequence[str]
    norm: str | None = None


@dataclass(frozen=True, eq=False)
class UnitLayer:
    """The units of one activation, in modules.

    Attributes:
        name: of the activation.
        size: number of units.
        axis: of the activation's output along which they lie: 1 after a convolution, else the last.
        drawn, restored: by name, the tensors whose first axis are the units: weight and bias of the incoming layer,
            and those of the norm.
        outgoing: weights that read the units, (out, in, ...); unit i owns k columns from i k on, k = in / size.
    """

    name: str
    activation: nn.Module
    size: int
    axis: int
    drawn: Mapping[str, Tensor]
    restored: Mapping[str, Tensor]
    outgoing: Sequence[Tensor]

    @torch.no_grad()
    def reset(
        self,
        units: Tensor,
        initial: Mapping[str, Tensor],
        generator: torch.Generator,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Reset the units with these numbers, (count,) on the CPU, in place, with their moments in the optimisers.

        Incoming weights and biases are drawn, with replacement, from the entries of the layer's own initial weights and
        biases, so from the distribution that the model started with. A unit's entries of the norm become the initial
        ones, its outgoing weights zero. The `step` of an optimiser stays: it belongs to a whole tensor.

        Args:
            units: which units.
            initial: at least the tensors named in `drawn` and `restored`, as they were at initialisation.
            generator: of random numbers, on the CPU.
            optimizers: of the network.
        """
        for name, tensor in self.drawn.items():
            start = initial[name].flatten().cpu()
            picked = torch.randint(len(start), (len(units), *tensor.shape[1:]), generator=generator)
            tensor.index_copy_(0, units.to(tensor.device), start[picked].to(tensor))
            _clear_moments(tensor, 0, units, optimizers)
        for name, tensor in self.restored.items():
            tensor.index_copy_(0, units.to(tensor.device), initial[name].cpu()[units].to(tensor))
            _clear_moments(tensor, 0, units, optimizers)
        for weight in self.outgoing:
            each = weight.shape[1] // self.size
            columns = (units[:, None] * each + torch.arange(each)).flatten()
            weight.index_fill_(1, columns.to(weight.device), 0)
            _clear_moments(weight, 1, columns, optimizers)


def _clear_moments(tensor: Tensor, axis: int, places: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        state = optimizer.state.get(tensor, {})
        for moment in (state[name] for name in MOMENTS if isinstance(state.get(name), Tensor)):
            moment.index_fill_(axis, places.to(moment.device), 0)


def unit_layers(model: nn.Module, units: Mapping[str, Units | Mapping[str, Any]]) -> list[UnitLayer]:
    """The units that a scope's `units` names in `model`, in its order.

    Raises:
        ValueError: a pattern that matches no module, a name that is none or not of a layer with a rule, sizes that do
            not fit, an activation named twice.
    """
    model = unwrap(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[nn.Module, UnitLayer] = {}
    for pattern, given in units.items():
        around = _units(pattern, given)
        # As in the other patterns of a scope, * matches any text, dots included.
        expression = re.compile(re.escape(pattern).replace(r"\*", "(.*)"))
        found = [(name, match.groups()) for name in modules if name and (match := expression.fullmatch(name))]
        if not found:
            raise ValueError(f"units pattern {pattern!r} matches no module; there are: {', '.join(list(modules)[1:])}")
        for name, texts in found:
            if modules[name] in layers:
                raise ValueError(f"units: {name} is {layers[modules[name]].name}, which has its units already")
            layers[modules[name]] = _Resolver(modules, name, texts).layer(around)
    return list(layers.values())


def _units(pattern: str, given: Units | Mapping[str, Any]) -> Units:
    if isinstance(given, Units):
        return given
    known = [field.name for field in fields(Units)]
    if not isinstance(given, Mapping) or set(given) - set(known) or {"incoming", "outgoing"} - set(given):
        raise ValueError(f"units of {pattern!r} need incoming and outgoing, and may have norm; got {given!r}")
    if isinstance(given["outgoing"], str) or not given["outgoing"]:
        raise ValueError(f"units of {pattern!r}: outgoing must be a list of names, got {given['outgoing']!r}")
    return Units(**given)


@dataclass(frozen=True)
class _Resolver:
    """Finds the layers around the activation `name`, whose pattern's `*` matched `texts`."""

    modules: Mapping[str, nn.Module]
    name: str
    texts: Sequence[str]

    def layer(self, around: Units) -> UnitLayer:
        incoming, module = self.find("incoming", around.incoming, nn.Linear, *_CONVOLUTIONS)
        size = module.weight.shape[0]
        restored: dict[str, Tensor] = {}
        if around.norm is not None:
            norm, its = self.find("norm", around.norm)
            state = {key: t for key, t in its.state_dict(keep_vars=True).items() if t.ndim}  # not the count of batches
            for key, tensor in state.items():
                if tensor.shape != (size,):
                    raise self.error(f"{norm}.{key} has shape {tuple(tensor.shape)}, but {incoming} has {size} units")
            restored = {f"{norm}.{key}": tensor for key, tensor in state.items()}
        return UnitLayer(
            self.name,
            self.modules[self.name],
            size,
            1 if isinstance(module, _CONVOLUTIONS) else -1,
            {f"{incoming}.{key}": tensor for key, tensor in module.named_parameters(recurse=False)},
            restored,
            [self.reader(each, incoming, size) for each in around.outgoing],
        )

    def reader(self, pattern: str, incoming: str, size: int) -> Tensor:
        """The weight of a layer that reads the units."""
        name, module = self.find("outgoing", pattern, nn.Linear, *_CONVOLUTIONS)
        if getattr(module, "groups", 1) != 1:
            raise self.error(f"outgoing {name} is a grouped convolution, whose columns are not of one unit each")
        inputs = module.weight.shape[1]
        if inputs % size or (inputs != size and not isinstance(module, nn.Linear)):
            raise self.error(f"outgoing {name} reads {inputs} features, but {incoming} has {size} units")
        return module.weight

    def find(self, role: str, pattern: str, *types: type[nn.Module]) -> tuple[str, Any]:
        """The name that a pattern stands for and its module, of one of `types` if there are any."""
        parts = pattern.split("*")
        if len(parts) - 1 > len(self.texts):
            raise self.error(f"{role} {pattern!r} has more * than the activation's pattern")
        name = parts[0] + "".join(text + part for text, part in zip(self.texts, parts[1:], strict=False))
        if name not in self.modules:
            raise self.error(f"{role} {name!r} is no module of the model")
        module = self.modules[name]
        if types and not (isinstance(module, types) and isinstance(module._parameters.get("weight"), nn.Parameter)):
            raise self.error(f"{role} {name} must be a Linear or Conv with a plain weight, not {type(module).__name__}")
        return name, module

    def error(self, problem: str) -> ValueError:
        return ValueError(f"units of {self.name}: {problem}")
