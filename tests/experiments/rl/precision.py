"""How far a faster way to compute may be from the plain one: both are measured against float64."""

from collections.abc import Mapping

import torch
from torch import Tensor

# The order of sums, and with it the last bits, is another in compiled code; a fault of any kind is far beyond this.
FACTOR = 10
FLOOR = 1e-6  # of a tensor's largest entry: what rounding to float32 may cost in any case

State = Mapping[str, Tensor]


def distances(state: State, exact: State) -> dict[str, float]:
    """The largest difference in each tensor, as a share of the largest entry there."""
    return {
        name: ((state[name].detach().cpu().double() - value).abs().max() / value.abs().max().clamp(min=1e-30)).item()
        for name, value in ((name, value.detach().cpu().double()) for name, value in exact.items())
    }


def check(fast: State, plain: State, exact: State, when: str) -> None:
    """AssertionError if `fast` is not about as near to `exact`, which is in float64, as `plain` is.

    An error grows where it is carried on, so the worst tensor of the plain way sets the limit for all.
    """
    of_fast, of_plain, apart = distances(fast, exact), distances(plain, exact), distances(fast, plain)
    limit = FACTOR * max(of_plain.values()) + FLOOR
    told = "\n".join(
        f"{name}: fast to float64 {of_fast[name]:.2e}, plain to float64 {of_plain[name]:.2e}, apart {apart[name]:.2e}"
        for name in exact
    )
    tensors = f"float32 matrix products: {torch.get_float32_matmul_precision()}"
    assert max(of_fast.values()) <= limit, f"{when}: beyond {limit:.2e}; {tensors}\n{told}"
