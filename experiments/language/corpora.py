"""Token files in training: sequences drawn from them, and the fixed windows that validation looks at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.common.errors import UserError
from experiments.common.seeding import generator
from experiments.language.prepare import verify
from experiments.language.sources import NAMED, PUBLISHED, existing, fingerprint, folder_of

VERIFIED_BYTES = 1 << 28  # a token file up to this size is read whole and verified at every start, which takes a second


@dataclass(frozen=True)
class Corpus:
    """The tokens of one corpus, which may be several token files."""

    train: list[np.ndarray]  # each file's tokens, uint16, mapped from disk
    val: list[np.ndarray]
    identity: list[list[Any]]  # checksums and lengths, which decide what tokens these are

    def sequences(self, places: Tensor, block: int) -> np.ndarray:
        """Training sequences of `block` + 1 tokens, (count, block + 1), int32.

        Args:
            places: (count,) numbers in [0, 1), each a place in the corpus.
        """
        sizes = np.array([max(len(tokens) - block, 0) for tokens in self.train])
        starts = np.minimum((places.numpy() * sizes.sum()).astype(np.int64), sizes.sum() - 1)
        ends = np.cumsum(sizes)
        files = np.searchsorted(ends, starts, side="right")
        offsets = starts - (ends - sizes)[files]
        return np.stack(
            [self.train[file][at : at + block + 1] for file, at in zip(files, offsets, strict=True)]
        ).astype(np.int32)

    def windows(self, block: int, at_most: int) -> Tensor:
        """Validation windows, (count, block + 1), int32: without overlap, evenly spread over the held-out text of each
        file, and as many of each file as it has of the training text."""
        places = [range(0, len(file) - block, block) for file in self.val]
        sizes = np.array([len(tokens) if there else 0 for tokens, there in zip(self.train, places, strict=True)])
        shares = sizes / sizes.sum()
        count = min(at_most, *(len(there) / share for there, share in zip(places, shares, strict=True) if share))
        rows = []
        for file, there, share in zip(self.val, places, shares, strict=True):
            chosen = np.linspace(0, len(there) - 1, round(count * share)).round().astype(int)
            rows += [file[there[i] : there[i] + block + 1] for i in chosen]
        return torch.from_numpy(np.stack(rows).astype(np.int32))


def load(
    entries: list[str],
    tokenizer: str,
    data_dir: Path,
    block: int,
    command: str,
    first_tokens: int | None = None,
    column: str = "text",
    published: bool = False,
) -> Corpus:
    """The corpus that a list of configuration entries names.

    Args:
        entries, tokenizer, data_dir, column, published: as `prepare` takes them.
        block: tokens a model sees at once.
        command: what prepares the token files.
        first_tokens: how many of the training tokens are used, from the front; None: all.

    Raises:
        UserError: a file that is missing, damaged, of another tokenizer, or shorter than a block.
    """
    corpus = Corpus([], [], [])
    splits = {"train": corpus.train, "val": corpus.val}
    for entry in entries:
        folder = folder_of(entry, tokenizer, data_dir, column, published)
        for split, files in splits.items():
            tokens, sha256 = _open(folder, split, entry, tokenizer, column, published, command)
            files.append(tokens)
            corpus.identity.append([split, sha256, len(tokens)])
    if first_tokens is not None:
        corpus.identity.append(["first_tokens", first_tokens])
        for number, tokens in enumerate(corpus.train):
            corpus.train[number] = tokens[:first_tokens]
            first_tokens = max(first_tokens - len(tokens), 0)
    for split, files in splits.items():
        if (longest := max(map(len, files))) <= block:
            raise UserError(
                f"budget.block={block} is longer than the {split} text of {', '.join(entries)}: "
                f"{longest} {tokenizer} tokens"
            )
    return corpus


def _open(
    folder: Path, split: str, entry: str, tokenizer: str, column: str, published: bool, command: str
) -> tuple[np.ndarray, str]:
    if not (folder / f"{split}.json").exists():
        if entry not in NAMED and existing(entry)[0].is_dir() and tokenizer != "gpt2":
            raise UserError(f"{entry} is a folder, taken for nanoGPT's token files, which need tokenizer=gpt2")
        wanted = f"tokenizer={tokenizer}" + f" and data.split={PUBLISHED}" * published
        raise UserError(f"the corpus {entry} is not prepared for {wanted}; to do so: {command}")
    try:
        description = verify(folder, split, fingerprint(entry, column), VERIFIED_BYTES)
    except UserError as error:
        raise UserError(f"{error}; to prepare it again: {command}") from error
    path = folder / description["file"]  # of a file elsewhere, its whole path
    if description["tokenizer"] != tokenizer:
        raise UserError(f"{path} was made with tokenizer={description['tokenizer']}, not {tokenizer}")
    return np.memmap(path, np.uint16, "r"), description["sha256"]


class Mixture:
    """Training batches of one phase: each sequence comes from the first corpus with a fixed probability, else from the
    second.

    What a batch holds depends on seed, phase and iteration alone: not on what was drawn before, nor on how many
    processes share it.
    """

    def __init__(self, first: Corpus, second: Corpus | None, replay: float, block: int) -> None:
        self.corpora, self.block = (first, second), block
        self.replay = 1.0 if second is None else replay

    def batch(self, seed: int, phase: int, iteration: int, size: int, stream: str = "order") -> Tensor:
        """Sequences of one iteration, (size, block + 1), int32."""
        source = generator(seed, stream, phase, iteration)
        old = torch.rand(size, generator=source) < self.replay
        places = torch.rand(size, generator=source, dtype=torch.float64)
        batch = np.empty((size, self.block + 1), np.int32)
        for corpus, mask in zip(self.corpora, (old, ~old), strict=True):
            if corpus is not None and mask.any():
                batch[mask.numpy()] = corpus.sequences(places[mask], self.block)
        return torch.from_numpy(batch)
