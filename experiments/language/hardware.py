"""What a device can do at most, for the share of it that a training uses, and which attention is fastest there."""

import re
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.common.runtime import Runtime

# Dense operations a second in bf16 and fp16, by the makers' data sheets; the first name that fits counts.
PEAK_16_BIT = {
    "B200": 2250e12, "H200": 989e12, "GH200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "A10": 125e12,
}  # fmt: skip


def peak_rate(runtime: Runtime, name: str | None = None) -> float | None:
    """Operations a second of one device at its best, None where unknown (CPUs, other GPUs, float32). The device is that
    called `name`; None asks PyTorch."""
    if runtime.device != "cuda" or runtime.precision == "fp32":
        return None
    name = name or torch.cuda.get_device_name()
    found = next((rate for part, rate in PEAK_16_BIT.items() if re.search(rf"\b{part}\b", name)), None)
    return found / 2 if found and runtime.precision == "tf32" else found


# In order: the first one that can compute a call does.
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
]  # fmt: skip


def preferred_attention(device: str, length: int) -> AbstractContextManager[object]:
    """Context of a forward pass over sequences of `length`, in which Hopper GPUs compute attention by cuDNN.

    For training there it is 1.7 to 2.3 times as fast as FlashAttention 2, by others' measurements. PyTorch puts it
    first by itself where cuDNN is newer than 9.15.0; older ones are wrong for lengths that 128 does not divide.
    """
    if device != "cuda" or length % 128 or torch.cuda.get_device_capability()[0] != 9:
        return nullcontext()
    return sdpa_kernel(CUDNN_FIRST, set_priority=True)
