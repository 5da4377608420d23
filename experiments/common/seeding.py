"""Random numbers: independent streams from one seed, and the state of every generator for checkpoints."""

import random
from typing import Any

import numpy as np
import torch

# One stream per use, so that drawing more in one never shifts another. A stream is always used with the same number of
# position numbers: SeedSequence pads with zeros, so (seed, stream) and (seed, stream, 0) would be equal.
STREAMS = {
    "subset": 1, "order": 2, "sharpness": 3, "training": 4, "environment": 5, "exploration": 6, "replay": 7,
    "evaluation": 8, "probe": 9, "classes": 10, "method": 11, "sticky": 12,
}  # fmt: skip


def derive(seed: int, stream: str, *position: int) -> int:
    """A 63-bit seed for `stream` at `position` (phase, epoch, ...): the same on every machine, whatever ran before."""
    words = np.random.SeedSequence((seed, STREAMS[stream], *position)).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def generator(seed: int, stream: str, *position: int) -> torch.Generator:
    """A CPU generator for `stream` at `position`; drawn on the CPU so that every device sees the same numbers."""
    return torch.Generator().manual_seed(derive(seed, stream, *position))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch."""
    value = derive(seed, "training")
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - libraries draw from the global state
    torch.manual_seed(value)


def rng_state() -> dict[str, Any]:
    """The state of all global generators, in types `torch.load(weights_only=True)` accepts."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    words_numpy = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, words_numpy, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned; CUDA's only where the number of devices is the same."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
