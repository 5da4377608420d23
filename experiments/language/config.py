"""Typed configuration of the language domain; the values are in `configs/language/`."""

from dataclasses import dataclass, field

from experiments.common.config import BaseConfig, ModelConfig
from experiments.common.schema import COUNT, EACH_PHASE, HUGE, LATER_PHASES, NOTHING, setting
from experiments.language.best import BEST, PERIODIC
from experiments.language.sources import OFFICIAL, PUBLISHED
from experiments.language.tokenizers import VOCABULARY


@dataclass
class DataConfig:
    """The two corpora. Where their files are decides nothing: the checksums of the tokens are part of the identity.

    Attributes:
        name: of the choice.
        first, second: corpora of phase 0 and of phase 1; each a list of known corpora, files, patterns of files, or
            folders with nanoGPT's train.bin and val.bin.
        text_column: of parquet and JSON files.
        split: of training and validation text. published, the authors': the documents of the training text (of
            WikiText-103 its lines) are shuffled, and 0.05 % of them are the validation text. official: the documents
            keep their order, and the validation text is the corpus's own, where there is one.
        replay: probability that a sequence of phase 1 comes from the first corpus.
    """

    name: str = setting(decides=NOTHING)
    first: list[str] = setting(decides=NOTHING)
    second: list[str] = setting(decides=NOTHING)
    text_column: str = setting("text", decides=NOTHING)
    split: str = setting(OFFICIAL, choices=(PUBLISHED, OFFICIAL))
    replay: float = setting(low=0, high=1, decides=LATER_PHASES)


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

    layers: int = setting(low=1, high=1000)
    heads: int = setting(low=1, high=65_536)
    width: int = setting(low=1, high=65_536)
    block: int = setting(low=1, high=1e6)
    first_tokens: int | None = setting(None, low=1, high=COUNT)
    sequences: int = setting(low=1, high=1e6)
    micro_batch: int = setting(low=1, high=65_536)
    iterations: list[int] = setting(low=1, high=COUNT, length=2, decides=EACH_PHASE)
    eval_every: list[int] = setting(low=1, high=COUNT, length=2, decides=EACH_PHASE)
    eval_windows: int = setting(low=1, high=COUNT)
    log_every: int = setting(low=1, high=COUNT)
    learning_rate: float = setting(above=0, high=HUGE)


@dataclass
class OptimizerConfig:
    """AdamW as in the paper (section 4.2).

    Attributes:
        betas: of AdamW, each below 1.
        weight_decay: of matrices; vectors have none.
        clip_norm: largest norm of the whole gradient.
        warmup_fraction, warmup_limit: the learning rate rises over this share of a phase, so many iterations at most.
    """

    betas: list[float] = setting(low=0, high=1, length=2)
    weight_decay: float = setting(low=0, high=1000)
    clip_norm: float = setting(above=0, high=HUGE)
    warmup_fraction: float = setting(low=0, high=1)
    warmup_limit: int = setting(low=0, high=COUNT)


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
    checkpoint: str = setting(choices=(BEST, *PERIODIC), decides=LATER_PHASES)
    tokenizer: str = setting(choices=tuple(VOCABULARY))
    patience: float = setting(above=0, high=1)
    model: ModelConfig = field(default_factory=ModelConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
