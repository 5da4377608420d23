"""What a run will cost, measured on a few steps before it starts."""

import torch
from omegaconf import DictConfig

from experiments.common.config import Runtime
from experiments.common.throughput import steps_per_second
from experiments.language import protocol, sources, tokenizers

SECONDS = 10.0
LARGEST_TOKENS = 12_288  # in a pass; uncompiled, the scores of more would not fit everywhere that the training does


def describe_cost(cfg: DictConfig, runtime: Runtime, processes: int) -> str:
    """Hours, disk and download of a run with this configuration, in one line.

    A throwaway network trains on noise for about `SECONDS`, uncompiled; no generator of the run is touched.
    """
    tokens, rate = work(cfg), tokens_per_second(cfg, runtime) * processes
    corpora = [name for name in (*cfg.data.first, *cfg.data.second) if name in sources.NAMED]
    download = sum(sources.NAMED[name].megabytes for name in corpora)
    size = 12 * sum(p.numel() for p in protocol.build_model(cfg).parameters())
    hours = f"{'at most ' if cfg.checkpoint == protocol.BEST else ''}{tokens / rate / 3600:.1f} hours"
    return (
        f"estimated: {hours} here ({tokens / 1e9:.2f} billion tokens at {rate:,.0f} a second, "
        f"measured; torch.compile and a shared phase 0 make it less), up to {12 * size / 1e9:.0f} GB of checkpoints, "
        f"{download / 1000:.1f} GB of text"
    )


def work(cfg: DictConfig) -> float:
    """Tokens trained on in the whole run, at most where phase 0 stops at its best; validations add a few in a
    hundred."""
    before, after = cfg.budget.iterations
    if cfg.checkpoint != protocol.BEST:
        before = protocol.kept_at(cfg.checkpoint, before)
    return float(before + after) * cfg.budget.sequences * cfg.budget.block


def tokens_per_second(cfg: DictConfig, runtime: Runtime) -> float:
    """Training throughput of one process on this machine."""
    network = protocol.build_model(cfg).to(runtime.device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    block = cfg.budget.block
    size = min(cfg.budget.micro_batch, max(1, LARGEST_TOKENS // block))
    tokens = torch.randint(0, tokenizers.VOCABULARY[cfg.tokenizer], (size, block + 1), generator=generator)
    tokens = tokens.to(runtime.device)

    def step() -> None:
        with runtime.autocast:
            loss = network(tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        float(loss.detach())  # waits for the device

    return size * block * steps_per_second(step, SECONDS)
