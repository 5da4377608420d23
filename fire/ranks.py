"""Several processes that train one network: all of them must change it, in the same way."""

import warnings
from collections.abc import Sequence
from datetime import timedelta

from torch import distributed, nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(seconds=10)  # before a warning; ranks may be busy with an evaluation


def await_ranks(model: nn.Module) -> None:
    """Wait until all ranks of a DistributedDataParallel model are here; nothing for another model.

    A rank that changes its copy alone trains another network from then on, and nothing in PyTorch notices.

    Raises:
        RuntimeError: some have not come within the timeout of `init_process_group`.
    """
    while hasattr(model, "_orig_mod"):
        model = model._orig_mod  # type: ignore[assignment]
    if not isinstance(model, DistributedDataParallel):
        return
    group = model.process_group
    ranks = distributed.get_process_group_ranks(group)
    default = _get_default_store()
    store = distributed.PrefixStore(f"fire/{group.group_name}", default)
    call = store.add(f"calls/{distributed.get_rank()}", 1)
    keys = {rank: f"{call}/{rank}" for rank in ranks}
    store.set(keys[distributed.get_rank()], "here")
    if missing := _missing(store, keys, PATIENCE):
        warnings.warn(f"rank {distributed.get_rank()} waits in a reset for {_words(missing)}: {_ADVICE}", stacklevel=4)
        if missing := _missing(store, keys, default.timeout):  # type: ignore[attr-defined]
            store.delete_key(keys[distributed.get_rank()])  # so that no later call of theirs meets this one
            raise RuntimeError(f"{_words(missing)} did not come to the reset, and nothing has changed: {_ADVICE}")


_ADVICE = "each rank must make it, or they train different networks"


def _missing(store: distributed.Store, keys: dict[int, str], patience: timedelta) -> list[int]:
    """The ranks that have not come, after at most that time."""
    try:
        store.wait(list(keys.values()), patience)
    except RuntimeError:  # the time is over
        return [rank for rank, key in keys.items() if not store.check([key])]
    return []


def _words(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
