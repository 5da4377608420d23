"""The statistics of observations that SimBa normalises them with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.rl.transfers import Parcel, copy


class Normaliser:
    """Running mean and variance of observations (Welford), with which networks see them.

    Attributes:
        mean, variance: (observation,) float64 on the CPU; count: observations seen.
        shift, scale: the same as the networks use them, float32 on the device, always in one place.
    """

    def __init__(self, size: int, device: str) -> None:
        self.mean, self.variance = torch.zeros(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64)
        self.count = 1e-4  # as if little had been seen
        self.shift, self.scale = torch.zeros(size, device=device), torch.ones(size, device=device)
        self._parcel: Parcel | None = None

    def travel_in(self, parcel: Parcel) -> None:
        """From here on what the networks use comes with `parcel`, in its fields `shift` and `scale`."""
        self._parcel = parcel
        self.shift, self.scale = parcel.there["shift"], parcel.there["scale"]
        self._copy()

    def update(self, observation: Tensor) -> None:
        """Take in one observation, (observation,). Where a parcel carries it, it counts when that has been sent."""
        # By NumPy, which is quicker with so few numbers.
        mean, variance, total = self.mean.numpy(), self.variance.numpy(), self.count + 1
        difference = observation.numpy().astype(np.float64) - mean
        mean += difference / total
        variance[:] = (variance * self.count + difference * difference * (self.count / total)) / total
        self.count = total
        if self._parcel is None:
            self._copy()
        else:
            self._pack(self._parcel)

    def _copy(self) -> None:
        if self._parcel is not None:
            self._pack(self._parcel)
        copy(self.shift, self.mean)
        copy(self.scale, (self.variance + 1e-8).rsqrt())

    def _pack(self, parcel: Parcel) -> None:
        here = parcel.open()
        here["shift"][:], here["scale"][:] = self.mean.numpy(), 1 / np.sqrt(self.variance.numpy() + 1e-8)

    def __call__(self, observations: Tensor) -> Tensor:
        """Centred and of unit variance."""
        return (observations - self.shift) * self.scale

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "variance": self.variance, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.variance, self.count = state["mean"].clone(), state["variance"].clone(), state["count"]
        self._copy()
