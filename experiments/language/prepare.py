"""Token files: a corpus tokenised once into `train.bin` and `val.bin`, flat arrays of uint16, each with a JSON sidecar.

They are made in a folder `<name>.unfinished`, which is renamed at the end, so a corpus is there whole or not at all.
First the tokens of all documents are appended to one file, in order. The progress is recorded after each thousand
documents, and the next call after a kill resumes there. Then the tokens are copied into the files of the two splits, in
the order that data.split asks for.
"""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from experiments.common.errors import UserError
from experiments.common.files import checksum, damaged, read_object, sync_folder, write_text
from experiments.common.progress import Progress
from experiments.language import sources, tokenizers
from experiments.language.sources import Source, folder_of
from experiments.language.tokenizers import Gpt2, Tokenizer

logger = logging.getLogger("fire")

GROUP = 1000  # documents that are tokenised between two records of the progress
BLOCK_TOKENS = 1 << 20  # read at a time
READ_BYTES = 4096  # at a time, where documents are read in random order: what lies beside them is not needed
# Of the documents, as `train_test_split` of the datasets library takes them in nanoGPT and the authors' code.
HELD_OUT_SHARE, HELD_OUT_SEED = 0.0005, 2357
HELD_OUT_TOKENS = 200_000  # with data.split=official at least, or a tenth of a corpus that small
SPLITS = ("train", "val")
PROGRESS, TOKENS = "progress.json", "tokens"  # in the folder of an unfinished corpus


def prepare(entry: str, tokenizer: str, data_dir: Path, column: str, workers: int, published: bool = False) -> Path:
    """Make the token files of one corpus, or finish what a killed call began; returns their folder.

    Args:
        entry: a corpus of `sources.NAMED`, a file, a pattern of files, or a folder of nanoGPT's train.bin and val.bin.
        tokenizer: gpt2 or bytes.
        data_dir: the user's data folder.
        column: of the text in parquet and JSON files.
        workers: threads that tokenise.
        published: whether training and validation text are those of data.split=published, else of official. nanoGPT's
            token files are taken as they are.

    Raises:
        UserError: the corpus cannot be fetched or read, or the disk is full.
    """
    folder = folder_of(entry, tokenizer, data_dir, column, published)
    if _is_ready(entry, column, folder):  # then nothing is written, so it may be read-only
        return folder
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("waiting for another process that prepares %s", folder)
            lock.acquire()
        _prepare(entry, tokenizer, data_dir, column, workers, published, folder)
    except OSError as error:
        raise UserError(f"cannot prepare {entry} in {folder}: {error}") from error
    finally:
        lock.release()
    return folder


def _is_ready(entry: str, column: str, folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        for split in SPLITS:
            verify(folder, split, sources.fingerprint(entry, column))
    except UserError as error:
        logger.info("%s; it is prepared again", error)
        return False
    logger.info("ready in %s, checksums right", folder)
    return True


def _prepare(
    entry: str, tokenizer: str, data_dir: Path, column: str, workers: int, published: bool, folder: Path
) -> None:
    if _is_ready(entry, column, folder):  # by another process in the meantime
        return
    work, path = folder.with_name(f"{folder.name}.unfinished"), Path(entry).expanduser().absolute()
    if entry not in sources.NAMED and path.is_dir():
        work.mkdir(exist_ok=True)
        _describe_nanogpt(path, work, tokenizer)
    else:
        source, encoder = sources.find(entry, data_dir, column), tokenizers.load(tokenizer, data_dir)
        if published:  # an official validation text is not used
            source = source._replace(splits={"train": source.splits["train"]})
        work.mkdir(exist_ok=True)
        documents = _tokenise(source, f"tokenising {entry}", work, encoder, workers)
        origin = {"corpus": entry, "origin": source.origin, "settings": {"source": source.fingerprint}}
        _divide(work, documents, published, tokenizer, encoder.end, origin)
    shutil.rmtree(folder, ignore_errors=True)
    for scratch in (PROGRESS, TOKENS):  # in this order, so that the first never names tokens that are gone
        (work / scratch).unlink(missing_ok=True)
    work.rename(folder)
    sync_folder(folder.parent)


def verify(folder: Path, split: str, fingerprint: list[Any] | None, at_most: float = math.inf) -> dict[str, Any]:
    """The description of a token file, which it must match.

    Args:
        folder, split: of the token file.
        fingerprint: of the text that it must be made of; None: any.
        at_most: bytes; of a larger file only the size is verified.

    Raises:
        UserError: it is of another text, missing, or damaged.
    """
    sidecar = folder / f"{split}.json"
    if not sidecar.exists():
        raise UserError(f"{sidecar} is missing")
    description = read_object(sidecar, ("file", "tokens", "sha256"))
    if fingerprint is not None and description.get("settings", {}).get("source") != fingerprint:
        raise UserError(f"the text of {folder} has changed since it was prepared")
    file = folder / description["file"]  # of a file elsewhere, its whole path
    size = file.stat().st_size if file.exists() else 0
    if size != 2 * description["tokens"] or (size <= at_most and checksum(file) != description["sha256"]):
        raise UserError(f"{file} is missing or damaged")
    return description


def _describe_nanogpt(place: Path, work: Path, name: str) -> None:
    """Check nanoGPT's token files, and write sidecars that point to them."""
    if name != "gpt2":
        raise UserError(
            f"{place} is taken for a folder of nanoGPT's token files, which are gpt2's, not tokenizer={name}"
        )
    for split in SPLITS:
        path = place / f"{split}.bin"
        if not path.exists() or path.stat().st_size == 0 or path.stat().st_size % 2:
            raise UserError(f"{path} is not a file of uint16 tokens; such a folder holds train.bin and val.bin")
        counts = [(int(block.max()), int((block == Gpt2.end).sum())) for block in _blocks(path)]
        highest, documents = max(top for top, _ in counts), sum(ends for _, ends in counts)
        if highest >= Gpt2.tokens or documents == 0:
            found = f"highest token {highest}, {documents} end tokens"
            raise UserError(f"{path} is of another tokenizer than gpt2: {found}")
        _describe(work, split, name, path, documents, {"corpus": place.name, "origin": str(path)})


def _tokenise(source: Source, title: str, work: Path, tokenizer: Tokenizer, workers: int) -> dict[str, int]:
    """Append the tokens of all documents, each with an end token, to one file; returns how many each split has."""

    def encode(text: str) -> np.ndarray:
        return np.append(tokenizer.encode(text), np.uint16(tokenizer.end))

    progress = work / PROGRESS
    done = read_object(progress) if progress.exists() else {}
    if done.get("source") != source.fingerprint or "sha256" not in done:  # or begun by an earlier version
        done = {"source": source.fingerprint, "documents": {}, "characters": 0, "tokens": 0}
    digest = _digest(work / TOKENS, done["tokens"])
    if done["tokens"] and digest.hexdigest() != done["sha256"]:
        raise damaged(work / TOKENS, "it has changed since the progress was recorded")
    with (
        (work / TOKENS).open("ab") as file,
        ThreadPoolExecutor(workers) as pool,  # tiktoken releases the interpreter's lock
        Progress(title, source.characters, done["characters"], "characters") as bar,
    ):
        file.truncate(2 * done["tokens"])
        for split, documents in source.splits.items():
            rest = islice(documents, done["documents"].setdefault(split, 0), None)
            while texts := list(islice(rest, GROUP)):
                tokens = np.concatenate(list(pool.map(encode, texts)))
                file.write(tokens.data)
                file.flush()
                os.fsync(file.fileno())
                characters = sum(map(len, texts))
                done["documents"][split] += len(texts)
                done["characters"] += characters
                done["tokens"] += len(tokens)
                digest.update(tokens.data)
                done["sha256"] = digest.hexdigest()
                write_text(progress, json.dumps(done))
                bar.advance(characters)
    return done["documents"]


def _divide(
    work: Path, documents: dict[str, int], published: bool, name: str, end: int, origin: dict[str, Any]
) -> None:
    """Copy the tokens into the files of the splits, and describe them."""
    if not documents["train"]:
        raise UserError("the corpus holds no text")
    ends = [BLOCK_TOKENS * i + np.flatnonzero(block == end) for i, block in enumerate(_blocks(work / TOKENS))]
    lengths = np.diff(np.concatenate(ends), prepend=-1)
    train, val, how = _parts(lengths, documents, published)
    for split, part in zip(SPLITS, (train, val), strict=True):
        _copy(work, split, lengths, part)
        _describe(work, split, name, work / f"{split}.bin", len(part), {**origin, "held_out": how})


def _parts(lengths: np.ndarray, documents: dict[str, int], published: bool) -> tuple[np.ndarray, np.ndarray, str]:
    """The documents of the training and of the validation text, each in its order, and how they were chosen, in words.

    Args:
        lengths: of all documents, (documents,), in tokens.
        documents: how many of them each split of the source has; with `published` there is its training text alone.
        published: as in `prepare`.

    Raises:
        UserError: there are too few.
    """
    total = len(lengths)
    if "val" in documents:
        return np.arange(documents["train"]), np.arange(documents["train"], total), "official split"
    order, count = np.random.default_rng(HELD_OUT_SEED).permutation(total), math.ceil(HELD_OUT_SHARE * total)
    if not published:
        wanted = min(HELD_OUT_TOKENS, lengths.sum() // 10)
        count = max(count, int(np.searchsorted(np.cumsum(lengths[order]), wanted)) + 1)
    if count >= total:
        raise UserError(f"a corpus of {total} document{'s' * (total > 1)} is too small to hold out any")
    train, val, how = order[count:], order[:count], f"{count} of {total} documents, seed {HELD_OUT_SEED}"
    return (train, val, f"{how}, shuffled") if published else (np.sort(train), np.sort(val), how)


def _copy(work: Path, split: str, lengths: np.ndarray, chosen: np.ndarray) -> None:
    """Write the token file of a split: the `chosen` documents, in that order. They are read one by one, since a file
    that is mapped counts as memory in use."""
    starts = np.cumsum(lengths) - lengths
    with (
        (work / TOKENS).open("rb", buffering=READ_BYTES) as tokens,
        (work / f"{split}.bin").open("wb") as file,
        Progress(f"writing {split}.bin", int(lengths[chosen].sum()), 0, "tokens") as bar,
    ):
        for at in range(0, len(chosen), GROUP):
            group = chosen[at : at + GROUP]
            for start, length in zip(starts[group].tolist(), lengths[group].tolist(), strict=True):
                tokens.seek(2 * start)
                file.write(tokens.read(2 * length))
            bar.advance(int(lengths[group].sum()))
        file.flush()
        os.fsync(file.fileno())


def _blocks(path: Path) -> Iterator[np.ndarray]:
    """The tokens of a file, in blocks of `BLOCK_TOKENS`."""
    with path.open("rb") as file:
        while len(block := np.fromfile(file, np.uint16, BLOCK_TOKENS)):
            yield block


def _digest(path: Path, tokens: int) -> Any:
    """The SHA-256 so far of the first tokens of a file."""
    digest = hashlib.sha256()
    with path.open("ab+") as file:
        file.seek(0)
        for start in range(0, tokens, BLOCK_TOKENS):
            digest.update(file.read(2 * min(BLOCK_TOKENS, tokens - start)))
    return digest


def _describe(work: Path, split: str, name: str, file: Path, documents: int, origin: dict[str, Any]) -> None:
    tokens = file.stat().st_size // 2
    description = {
        **origin, "tokenizer": name, "vocabulary": tokenizers.VOCABULARY[name], "tokens": tokens,
        "documents": documents, "file": file.name if file.parent == work else str(file), "sha256": checksum(file),
    }  # fmt: skip
    write_text(work / f"{split}.json", json.dumps(description, indent=1) + "\n")
    logger.info("%s %s: %s tokens in %s documents", origin["corpus"], split, f"{tokens:,}", f"{documents:,}")
