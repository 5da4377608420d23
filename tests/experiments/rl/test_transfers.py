"""Parcels between the CPU and a device."""

import numpy as np
import pytest
import torch

from experiments.rl import transfers
from experiments.rl.transfers import Field, Parcel

FIELDS: dict[str, Field] = {  # sizes that no alignment divides
    "flags": ((3,), torch.bool), "numbers": ((2, 2), torch.int64), "picture": ((1, 5, 7), torch.uint8),
    "noise": ((4,), torch.float32), "exact": ((2,), torch.float64),
}  # fmt: skip


def test_every_field_arrives_with_one_copy(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parcel, copies, original = Parcel(FIELDS, device), [], transfers.copy
    monkeypatch.setattr(transfers, "copy", lambda there, here: (copies.append(here), original(there, here)))
    addresses = {name: tensor.data_ptr() for name, tensor in parcel.there.items()}
    rng = np.random.default_rng(0)
    for turn in range(1, 4):
        here = parcel.open()
        for array in here.values():
            array[...] = rng.integers(0, 2, array.shape) * turn
        sent = {name: torch.from_numpy(array.copy()) for name, array in here.items()}
        parcel.send()
        assert len(copies) == turn
        for array in parcel.open().values():  # what is written now is of the next parcel
            array[...] = 0
        for name, tensor in parcel.there.items():
            assert tensor.dtype == FIELDS[name][1]
            assert torch.equal(tensor.cpu(), sent[name])
    assert addresses == {name: tensor.data_ptr() for name, tensor in parcel.there.items()}
