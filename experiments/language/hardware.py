"""What a device can do at most, for the share of it that a training uses."""

import re

import torch

from experiments.common.config import Runtime

# Dense operations a second in bf16 and fp16, by the makers' data sheets; the first name that fits counts.
PEAK_16_BIT = {
    "B200": 2250e12, "H200": 989e12, "GH200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "A10": 125e12,
}  # fmt: skip


def peak_rate(runtime: Runtime, name: str | None = None) -> float | None:
    """Operations a second of one device at its best, None where unknown (CPUs, other GPUs, float32).

    Args:
        runtime: device and precision.
        name: of the device; None asks PyTorch.
    """
    if runtime.device != "cuda" or runtime.precision == "fp32":
        return None
    name = name or torch.cuda.get_device_name()
    found = next((rate for part, rate in PEAK_16_BIT.items() if re.search(rf"\b{part}\b", name)), None)
    return found / 2 if found and runtime.precision == "tf32" else found
