"""The description of the language domain."""

import shlex
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

import fire
from experiments.common.config import CONFIGS, data_folder
from experiments.common.domain import Domain, Prepare, Results
from experiments.common.errors import StopSignals, UserError
from experiments.common.experiment import Experiment
from experiments.common.fetch import default_data_dir
from experiments.common.runtime import Runtime
from experiments.language import corpora
from experiments.language.config import LanguageConfig
from experiments.language.corpora import Corpus
from experiments.language.distributed import ProcessGroup
from experiments.language.model import MODELS
from experiments.language.sources import OFFICIAL, PUBLISHED


class Opened(NamedTuple):
    """The two corpora and the processes of a run."""

    first: Corpus
    second: Corpus
    group: ProcessGroup


class Language(Domain):
    """Continual pretraining of a language model (paper, section 4.2 and Figure 3)."""

    name = "language"
    schema = LanguageConfig
    phase_version = 3
    several_processes = True
    compile_on_cuda = "true"
    results = Results(
        metric="val/loss",
        title="validation loss",
        step="iteration",
        steps="iterations",
        figure="Figure 3",
        panels={
            "wikitext103_openwebtext-best": "llm_best",
            "wikitext103_openwebtext-30k": "llm_30k",
            "wikitext103_openwebtext-60k": "llm_60k",
            "wikitext2_imdb-best": "llm_best",
            "wikitext2_imdb-30k": "llm_30k",
            "wikitext2_imdb-60k": "llm_60k",
        },
        apart={
            "val/loss_second": ("second corpus alone: new knowledge", "second corpus"),
            "val/loss_first": ("first corpus alone: retained knowledge", "first corpus"),
        },
        before={"train/loss": "training", "val/loss": "validation"},
    )

    def check(self, cfg: DictConfig) -> None:
        """Raise UserError for a model that is not known and values that do not fit together."""
        data, budget = cfg.data, cfg.budget
        if cfg.model.name not in MODELS:
            raise UserError(f"model.name={cfg.model.name} is unknown; valid: {', '.join(MODELS)}")
        if any(OmegaConf.is_missing(data, key) or not data[key] for key in ("first", "second")):
            raise UserError(f"data={data.name} needs data.first=[...] and data.second=[...], corpora or files")
        if budget.width % budget.heads:
            raise UserError(f"budget.width={budget.width} is not a multiple of budget.heads={budget.heads}")
        if max(cfg.optimizer.betas) >= 1:
            raise UserError(f"optimizer.betas={list(cfg.optimizer.betas)} must be below 1")

    def open(self, cfg: DictConfig, runtime: Runtime) -> Opened:
        """Join the processes and load the corpora. UserError unless an iteration divides evenly into forward passes and
        processes, or with CUDA graphs, whose memory the next pass would overwrite, into one pass a process."""
        group, budget = ProcessGroup(runtime.device), cfg.budget
        if budget.sequences % (budget.micro_batch * group.world_size):
            raise UserError(
                f"budget.sequences={budget.sequences} is not a multiple of budget.micro_batch={budget.micro_batch}"
                + (f" times {group.world_size} processes" if group.world_size > 1 else "")
            )
        if runtime.compile == "graphs" and budget.sequences > budget.micro_batch * group.world_size:
            raise UserError("compile=graphs accumulates no gradients; use compile=true or a larger budget.micro_batch")
        first, second = group.on_every_process(lambda: load_corpora(cfg))
        return Opened(first, second, group)

    def benchmark(self, cfg: DictConfig) -> str:
        return f"{cfg.data.name}-{cfg.checkpoint}"

    def choices(self, cfg: DictConfig) -> list[str]:
        return [f"data={cfg.data.name}", f"checkpoint={cfg.checkpoint}"]

    def paper_choices(self, cfg: DictConfig) -> list[str]:
        """The branch point alone: the corpora are those of scale=paper."""
        return [f"checkpoint={cfg.checkpoint}"]

    def headline(self, cfg: DictConfig, opened: Opened) -> str:
        budget, processes = cfg.budget, opened.group.world_size
        return (
            f"{budget.layers} layers of width {budget.width}, first corpus of {sum(map(len, opened.first.train)):,} "
            f"tokens, {budget.sequences * budget.block:,} a step{f' in {processes} processes' * (processes > 1)}"
        )

    def extra_identity(self, cfg: DictConfig, opened: Opened) -> dict[str, Any]:
        """Checksums of both corpora, and in how many processes gradients are summed."""
        return {"corpora": [opened.first.identity, opened.second.identity], "processes": opened.group.world_size}

    def extra_phase_0_identity(self, cfg: DictConfig, opened: Opened) -> dict[str, Any]:
        return {"corpora": [opened.first.identity], "processes": opened.group.world_size}

    def experiment(self, cfg: DictConfig, runtime: Runtime, method: fire.Method, opened: Opened) -> Experiment:
        from experiments.language.train import LanguageTraining

        return LanguageTraining(cfg, runtime, method, *opened)

    def in_every_process(
        self, opened: Opened, prepare: Prepare, carry_out: Callable[[Prepare], dict[str, Any]], stop: StopSignals
    ) -> dict[str, Any]:
        return opened.group.carry_out(prepare, carry_out, stop)


def load_corpora(cfg: DictConfig) -> tuple[Corpus, Corpus]:
    """Both corpora of a configuration."""
    load = partial(
        corpora.load, tokenizer=cfg.tokenizer, data_dir=data_folder(cfg), block=cfg.budget.block,
        command=prepare_command(cfg), column=cfg.data.text_column, published=cfg.data.split == PUBLISHED,
    )  # fmt: skip
    return load(list(cfg.data.first), first_tokens=cfg.budget.first_tokens), load(list(cfg.data.second))


def prepare_command(cfg: DictConfig) -> str:
    """What makes the token files that a configuration needs."""
    data, words = cfg.data, [f"data={cfg.data.name}", f"tokenizer={cfg.tokenizer}"]
    named = OmegaConf.load(CONFIGS / "language" / "data" / f"{data.name}.yaml")
    for key in ("first", "second"):
        if OmegaConf.select(named, key) != data[key]:
            words.append(f"data.{key}=[{','.join(data[key])}]")
    if data.text_column != "text":
        words.append(f"data.text_column={data.text_column}")
    if data.split != OFFICIAL:
        words.append(f"data.split={data.split}")
    if data_folder(cfg) != default_data_dir():
        words.append(f"data_dir={cfg.data_dir}")
    return f"python -m scripts.prepare_data language {shlex.join(words)}"


LANGUAGE = Language()
