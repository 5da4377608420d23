"""How the numbers of a run are computed: device, precision, compilation, threads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from experiments.common.errors import UserError

DEFAULT_THREADS = torch.get_num_threads()  # read before a job of a sweep changes it


@dataclass(frozen=True)
class Runtime:
    """Part of a run's identity.

    Attributes:
        device: cpu or cuda.
        precision: of the training; fp32, tf32, or autocast to bf16 or fp16, which needs loss scaling.
        compile: false, true (torch.compile), or graphs: CUDA graphs. Language takes those that torch.compile makes; in
            the other domains one graph is a whole step, in vision with its network compiled.
        threads: of PyTorch on the CPU; 0 on CUDA, where it changes nothing.
    """

    device: str
    precision: str
    compile: str
    threads: int

    def compiled(self, model: nn.Module) -> Callable[..., Any]:
        """`model` as it is to be called in training."""
        if self.compile == "false":
            return model
        return torch.compile(model, mode="reduce-overhead" if self.compile == "graphs" else None)

    @property
    def autocast(self) -> torch.autocast:
        """Context of the forward pass.

        Within a context PyTorch keeps the weights it has cast. A captured graph must cast them again whenever it is
        replayed, so nothing is kept where graphs are captured.
        """
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        enabled, kept = self.precision in ("bf16", "fp16"), self.compile != "graphs"
        return torch.autocast(self.device, dtype=dtype, enabled=enabled, cache_enabled=kept)


def resolve_runtime(cfg: DictConfig, compile_on_cuda: str = "true") -> Runtime:
    """Choose the device and set PyTorch up for it; `compile_on_cuda` is what compile=auto means there.

    Raises:
        UserError: a device or precision this machine does not have.
    """
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but PyTorch sees no CUDA device here; use device=cpu or device=auto")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    if cfg.precision in ("tf32", "fp16") and device != "cuda":
        raise UserError(f"precision={cfg.precision} needs CUDA; use fp32 or bf16 on the CPU")
    torch.set_num_threads(cfg.threads or DEFAULT_THREADS)
    torch.set_float32_matmul_precision("high" if cfg.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = cfg.precision == "tf32"
    compiled = cfg.compile.lower()
    if compiled == "auto":
        compiled = compile_on_cuda if device == "cuda" else "false"
    if compiled == "graphs" and device != "cuda":
        raise UserError("compile=graphs needs CUDA; use true or false on the CPU")
    return Runtime(device, cfg.precision, compiled, torch.get_num_threads() if device == "cpu" else 0)
