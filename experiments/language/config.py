"""Typed configuration of the language domain; the values are in `configs/language/`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from experiments.common.config import BaseConfig, ScopeConfig


@dataclass
class DataConfig:
    """The two corpora.

    Attributes:
        name: of the choice.
        first, second: corpora of phase 0 and of phase 1; each a list of known corpora, files, patterns of files, or
            folders with nanoGPT's train.bin and val.bin.
        text_column: of parquet and JSON files.
        replay: probability that a sequence of phase 1 comes from the first corpus.
    """

    name: str = MISSING
    first: list[str] = MISSING
    second: list[str] = MISSING
    text_column: str = "text"
    replay: float = MISSING


@dataclass
class ModelConfig:
    """What resets touch in the network."""

    name: str = MISSING
    scope: ScopeConfig = field(default_factory=ScopeConfig)


@dataclass
class BudgetConfig:
    """The numbers of a scale.

    Attributes:
        layers, heads, width, block: of the network; block is the tokens it sees at once.
        first_tokens: how many tokens of the first corpus are used, from its front; null: all.
        sequences: in an iteration, over all processes and accumulation steps.
        micro_batch: sequences in one forward pass; divides `sequences`.
        iterations: full length of phase 0's learning-rate schedule, and length of phase 1.
        eval_every: iterations between validations, for each phase.
        eval_windows: validation windows of each corpus, at most.
        log_every: iterations between rows of the training loss.
        learning_rate: after the warm-up; it falls to a tenth.
    """

    layers: int = MISSING
    heads: int = MISSING
    width: int = MISSING
    block: int = MISSING
    first_tokens: int | None = None
    sequences: int = MISSING
    micro_batch: int = MISSING
    iterations: list[int] = MISSING
    eval_every: list[int] = MISSING
    eval_windows: int = MISSING
    log_every: int = MISSING
    learning_rate: float = MISSING


@dataclass
class OptimizerConfig:
    """AdamW as in the paper (section 4.2).

    Attributes:
        betas: of AdamW.
        weight_decay: of matrices; vectors have none.
        clip_norm: largest norm of the whole gradient.
        warmup_fraction, warmup_limit: the learning rate rises over this share of a phase, so many iterations at most.
    """

    betas: list[float] = MISSING
    weight_decay: float = MISSING
    clip_norm: float = MISSING
    warmup_fraction: float = MISSING
    warmup_limit: int = MISSING


@dataclass
class LanguageConfig(BaseConfig):
    """The root.

    Attributes:
        checkpoint: which checkpoint of phase 0 the methods branch from; `best` by validation loss, or how far the
            training was, in thousands of the paper's iterations.
        tokenizer: gpt2 or bytes.
        patience: `best` is settled when this share of phase 0 has brought no lower validation loss.
    """

    data: DataConfig = field(default_factory=DataConfig)
    checkpoint: str = MISSING
    tokenizer: str = MISSING
    patience: float = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
