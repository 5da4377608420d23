"""Tokens a second of the language experiment against a plain loop, and what FIRE costs beside a step of training.

The plain loop is what nanoGPT's readers write: the same network, random windows stacked from the mapped token file,
AdamW, gradient clipping, `loss.item()` for the log; its validation is the mean of 200 random batches of training text
and as many of validation text.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from experiments.common.distributed import Team
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.common import config
from experiments.common.errors import StopSignals
from experiments.common.progress import Progress
from experiments.common.workspace import Workspace
from experiments.language import corpora, model, protocol, train
from experiments.language.config import LanguageConfig
from experiments.language.hardware import peak_rate
from experiments.language.prepare import prepare
from scripts.benchmark.plan import Case, Options
from scripts.benchmark.timing import Limit, alternate, between, known, ratio, seconds, spread

CORPUS = "wikitext2"
SCALES = {"cpu": ["scale=laptop"], "cuda": ["scale=workstation", "data=wikitext2_imdb", "budget.first_tokens=null"]}
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("bf16",)}
ITERATIONS = 10  # in a turn
VALIDATED = {"cpu": 100, "cuda": 20}  # iterations to one validation
PLAIN_BATCHES = 200  # of each split in a plain validation
PAPER_TOKENS, PAPER_BLOCK = 491_520, 1024
SHARE = {"cpu": 1, "cuda": 30}  # sequences in the forward pass that stands for the paper's iteration
STEP_PRECISION = {"cpu": "fp32", "cuda": "bf16"}
ITERATION, FIRE = "one iteration of 491,520 tokens, extrapolated", "fire_, 5 steps"
# Seconds until the first turn, and of a turn: training, with a validation, `fire_`. CUDA: as on an H200, with 24 s of
# compiling for each loop, which the last case finds done.
EXPECTED = {"cpu": ((12.0, 4.0), (70.0, 60.0), (60.0, 11.0)), "cuda": ((55.0, 5.0), (18.0, 18.0), (14.0, 0.3))}


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

    def whole(self, iterations: int) -> None:
        """Some iterations and a validation."""
        self.train(iterations)
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


class Pair:
    """Both loops in one precision, made when they are first asked for and shared by the cases."""

    def __init__(self, options: Options, precision: str) -> None:
        self.stack = options.stack
        scratch = self.stack.enter_context(tempfile.TemporaryDirectory())
        settings = [f"device={options.device}", f"precision={precision}", f"outputs_dir={scratch}/run"]
        self.cfg = config.compose_domain("language", LanguageConfig, [*SCALES[options.device], *settings])
        self.cfg.budget.iterations = [10**7, 1]  # of which no checkpoint is reached here
        self.setting = f"{self.cfg.budget.layers} layers of width {self.cfg.budget.width}, {precision}"

    @cached_property
    def runtime(self) -> config.Runtime:
        """How both compute."""
        return config.resolve_runtime(self.cfg)

    @cached_property
    def corpus(self) -> corpora.Corpus:
        """What both read."""
        folder, budget = config.data_folder(self.cfg), self.cfg.budget
        prepare(CORPUS, self.cfg.tokenizer, folder, "text", workers=2)
        return corpora.load([CORPUS], self.cfg.tokenizer, folder, budget.block, "", budget.first_tokens)

    @cached_property
    def plain(self) -> PlainLoop:
        """The loop as one writes it first."""
        return PlainLoop(self.cfg, self.runtime, self.corpus)

    @cached_property
    def ours(self) -> Callable[[int, bool], None]:
        """This project's."""
        return self.stack.enter_context(ours(self.cfg, self.runtime, self.corpus))

    def measure(self, iterations: int, validated: bool, loops: Sequence[str], limit: Limit) -> pd.DataFrame:
        """Tokens a second of some iterations, with a validation after them or without."""
        contestants: dict[str, Callable[[], object]] = {}
        if "plain" in loops:
            contestants["plain"] = partial(self.plain.whole if validated else self.plain.train, iterations)
        contestants["ours"] = partial(self.ours, iterations, validated)
        times = alternate(contestants, limit, self.runtime.device)
        tokens = iterations * self.cfg.budget.sequences * self.cfg.budget.block
        peak = peak_rate(self.runtime)
        rows: list[dict[str, Any]] = []
        for name, values in times.items():
            rate = tokens / statistics.median(values)
            mfu = protocol.build_model(self.cfg).operations_per_token() * rate / peak if peak else None
            over_ours = ratio(values, times["ours"])
            row = {"case": limit.case, "loop": name, **spread(values), "tokens_per_second": rate, "mfu": mfu}
            rows.append({**row, "over_ours": over_ours})
        return pd.DataFrame(rows)


def cases(options: Options) -> list[Case]:
    """Both loops in every precision, and `fire_` beside an iteration of the paper's."""
    device, found = options.device, []
    for precision in PRECISIONS[device]:
        pair, count = Pair(options, precision), VALIDATED[device]
        names = (f"training, {pair.setting}", f"a validation every {count} iterations, {pair.setting}")
        for name, iterations, validated in zip(names, (ITERATIONS, count), (False, True), strict=True):
            run = partial(pair.measure, iterations, validated)
            expected = EXPECTED[device][validated]
            found.append(Case(name, ("plain", "ours"), "ours", run, *expected, extra=validated))
    step = f"GPT-0.1B, {STEP_PRECISION[device]}"
    beside = partial(reset_beside_a_step, device, step)
    return [*found, Case(step, (FIRE, ITERATION), FIRE, beside, *EXPECTED[device][2])]


def reset_beside_a_step(device: str, case: str, loops: Sequence[str], limit: Limit) -> pd.DataFrame:
    """`fire_` on GPT-0.1B, as published, and one iteration of 491,520 tokens, from one forward and backward pass of
    a part of them and one step of AdamW."""
    network = model.build(12, 12, 768, PAPER_BLOCK, 50304, seed=0).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    share = SHARE[device]
    batch = torch.randint(50257, (share, PAPER_BLOCK + 1), device=device)
    runtime = config.Runtime(device, STEP_PRECISION[device], "true" if device == "cuda" else "false", 0)
    called = runtime.compiled(network)

    def part() -> None:
        with runtime.autocast:
            loss = called(batch)
        loss.backward()

    def reset() -> float:
        return fire.fire_(network, steps=5, fused={"*.c_attn": [768] * 3}).sfe  # read, so waited for

    part()
    times = alternate({FIRE: reset, ITERATION: part}, replace(limit, most=min(limit.most, 3)), device)
    step = statistics.median(seconds(optimizer.step, device) for _ in range(3))
    times[ITERATION] = [part * PAPER_TOKENS / (share * PAPER_BLOCK) + step for part in times[ITERATION]]
    rows = [
        {"case": case, "loop": name, **spread(times[name]), "over_ours": ratio(times[name], times[FIRE])}
        for name in (ITERATION, FIRE)
    ]
    return pd.DataFrame(rows).assign(tokens_per_second=None, mfu=None)


def table(results: pd.DataFrame) -> str:
    """Markdown: a row for each loop."""
    columns = {
        "": results.case.where(~results.case.duplicated(), ""),
        "loop": results.loop,
        "seconds": known(results.seconds, "{:,.2f}"),
        **between(results, "seconds", "{:,.2f}"),
        "tokens / s": known(results.tokens_per_second, "{:,.0f}"),
        "this / ours": known(results.over_ours, "{:.2f}"),
    }
    if results.mfu.notna().any():
        columns["MFU"] = known(results.mfu, "{:.1%}")
    return pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True)
