"""What an optimiser knows of parameters that a reset has changed."""

from typing import Any

import torch
from torch import Tensor

from .checks import check_type
from .matrices import storage_key
from .report import ResetReport

_ZERO = (
    "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg",
    "acc_delta",
)  # fmt: skip
_ONE = ("mu_product",)  # of NAdam
_PARAMETER = ("z",)  # of schedule-free optimisers: the sequence whose average is trained


@torch.no_grad()
def reset_state(optimizer: torch.optim.Optimizer, report: ResetReport) -> int:
    """Make an optimiser forget what it knows of the parameters that a reset has changed, and of no others.

    Their moments and step counts become those of a new optimiser, in place, so that schedulers, CUDA graphs and
    references to the optimiser stay valid. Known are the states of Adam, AdamW, Adamax, NAdam, RAdam, SGD, RMSprop,
    Adadelta, Muon and schedule-free optimisers, fused, foreach and capturable.

    Args:
        optimizer: of the network.
        report: what the reset has returned.

    Returns:
        How many parameters that were.

    Raises:
        ValueError: a state of an unknown kind, of which nothing has been changed then; or the optimiser has none of the
            changed parameters.
        TypeError: an argument of another type.
    """
    check_type("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
    check_type("report", report, ResetReport, "a fire.ResetReport")
    changed = {storage_key(tensor) for tensor in report.changed}
    found = [(p, group) for group in optimizer.param_groups for p in group["params"] if storage_key(p) in changed]
    if not found:
        raise ValueError(f"{type(optimizer).__name__} has none of the parameters that {report.method} has changed")
    for parameter, _ in found:
        for name in optimizer.state.get(parameter, {}):
            if name not in (*_ZERO, *_ONE, *_PARAMETER):
                raise ValueError(
                    f"{type(optimizer).__name__} keeps {name!r}, whose first value is not known; make a new optimiser"
                )
    for parameter, group in found:
        state = optimizer.state.get(parameter, {})
        for name, value in state.items():
            state[name] = _first(name, value, parameter, group)
    return len(found)


def _first(name: str, value: Any, parameter: Tensor, group: dict[str, Any]) -> Any:
    """The value that a new optimiser starts with; the same tensor where it is one."""
    if name == "momentum_buffer" and group.get("dampening"):
        return None  # with dampening a first gradient counts whole
    if not isinstance(value, Tensor):
        return value if value is None else type(value)(name in _ONE)
    return value.copy_(parameter) if name in _PARAMETER else value.fill_(name in _ONE)
