"""How much memory a function takes beyond what was there before."""

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_of_new_storage(function: Callable[[], object]) -> int:
    """Bytes of tensors made while `function` runs that were alive at one time, as far as PyTorch's operators show."""
    alive: dict[int, StorageWeakRef] = {}
    sizes: dict[int, int] = {}
    peak = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            result = func(*args, **(kwargs or {}))
            before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in before:
                    storage = tensor.untyped_storage()
                    alive[storage._cdata] = StorageWeakRef(storage)
                    sizes[storage._cdata] = storage.nbytes()
            for key in [key for key, reference in alive.items() if reference.expired()]:
                del alive[key]
            peak = max(peak, sum(sizes[key] for key in alive))
            return result

    with Count():
        function()
    return peak
