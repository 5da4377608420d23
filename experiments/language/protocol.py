"""What a run of the language domain is: its values checked, its corpora, network and identity, and its schedule.

Phase 0 keeps its `best` checkpoint and one at every tenth thousand of the paper's iterations, in proportion at other
scales; `checkpoint` says which of them the methods branch from.
"""

import logging
import math
import shlex
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.common import config
from experiments.common.errors import UserError
from experiments.common.fetch import default_data_dir
from experiments.common.job import Job
from experiments.language import corpora, model, tokenizers
from experiments.language.best import BEST
from experiments.language.corpora import Corpus

logger = logging.getLogger("fire")

# To be raised by whoever changes what a phase computes: it enters the identity of runs and of the shared phase.
PHASE_VERSION = 1
PHASE_0_IGNORES = ("method", "optimizer_at_boundary", "sharpness", "checkpoint")
PAPER_ITERATIONS = 97_282  # of phase 0, whose checkpoints 30k and 60k the paper branches from
PERIODIC = [f"{thousands}k" for thousands in range(10, 100, 10)]


def check(cfg: DictConfig) -> None:
    """Raise UserError for values that cannot be trained with."""
    config.check_choices(cfg)
    if any(OmegaConf.is_missing(cfg.data, key) or not cfg.data[key] for key in ("first", "second")):
        raise UserError(f"data={cfg.data.name} needs data.first=[...] and data.second=[...], corpora or files")
    if cfg.tokenizer not in tokenizers.NAMES:
        raise UserError(f"tokenizer={cfg.tokenizer} is unknown; valid: {', '.join(tokenizers.NAMES)}")
    if cfg.checkpoint not in (BEST, *PERIODIC):
        raise UserError(f"checkpoint={cfg.checkpoint} does not exist; phase 0 keeps {BEST}, {', '.join(PERIODIC)}")
    budget = cfg.budget
    for key in ("layers", "heads", "width", "block", "sequences", "micro_batch", "eval_windows", "log_every"):
        if not 1 <= budget[key] <= 1e9:
            raise UserError(f"budget.{key}={budget[key]} must be positive")
    for key in ("iterations", "eval_every"):
        if len(budget[key]) != 2 or min(budget[key]) < 1:
            raise UserError(f"budget.{key}={list(budget[key])} must be 2 positive numbers, one for each phase")
    if budget.width % budget.heads:
        raise UserError(f"budget.width={budget.width} is not a multiple of budget.heads={budget.heads}")
    if budget.first_tokens is not None and budget.first_tokens < 1:
        raise UserError(f"budget.first_tokens={budget.first_tokens} must be positive")
    for name, value in (
        ("budget.learning_rate", budget.learning_rate),
        ("optimizer.clip_norm", cfg.optimizer.clip_norm),
    ):
        if not value > 0:
            raise UserError(f"{name}={value} must be positive")
    if not 0 <= cfg.data.replay <= 1:
        raise UserError(f"data.replay={cfg.data.replay} must lie in [0, 1]")
    if not 0 < cfg.patience <= 1:
        raise UserError(f"patience={cfg.patience} must lie in (0, 1]")
    betas, decay = list(cfg.optimizer.betas), cfg.optimizer.weight_decay
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optimizer.betas={betas} must be two numbers in [0, 1)")
    for name, value in (("weight_decay", decay), ("warmup_limit", cfg.optimizer.warmup_limit)):
        if not value >= 0:
            raise UserError(f"optimizer.{name}={value} must not be negative")
    if not 0 <= cfg.optimizer.warmup_fraction <= 1:
        raise UserError(f"optimizer.warmup_fraction={cfg.optimizer.warmup_fraction} must lie in [0, 1]")


def check_split(cfg: DictConfig, processes: int) -> None:
    """Raise UserError unless an iteration divides evenly into forward passes and processes, or with CUDA graphs, whose
    memory the next pass would overwrite, into one pass a process."""
    budget = cfg.budget
    if budget.sequences % (budget.micro_batch * processes):
        raise UserError(
            f"budget.sequences={budget.sequences} is not a multiple of budget.micro_batch={budget.micro_batch}"
            + (f" times {processes} processes" if processes > 1 else "")
        )
    if cfg.compile.lower() == "graphs" and budget.sequences > budget.micro_batch * processes:
        raise UserError("compile=graphs does not accumulate gradients; use compile=true or a larger budget.micro_batch")


def load_corpora(cfg: DictConfig) -> tuple[Corpus, Corpus]:
    """First and second corpus of a run."""
    settings = {"tokenizer": cfg.tokenizer, "data_dir": config.data_folder(cfg), "block": cfg.budget.block}
    settings |= {"command": prepare_command(cfg), "column": cfg.data.text_column}
    first = corpora.load(list(cfg.data.first), first_tokens=cfg.budget.first_tokens, **settings)
    return first, corpora.load(list(cfg.data.second), **settings)


def prepare_command(cfg: DictConfig) -> str:
    """What makes the token files that a configuration needs."""
    data = cfg.data
    words = [f"data={data.name}", f"tokenizer={cfg.tokenizer}"]
    named: Any = OmegaConf.load(config.CONFIGS / "language" / "data" / f"{data.name}.yaml")
    for key in ("first", "second"):
        if OmegaConf.is_missing(named, key) or list(data[key]) != list(named[key]):
            words.append(shlex.quote(f"data.{key}=[{','.join(data[key])}]"))
    words += [f"data.text_column={data.text_column}"] if data.text_column != "text" else []
    words += [shlex.quote(f"data_dir={cfg.data_dir}")] if config.data_folder(cfg) != default_data_dir() else []
    return f"python -m scripts.prepare_data language {' '.join(words)}"


def describe(cfg: DictConfig, runtime: config.Runtime, first: Corpus, second: Corpus, processes: int) -> Job:
    """Name and identity of a run, and what of it phase 0 depends on."""
    identity = config.identity_values(cfg, runtime, PHASE_VERSION)
    identity["data"] = {"first": first.identity, "second": second.identity, "replay": cfg.data.replay}
    identity["processes"] = processes
    shared = {key: value for key, value in identity.items() if key not in PHASE_0_IGNORES}
    shared["model"] = {"name": cfg.model.name, "fused": identity["model"]["scope"]["fused"]}
    shared["data"] = {"first": first.identity}
    budget = identity["budget"]
    shared["budget"] = {**budget, "iterations": budget["iterations"][0], "eval_every": budget["eval_every"][0]}
    group, name = f"{cfg.data.name}-{cfg.checkpoint}-{cfg.scale}", f"{cfg.method.name}-s{cfg.seed}"
    return Job("language", group, name, cfg, identity, shared)


def announce(cfg: DictConfig, runtime: config.Runtime, processes: int, first: Corpus) -> None:
    """The first line: what runs, at which scale, and how to run the paper's."""
    budget = cfg.budget
    logger.info(
        "language %s from %s, %s seed=%d, scale=%s: %d layers of width %d, first corpus of %s tokens, %s a "
        "step, %s on %s%s.%s",
        cfg.data.name, cfg.checkpoint, config.method_words(cfg), cfg.seed, cfg.scale, budget.layers, budget.width,
        f"{sum(map(len, first.train)):,}", f"{budget.sequences * budget.block:,}", runtime.precision, runtime.device,
        f" x {processes}" if processes > 1 else "",
        "" if cfg.scale == "paper" else " The paper's protocol: python -m experiments.language "
        f"checkpoint={cfg.checkpoint} {config.method_words(cfg)} scale=paper",
    )  # fmt: skip


def kept_at(checkpoint: str, iterations: int) -> int:
    """The iteration of phase 0 after which a periodic checkpoint is kept."""
    return max(1, round(int(checkpoint[:-1]) * 1000 / PAPER_ITERATIONS * iterations))


def learning_rate(iteration: int, iterations: int, cfg: DictConfig) -> float:
    """Linear warm-up, then a cosine to a tenth of the highest rate at the end of the phase."""
    highest = cfg.budget.learning_rate
    warmup = min(cfg.optimizer.warmup_fraction * iterations, cfg.optimizer.warmup_limit)
    if iteration < warmup:
        return highest * (iteration + 1) / (warmup + 1)
    cosine = 0.5 * (1 + math.cos(math.pi * (iteration - warmup) / max(iterations - warmup, 1)))
    return highest * (0.1 + 0.9 * cosine)


def build_model(cfg: DictConfig) -> model.GPT:
    """The network of a configuration, with its initial weights, on the CPU."""
    budget, vocabulary = cfg.budget, model.padded(tokenizers.VOCABULARY[cfg.tokenizer])
    return model.build(budget.layers, budget.heads, budget.width, budget.block, vocabulary, cfg.seed)
