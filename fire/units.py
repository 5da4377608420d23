"""The units of a network: for each activation, the layer before it and those that read it.

A unit is an output feature of a linear layer or an output channel of a convolution. It is reset by drawing its incoming
weights from initial ones and setting its outgoing ones to zero. The scope of a model names these layers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .gram import compute_dtype
from .matrices import examples, unwrap

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
"""Names under which optimisers keep running means of a parameter's gradient."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class UnitLayer:
    """The units of one activation, in modules.

    Attributes:
        name, activation: the module after which units are counted.
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
        self, units: Tensor, initial: Mapping[str, Tensor], generator: torch.Generator,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:  # fmt: skip
        """Reset units in place, with their moments in the optimisers.

        Incoming weights and biases are drawn, with replacement, from the entries of the layer's own initial weights and
        biases, so from the distribution that the model started with. A unit's entries of the norm become the initial
        ones, its outgoing weights zero. The `step` of an optimiser stays: it belongs to a whole tensor.

        Args:
            units: their numbers, (count,); nothing waits for those on another device.
            initial: at least the tensors named in `drawn` and `restored`, as they were at initialisation.
            generator: of random numbers, on the CPU.
            optimizers: of the network.
        """
        units = _sent(units, self.outgoing[0].new_empty(0, dtype=units.dtype))  # once, not for each tensor
        written = self._draw(units, initial, generator)
        for name, tensor in self.restored.items():
            places = units.to(tensor.device)
            tensor.index_copy_(0, places, _sent(initial[name], tensor)[places])
            written.append((tensor, 0, units))
        for weight in self.outgoing:
            each = weight.shape[1] // self.size
            columns = (units[:, None] * each + torch.arange(each, device=units.device)).flatten()
            weight.index_fill_(1, columns.to(weight.device), 0)
            written.append((weight, 1, columns))
        for tensor, axis, places in written:
            for moment in [optimizer.state.get(tensor, {}).get(name) for optimizer in optimizers for name in MOMENTS]:
                if isinstance(moment, Tensor):
                    moment.index_fill_(axis, places.to(moment.device), 0)

    @torch.no_grad()
    def reset_as_published_code(
        self, units: Tensor, initial: Mapping[str, Tensor], generator: torch.Generator,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:  # fmt: skip
        """What the FIRE authors' code does in ReDo and self-normalised resets; arguments as of `reset`.

        It draws incoming weights and biases as `reset` does. It means to set outgoing weights and moments to zero too,
        but does so on copies, so that they stay; the norm stays as well. The `step` of the optimisers becomes 0, for
        the whole of each incoming and outgoing tensor.
        """
        self._draw(units, initial, generator)
        for tensor in [*self.drawn.values(), *self.outgoing]:
            for step in [optimizer.state.get(tensor, {}).get("step") for optimizer in optimizers]:
                if isinstance(step, Tensor):
                    step.zero_()

    def outgoing_magnitude(self) -> Tensor:
        """The mean absolute outgoing weight of each unit, (size,), in float32 at least."""
        sums, count = [], 0
        for weight in self.outgoing:
            columns = weight.detach().reshape(len(weight), self.size, -1)
            sums.append(columns.abs().sum((0, 2), dtype=compute_dtype(weight.dtype)))
            count += columns.shape[0] * columns.shape[2]
        return sum(sums[1:], sums[0]) / count

    def _draw(
        self, units: Tensor, initial: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[tuple[Tensor, int, Tensor]]:
        """New incoming weights and biases for the units; which entries of which tensors those are."""
        for name, tensor in self.drawn.items():
            start = initial[name].cpu()
            places = torch.randint(start.numel(), (len(units), *start.shape[1:]), generator=generator)
            tensor.index_copy_(0, units.to(tensor.device), _sent(start.flatten()[places], tensor))
        return [(tensor, 0, units) for tensor in self.drawn.values()]


def _sent(values: Tensor, like: Tensor) -> Tensor:
    """Values on the device and in the dtype of another tensor; does not wait for a GPU, as a plain copy would."""
    if like.is_cuda and not values.is_cuda:
        values = values.pin_memory()
    return values.to(like.device, like.dtype, non_blocking=True)


def unit_layers(model: nn.Module, units: Mapping[str, Mapping[str, Any]]) -> list[UnitLayer]:
    """The units of the activations that `units` names in `model`, in its order.

    Args:
        model: any module.
        units: pattern of activations -> names of the layers around them. Each `*` in a name stands for what the
            same-numbered `*` of the pattern matched.
            incoming: the Linear or Conv whose outputs are the units.
            outgoing: list of every Linear or Conv that reads the units.
            norm: the normalisation layer between `incoming` and the activation, if any.

    Raises:
        ValueError: a pattern that matches no module, a name that is none or not of a layer with a rule, sizes that do
            not fit, an activation named twice.
    """
    model = unwrap(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[nn.Module, UnitLayer] = {}
    for pattern, around in units.items():
        # As in the other patterns of a scope, * matches any text, dots included.
        expression = re.compile(re.escape(pattern).replace(r"\*", "(.*)"))
        found = [(name, match.groups()) for name in modules if name and (match := expression.fullmatch(name))]
        if not found:
            raise ValueError(f"units pattern {pattern!r} matches no module; there are: {examples(list(modules)[1:])}")
        for name, texts in found:
            if modules[name] in layers:
                raise ValueError(f"units: {name} is {layers[modules[name]].name}, which has its units already")
            try:
                layers[modules[name]] = _layer(modules, name, texts, **around)
            except (TypeError, ValueError) as error:
                raise ValueError(f"units of {name}: {error}") from error
    return list(layers.values())


def _layer(
    modules: Mapping[str, nn.Module], activation: str, texts: Sequence[str], incoming: str, outgoing: Sequence[str],
    norm: str | None = None,
) -> UnitLayer:  # fmt: skip
    """The units of an activation, for whose pattern's `*` stand `texts`."""
    if isinstance(outgoing, str) or not outgoing:
        raise ValueError(f"outgoing must be a list of names, got {outgoing!r}")
    incoming, layer = _find(modules, "incoming", incoming, texts)
    size = layer.weight.shape[0]
    restored: dict[str, Tensor] = {}
    if norm is not None:
        norm, module = _find(modules, "norm", norm, texts)
        state = module.state_dict(keep_vars=True).items()
        restored = {f"{norm}.{key}": tensor for key, tensor in state if tensor.ndim}  # not the count of batches
        for key, tensor in restored.items():
            if tensor.shape != (size,):
                raise ValueError(f"{key} has shape {tuple(tensor.shape)}, but {incoming} has {size} units")
    weights = []
    for pattern in outgoing:
        name, reader = _find(modules, "outgoing", pattern, texts)
        if getattr(reader, "groups", 1) != 1:
            raise ValueError(f"outgoing {name} is a grouped convolution, whose columns are not of one unit each")
        inputs = reader.weight.shape[1]
        if inputs % size or (inputs != size and not isinstance(reader, nn.Linear)):
            raise ValueError(f"outgoing {name} reads {inputs} features, but {incoming} has {size} units")
        weights.append(reader.weight)
    drawn = {f"{incoming}.{key}": tensor for key, tensor in layer.named_parameters(recurse=False)}
    axis = 1 if isinstance(layer, _CONVOLUTIONS) else -1
    return UnitLayer(activation, modules[activation], size, axis, drawn, restored, weights)


def _find(modules: Mapping[str, nn.Module], role: str, pattern: str, texts: Sequence[str]) -> tuple[str, Any]:
    """The module that a pattern stands for, and its name."""
    if pattern.count("*") > len(texts):
        raise ValueError(f"{role} {pattern!r} has more * than the activation's pattern")
    rest = iter(texts)
    name = re.sub(r"\*", lambda _: next(rest), pattern)
    if name not in modules:
        raise ValueError(f"{role} {name!r} is no module of the model")
    module = modules[name]
    plain = isinstance(module, (nn.Linear, *_CONVOLUTIONS)) and isinstance(module._parameters.get("weight"), Tensor)
    if role != "norm" and not plain:
        raise ValueError(f"{role} {name} must be a Linear or Conv with a plain weight, not {type(module).__name__}")
    return name, module
