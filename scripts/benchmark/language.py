"""Tokens a second of the language experiment against a plain loop.

The plain loop is what nanoGPT's readers write: the same network with PyTorch's attention, random windows stacked from
the mapped token file, AdamW, gradient clipping, `loss.item()` for the log.
"""

from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.common.config import compose_domain
from experiments.common.runtime import resolve_runtime
from experiments.language import model
from experiments.language.config import LanguageConfig
from experiments.language.distributed import ProcessGroup
from experiments.language.domain import load_corpora
from experiments.language.train import LanguageTraining
from scripts.benchmark.cases import Case, Loop, repeated

SCALES = {"cpu": ["scale=laptop"], "cuda": ["scale=workstation", "data=wikitext2_imdb", "budget.first_tokens=null"]}
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("bf16",)}
ITERATIONS = 10  # in a turn


def cases(device: str, synthetic: bool) -> list[Case]:
    """Both loops in every precision."""
    found = []
    for precision in PRECISIONS[device]:
        settings = [*SCALES[device], f"device={device}", f"precision={precision}"]
        cfg = compose_domain("language", LanguageConfig, settings)
        name = f"training, {cfg.budget.layers} layers of width {cfg.budget.width}, {precision}"
        found.append(Case(name, {"ours": partial(ours, cfg), "plain": partial(plain, cfg)}, "tokens"))
    return found


def ours(cfg: DictConfig, _: ExitStack) -> Loop:
    """Iterations as `python -m experiments.language` trains them."""
    runtime = resolve_runtime(cfg)
    training = LanguageTraining(cfg, runtime, fire.build("none"), *load_corpora(cfg), ProcessGroup(runtime.device))
    return repeated(training.train_iteration, ITERATIONS, cfg.budget.sequences * cfg.budget.block)


def plain(cfg: DictConfig, _: ExitStack) -> Loop:
    """Iterations as one writes them first."""
    runtime, budget = resolve_runtime(cfg), cfg.budget
    (tokens,) = load_corpora(cfg)[0].train
    network = model.build(cfg)
    for module in network.modules():
        if isinstance(module, model.Attention):  # PyTorch's is slow on CPUs in half precision, which ours avoids
            module.attend = partial(F.scaled_dot_product_attention, is_causal=True)  # type: ignore[method-assign]
    network = network.to(runtime.device)
    called = runtime.compiled(network)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=runtime.device == "cuda"
    )

    def batch() -> Tensor:
        starts = torch.randint(len(tokens) - budget.block - 1, (budget.micro_batch,)).tolist()
        windows = torch.stack([torch.from_numpy(tokens[i : i + budget.block + 1].astype(np.int64)) for i in starts])
        return windows.pin_memory().to("cuda", non_blocking=True) if runtime.device == "cuda" else windows

    def iteration() -> None:
        accumulate = budget.sequences // budget.micro_batch
        for _ in range(accumulate):
            with runtime.autocast:
                loss = called(batch()) / accumulate
            loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return repeated(iteration, ITERATIONS, budget.sequences * budget.block)
