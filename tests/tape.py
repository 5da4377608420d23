"""A CUDA graph without CUDA: the operations of a function, recorded once and repeated on the same memory."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

WAITS = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.masked_select.default", "aten.equal.default"}
"""Operations whose result the CPU must know before it can go on: a capture fails on them."""
FROM_CPU = {"aten.lift_fresh.default", "aten.lift_fresh_copy.default"}
"""What makes a tensor of Python numbers, and on a GPU copies it there from memory that is not kept."""


class Tape(TorchDispatchMode):
    """Records what runs while it is entered; `replay` runs it again.

    As in a CUDA graph, tensors are the memory they were at the recording and every Python number is what it was then,
    so a function that reads a new tensor or a changed number gives another result when it is replayed.

    Attributes:
        launches: how often each operation that does work on a device was recorded; views are none.
        replays: how often it was replayed.
    """

    def __init__(self, allow_waits: bool = False) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.replays = 0
        self._allow_waits = allow_waits
        self._steps: list[tuple[Any, tuple, dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        if name in WAITS and not self._allow_waits:
            raise RuntimeError(f"{name} waits for the device, which a captured graph cannot")
        if name in FROM_CPU and not self._allow_waits:
            raise RuntimeError(f"{name} makes a tensor of Python numbers, which a captured graph cannot copy")
        result = func(*args, **kwargs)
        read = {storage(tensor) for tensor in tensors((args, kwargs))}
        made = [tensor for tensor in tensors(result) if storage(tensor) not in read]
        if made or writes(func):
            if "empty" not in name:  # memory alone
                self.launches[name] += for_each(args) if name.startswith("aten._foreach") else 1
            self._steps.append((func, args, kwargs, tensors(result)))
        return result

    def replay(self) -> None:
        """Run the recorded operations again, each on the memory it had. Another tape does not see them: to it, as to
        a CPU with a GPU, a graph is one launch."""
        self.replays += 1
        with torch.no_grad(), _disable_current_modes():
            for func, args, kwargs, before in self._steps:
                for there, new in zip(before, tensors(func(*args, **kwargs)), strict=True):
                    if storage(there) != storage(new):
                        there.copy_(new)


def for_each(args: tuple) -> int:
    """How many launches an operation on lists of tensors is on a GPU: one if they lie alike, or one for each tensor."""
    lists = [argument for argument in args if isinstance(argument, list | tuple) and tensors(argument)]
    alike = all(
        one.stride() == other.stride() and one.dtype == other.dtype and dense(one)
        for others in lists
        for one, other in zip(lists[0], others, strict=True)
    )
    return 1 if alike else len(lists[0])


def dense(tensor: Tensor) -> bool:
    """Whether it fills its memory, in whatever order of its dimensions."""
    return tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True)).is_contiguous()


def writes(func: Any) -> bool:
    """Whether an operation changes one of its arguments."""
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments)


def tensors(tree: Any) -> list[Tensor]:
    """All tensors of nested lists and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    """Equal for tensors that share memory."""
    return tensor.untyped_storage()._cdata


def launches(function: Callable[[], object]) -> Counter[str]:
    """How often each operation that does work on a device runs in `function`."""
    with Tape(allow_waits=True) as tape:
        function()
    return tape.launches
