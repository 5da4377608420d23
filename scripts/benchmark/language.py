"""Tokens a second of the language experiment against a plain loop, and what FIRE costs beside a step of training.

The plain loop is what nanoGPT's readers write: the same network, random windows stacked from the mapped token file,
AdamW, gradient clipping, `loss.item()` for the log; its validation is the mean of 200 random batches of training text
and as many of validation text.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.common import config
from experiments.common.distributed import Team
from experiments.common.errors import StopSignals
from experiments.common.progress import Progress
from experiments.common.workspace import Workspace
from experiments.language import corpora, model, protocol, train
from experiments.language.config import LanguageConfig
from experiments.language.hardware import peak_rate
from experiments.language.prepare import prepare
from scripts.benchmark.timing import alternate, ratio, seconds

CORPUS = "wikitext2"
SCALES = {"cpu": ["scale=laptop"], "cuda": ["scale=workstation", "data=wikitext2_imdb", "budget.first_tokens=null"]}
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("bf16",)}
ITERATIONS = 10  # in a turn
VALIDATED = 100  # iterations to one validation
PLAIN_BATCHES = 200  # of each split in a plain validation
PAPER_TOKENS, PAPER_BLOCK = 491_520, 1024
SHARE = {"cpu": 1, "cuda": 30}  # sequences in the forward pass that stands for the paper's iteration


class PlainAttention(model.Attention):
    """Without the way round PyTorch's slow kernel for half precision on the CPU."""

    @staticmethod
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class PlainLoop:
    """The loop as one writes it first."""

    def __init__(self, cfg: DictConfig, runtime: config.Runtime, corpus: corpora.Corpus) -> None:
        self.cfg, self.runtime, self.corpus = cfg, runtime, corpus
        network = protocol.build_model(cfg)
        for block in network.h:
            block.attn = PlainAttention(cfg.budget.width, cfg.budget.heads)
        self.model = network.to(runtime.device)
        self.called = runtime.compiled(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=runtime.device == "cuda"
        )

    def batch(self, tokens: np.ndarray) -> Tensor:
        """Random windows."""
        budget = self.cfg.budget
        starts = torch.randint(len(tokens) - budget.block - 1, (budget.micro_batch,))
        windows = [torch.from_numpy(tokens[i : i + budget.block + 1].astype(np.int64)) for i in starts.tolist()]
        batch = torch.stack(windows)
        if self.runtime.device == "cuda":
            return batch.pin_memory().to("cuda", non_blocking=True)
        return batch

    def train(self, iterations: int) -> None:
        """Some iterations."""
        accumulate = self.cfg.budget.sequences // self.cfg.budget.micro_batch
        for _ in range(iterations):
            for _ in range(accumulate):
                with self.runtime.autocast:
                    loss = self.called(self.batch(self.corpus.train[0])) / accumulate
                loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            loss.item()

    @torch.no_grad()
    def validate(self) -> None:
        """Mean losses of random batches."""
        for tokens in (self.corpus.train[0], self.corpus.val[0]):
            for _ in range(PLAIN_BATCHES):
                with self.runtime.autocast:
                    self.called(self.batch(tokens)).item()

    def whole(self) -> None:
        """Iterations to one validation, and that."""
        self.train(VALIDATED)
        self.validate()


@contextmanager
def ours(cfg: DictConfig, runtime: config.Runtime, corpus: corpora.Corpus) -> Iterator[Callable[[int, bool], None]]:
    """A function that trains as `python -m experiments.language` does, with a validation at the end or without."""
    training = train.LanguageTraining(cfg, runtime, config.build_method(cfg), corpus, corpus, Team(runtime.device))
    job = protocol.describe(cfg, runtime, corpus, corpus, 1)
    with StopSignals() as stop, Workspace(Path(cfg.outputs_dir), job.identity, cfg, stop=stop) as workspace:
        workspace.resume()
        with Progress("benchmark", 1, 0, "tokens") as progress:

            def iterations(count: int, validated: bool) -> None:
                for number in range(1, count + 1):
                    training.train_iteration()
                    cfg.budget.eval_every = [training.iteration if validated and number == count else 10**9] * 2
                    training.finish_iteration(workspace, progress)

            yield iterations


def run(device: str, repeats: int) -> pd.DataFrame:
    """Times of both loops in every precision, and of `fire_` beside an iteration of the paper's."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        contestants: dict[str, Callable[[], object]] = {}
        tokens: dict[str, int] = {}
        for precision in PRECISIONS[device]:
            overrides = [
                *SCALES[device],
                f"device={device}",
                f"precision={precision}",
                f"outputs_dir={scratch}/{precision}",
            ]
            cfg = config.compose_domain("language", LanguageConfig, overrides)
            cfg.budget.iterations = [10**7, 1]  # of which no checkpoint is reached here
            runtime = config.resolve_runtime(cfg)
            folder = config.data_folder(cfg)
            prepare(CORPUS, cfg.tokenizer, folder, "text", workers=2)
            corpus = corpora.load([CORPUS], cfg.tokenizer, folder, cfg.budget.block, "", cfg.budget.first_tokens)
            plain = PlainLoop(cfg, runtime, corpus)
            iterations = stack.enter_context(ours(cfg, runtime, corpus))
            size = f"{cfg.budget.layers} layers of width {cfg.budget.width}, {precision}"
            contestants |= {
                f"training, {size}; plain": partial(plain.train, ITERATIONS),
                f"training, {size}; ours": partial(iterations, ITERATIONS, False),
                f"with validation, {size}; plain": plain.whole,
                f"with validation, {size}; ours": partial(iterations, VALIDATED, True),
            }
            step = cfg.budget.sequences * cfg.budget.block
            tokens |= {name: step * (ITERATIONS if name.startswith("training") else VALIDATED) for name in contestants}
        times = alternate(contestants, repeats, device)
        per_token = plain.model.operations_per_token()
        peak = peak_rate(runtime)
    return pd.concat([_table(times, tokens, per_token, peak), reset_beside_a_step(device, repeats)], ignore_index=True)


def _table(times: dict[str, list[float]], tokens: dict[str, int], per_token: float, peak: float | None) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for name, values in times.items():
        case, _, loop = name.partition("; ")
        rate = tokens[name] / statistics.median(values)
        rows.append(
            {
                "case": case,
                "loop": loop,
                "seconds": statistics.median(values),
                "tokens_per_second": rate,
                "mfu": per_token * rate / peak if peak else None,
                "over_ours": ratio(values, times[f"{case}; ours"]),
                "repeats": len(values),
            }
        )
    return pd.DataFrame(rows)


def reset_beside_a_step(device: str, repeats: int) -> pd.DataFrame:
    """`fire_` on GPT-0.1B, as published, and one iteration of 491,520 tokens, from one forward and backward pass of
    a part of them and one step of AdamW."""
    network = model.build(12, 12, 768, PAPER_BLOCK, 50304, seed=0).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    share = SHARE[device]
    batch = torch.randint(50257, (share, PAPER_BLOCK + 1), device=device)
    precision = "bf16" if device == "cuda" else "fp32"
    runtime = config.Runtime(device, precision, "true" if device == "cuda" else "false", 0)
    called = runtime.compiled(network)

    def part() -> None:
        with runtime.autocast:
            loss = called(batch)
        loss.backward()

    part()
    contestants = {"fire_": lambda: fire.fire_(network, steps=5, fused={"*.c_attn": [768] * 3}), "part": part}
    times = alternate(contestants, min(repeats, 3), device)
    step = statistics.median(seconds(optimizer.step, device) for _ in range(3))
    whole = [part * PAPER_TOKENS / (share * PAPER_BLOCK) + step for part in times["part"]]
    case = f"GPT-0.1B, {precision}"
    rows = [
        {"case": case, "loop": "one iteration of 491,520 tokens, extrapolated", "seconds": statistics.median(whole)},
        {"case": case, "loop": "fire_, 5 steps", "seconds": statistics.median(times["fire_"])},
    ]
    rows[0]["over_ours"], rows[1]["over_ours"] = ratio(whole, times["fire_"]), 1.0
    return pd.DataFrame(rows).assign(repeats=len(whole))


def table(results: pd.DataFrame) -> str:
    """Markdown: a row for each loop."""
    columns = {
        "": results.case.where(~results.case.duplicated(), ""),
        "loop": results.loop,
        "seconds": results.seconds.map("{:,.2f}".format),
        "tokens / s": results.tokens_per_second.map("{:,.0f}".format).where(results.tokens_per_second.notna(), ""),
        "this / ours": results.over_ours.map("{:.2f}".format),
    }
    if results.mfu.notna().any():
        columns["MFU"] = results.mfu.map("{:.0%}".format).where(results.mfu.notna(), "")
    return pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True)
