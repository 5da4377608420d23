"""Token files: a corpus tokenised once into `train.bin` and `val.bin`, flat arrays of uint16, each with a JSON sidecar.

The text is read in order and cut into shards of a few megabytes, which threads tokenise (tiktoken lets go of the
interpreter meanwhile). Finished shards survive a kill. Where a corpus has no official validation split, documents are
held out. A sidecar is written last: a token file without one does not count.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from experiments.common.checkpoint import sync_folder, write_text
from experiments.common.errors import UserError
from experiments.common.progress import Progress
from experiments.language import sources, tokenizers
from experiments.language.tokenizers import Tokenizer

logger = logging.getLogger("fire")

SHARD_CHARACTERS = 4_000_000
HELD_OUT_SHARE, HELD_OUT_SEED = (
    0.0005,
    2357,
)  # of the documents (paper); the permutation is nanoGPT's, so its documents too
HELD_OUT_TOKENS = 200_000  # at least, or a tenth of a corpus that small
SPLITS = ("train", "val")
BLOCK_BYTES = 1 << 24


def folder_of(entry: str, tokenizer: str, data_dir: Path, column: str = "text") -> Path:
    """Where the token files of a configuration entry are."""
    name = entry if entry in sources.NAMED else sources.file_corpus(entry, column)
    return data_dir / "language" / f"{name}-{tokenizer}"


def prepare(entry: str, tokenizer: str, data_dir: Path, column: str, workers: int) -> Path:
    """Make the token files of one corpus, going on where an earlier call was killed; returns their folder.

    Args:
        entry: a corpus of `sources.NAMED`, a file, a pattern of files, or a folder of nanoGPT's train.bin and val.bin.
        tokenizer: gpt2 or bytes.
        data_dir: the user's data folder.
        column: of the text in parquet and JSON files.
        workers: threads that tokenise.

    Raises:
        UserError: the corpus cannot be had or read, or the disk is full.
    """
    folder = folder_of(entry, tokenizer, data_dir, column)
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("waiting for another process that prepares %s", folder)
        with lock:
            pair = Path(entry).expanduser()
            if pair.is_dir() and entry not in sources.NAMED:
                _register(pair.absolute(), folder, tokenizer)
            elif entry not in sources.NAMED or not _ready(folder, None):  # a named one that is ready asks no network
                _tokenise(sources.find(entry, data_dir, column), folder, tokenizer, data_dir, workers)
    except OSError as error:
        raise UserError(f"cannot prepare {entry} in {folder}: {error}") from error
    finally:
        lock.release(force=True)
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {".lock"}:  # nothing came of it
            shutil.rmtree(folder, ignore_errors=True)
    return folder


def _register(pair: Path, folder: Path, name: str) -> None:
    """Describe a ready pair of token files where it lies."""
    if name != "gpt2":
        raise UserError(f"{pair} is taken for a pair of nanoGPT's token files, which are gpt2's, not tokenizer={name}")
    for split in SPLITS:
        path = pair / f"{split}.bin"
        if not path.exists() or path.stat().st_size == 0 or path.stat().st_size % 2:
            raise UserError(f"{path} is not a file of uint16 tokens; such a folder holds train.bin and val.bin")
        tokens = np.memmap(path, np.uint16, "r")
        documents = highest = 0
        for start in range(0, len(tokens), BLOCK_BYTES):
            block = tokens[start : start + BLOCK_BYTES]
            highest, documents = max(highest, int(block.max())), documents + int((block == tokenizers.Gpt2.end).sum())
        if highest >= tokenizers.Gpt2.tokens or documents == 0:
            raise UserError(
                f"{path} is of another tokenizer than gpt2: highest token {highest}, {documents} end tokens"
            )
        _describe(folder, split, name, path, len(tokens), documents, {"corpus": pair.name, "origin": str(path)})
        logger.info("%s: %s tokens in %s documents, used where it is", path, f"{len(tokens):,}", f"{documents:,}")


def _tokenise(source: sources.Source, folder: Path, name: str, data_dir: Path, workers: int) -> None:
    settings = {"source": source.fingerprint, "tokenizer": name, "shard": SHARD_CHARACTERS}
    if _ready(folder, settings):
        return
    for sidecar in SPLITS:
        (folder / f"{sidecar}.json").unlink(missing_ok=True)
    tokenizer = tokenizers.load(name, data_dir)
    # Named by what they are of, so that a shard of another text can never be taken for one of this.
    work = folder / f"shards-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"
    for other in folder.glob("shards-*"):
        if other != work:
            shutil.rmtree(other)
    work.mkdir(exist_ok=True)
    for left_over in work.glob("*.tmp"):
        left_over.unlink()
    shards = {}
    with Progress(f"tokenising {source.name}", source.characters, 0, "characters") as progress:
        for split, read in source.splits.items():
            shards[split] = _shards(read(), work, split, tokenizer, workers, progress)
    common = {"corpus": source.name, "origin": source.origin, "settings": settings}
    if "val" in shards:
        for split, paths in shards.items():
            _merge(paths, folder, split, name, None, {**common, "held_out": "official split"})
    else:
        chosen = _held_out(shards["train"])
        how = {**common, "held_out": f"{chosen.sum()} of {len(chosen)} documents, seed {HELD_OUT_SEED}"}
        _merge(shards["train"], folder, "train", name, ~chosen, how)
        _merge(shards["train"], folder, "val", name, chosen, how)
    shutil.rmtree(work)


def _ready(folder: Path, settings: dict[str, Any] | None) -> bool:
    """Whether both token files are there and whole, and, if given, of these settings."""
    for split in SPLITS:
        sidecar = folder / f"{split}.json"
        if not sidecar.exists():
            return False
        known = json.loads(sidecar.read_text())
        if settings is not None and known["settings"] != json.loads(json.dumps(settings)):
            logger.info("%s is of another text or tokenizer and is made again", folder)
            return False
        file = folder / known["file"]  # a name, or of a file elsewhere the whole path
        if not file.exists() or checksum(file) != known["sha256"]:
            logger.info("%s is missing or damaged and is made again", file)
            return False
    logger.info("ready in %s, checksums right", folder)
    for left_over in folder.glob("shards-*"):  # of a process that was killed while it tidied up
        shutil.rmtree(left_over)
    return True


def _shards(
    documents: Iterator[str], work: Path, split: str, tokenizer: Tokenizer, workers: int, progress: Progress
) -> list[Path]:
    """Tokenise documents into shard files, several at a time; those that exist are not made again.

    Only a few shards are in memory at once.
    """
    paths: list[Path] = []
    pending: deque[tuple[Future[None], int]] = deque()

    def finish() -> None:
        future, characters = pending.popleft()
        future.result()
        progress.advance(characters)
        progress.show(f"{len(paths) - len(pending)} shards")

    with ThreadPoolExecutor(workers) as pool:
        for texts in _groups(documents):
            path = work / f"{split}-{len(paths):06d}.npz"
            paths.append(path)
            while len(pending) > workers:
                finish()
            pending.append((pool.submit(_make_shard, path, texts, tokenizer), sum(map(len, texts))))
        while pending:
            finish()
    return paths


def _groups(documents: Iterator[str]) -> Iterator[list[str]]:
    texts: list[str] = []
    characters = 0
    for text in documents:
        texts.append(text)
        characters += len(text)
        if characters >= SHARD_CHARACTERS:
            yield texts
            texts, characters = [], 0
    if texts:
        yield texts


def _make_shard(path: Path, texts: list[str], tokenizer: Tokenizer) -> None:
    if path.exists():
        return
    end = np.array([tokenizer.end], np.uint16)
    pieces = [np.concatenate([tokenizer.encode(text), end]) for text in texts]
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, tokens=np.concatenate(pieces), lengths=np.array([len(piece) for piece in pieces]))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _held_out(shards: list[Path]) -> np.ndarray:
    """Which documents are held out for validation, (documents,), bool."""
    if not shards:
        raise UserError("the corpus holds no text")
    lengths = np.concatenate([np.load(path)["lengths"] for path in shards])
    order = np.random.default_rng(HELD_OUT_SEED).permutation(len(lengths))
    wanted = min(HELD_OUT_TOKENS, lengths.sum() // 10)
    enough = int(np.searchsorted(np.cumsum(lengths[order]), wanted)) + 1
    count = max(math.ceil(HELD_OUT_SHARE * len(lengths)), enough)
    if count >= len(lengths):
        raise UserError(f"a corpus of {len(lengths)} document{'s' * (len(lengths) > 1)} is too small to hold out any")
    chosen = np.zeros(len(lengths), bool)
    chosen[order[:count]] = True
    return chosen


def _merge(
    shards: list[Path], folder: Path, split: str, name: str, chosen: np.ndarray | None, how: dict[str, Any]
) -> None:
    """Join shards, or the chosen documents of them, into the token file of a split."""
    target = folder / f"{split}.bin"
    temporary = folder / f".{split}.bin.tmp"
    tokens = documents = seen = 0
    with temporary.open("wb") as file:
        for path in shards:
            shard = np.load(path)
            content, lengths = shard["tokens"], shard["lengths"]
            keep = np.ones(len(lengths), bool) if chosen is None else chosen[seen : seen + len(lengths)]
            seen += len(lengths)
            kept = content[np.repeat(keep, lengths)]
            file.write(kept.tobytes())
            tokens, documents = tokens + len(kept), documents + int(keep.sum())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    sync_folder(folder)
    _describe(folder, split, name, target, tokens, documents, how)
    logger.info("%s: %s tokens in %s documents", target, f"{tokens:,}", f"{documents:,}")


def _describe(
    folder: Path, split: str, name: str, file: Path, tokens: int, documents: int, how: dict[str, Any]
) -> None:
    place = file.name if file.parent == folder else str(file)
    description = {
        **how, "split": split, "tokenizer": name, "vocabulary": tokenizers.VOCABULARY[name], "tokens": tokens,
        "documents": documents, "file": place, "sha256": checksum(file), "dtype": "uint16, little endian",
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip
    write_text(folder / f"{split}.json", json.dumps(description, indent=1) + "\n")


def checksum(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
