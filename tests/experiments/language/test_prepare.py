"""Token files made from real corpora and files, by `python -m scripts.prepare_data language`, killed and mended."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from filelock import FileLock
from tokenizers import ByteLevelBPETokenizer

from experiments.common.errors import UserError
from experiments.language import prepare as preparation
from experiments.language import sources, tokenizers
from experiments.language.prepare import prepare
from experiments.language.sources import folder_of
from tests.conftest import REPOSITORY, interrupt, start_module

DOCUMENTS = [f"Document {i}: {'Größe ' * (i % 7)}naïve café\n" + "x " * (i % 50) for i in range(2000)]


def tokens_of(folder: Path, split: str) -> np.ndarray:
    return np.fromfile(folder / f"{split}.bin", np.uint16)


def described(folder: Path, split: str) -> dict[str, Any]:
    return json.loads((folder / f"{split}.json").read_text())


def documents(folder: Path, split: str, end: int = 256) -> list[np.ndarray]:
    tokens = tokens_of(folder, split)
    return [part[:-1] for part in np.split(tokens, np.flatnonzero(tokens == end) + 1)[:-1]]


def test_wikitext2_and_imdb(text_dir: Path) -> None:
    for name, counts in (("wikitext2", (600, 60)), ("imdb", (50_000, None))):
        folder = folder_of(name, "bytes", text_dir)
        found = []
        for split in ("train", "val"):
            description, tokens = described(folder, split), tokens_of(folder, split)
            assert description["tokens"] == len(tokens)
            assert description["documents"] == int((tokens == 256).sum())
            assert description["sha256"] == hashlib.sha256(tokens.tobytes()).hexdigest()
            assert (description["tokenizer"], description["vocabulary"]) == ("bytes", 257)
            found.append(description["documents"])
        assert len(tokens_of(folder, "val")) >= 200_000
        if counts[1] is not None:
            assert found == list(counts)
        else:
            assert sum(found) == counts[0]
    first = bytes(documents(folder_of("wikitext2", "bytes", text_dir), "train")[0].astype(np.uint8)).decode()
    assert first.startswith("= Valkyria Chronicles III =\n")
    assert "\n\n" not in first


def write(path: Path, texts: list[str], column: str = "text") -> Path:
    if path.suffix == ".parquet":
        table = pyarrow.table({column: texts, "title": ["t"] * len(texts)})
        pyarrow.parquet.write_table(table, path, row_group_size=300)
    elif path.suffix == ".txt":
        path.write_text("".join(texts))
    else:
        path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
def test_files_of_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"corpus{suffix}", DOCUMENTS)
    folder = prepare(str(path), "bytes", tmp_path, "text", workers=2)
    held_out = {document.tobytes() for document in documents(folder, "val")}
    train = [document.tobytes() for document in documents(folder, "train")]
    all_of_them = [np.frombuffer(text.encode(), np.uint8).astype(np.uint16).tobytes() for text in DOCUMENTS]
    assert train == [document for document in all_of_them if document not in held_out]  # in order, none lost
    assert len(train) + len(documents(folder, "val")) == len(DOCUMENTS)
    total = sum(len(text.encode()) + 1 for text in DOCUMENTS)
    assert len(tokens_of(folder, "val")) == pytest.approx(total / 10, rel=0.02)  # a small corpus gives a tenth


def test_text_files_and_patterns(tmp_path: Path) -> None:
    for number, texts in enumerate((DOCUMENTS[:1000], DOCUMENTS[1000:])):
        write(tmp_path / f"part{number}.txt", texts * 10)
    folder = prepare(str(tmp_path / "part*.txt"), "bytes", tmp_path, "text", workers=2)
    found = documents(folder, "train") + documents(folder, "val")
    assert sum(map(len, found)) == sum(len(text.encode()) for text in DOCUMENTS) * 10
    assert all(document[-1] == ord(" ") or document[-1] == ord("\n") for document in found)
    assert max(map(len, found)) < 2 * sources.TEXT_FILE_DOCUMENT


def test_held_out_documents_are_nanogpts(tmp_path: Path) -> None:
    """`train_test_split(test_size=0.0005, seed=2357)` of the datasets library holds out the same ones."""
    texts = [f"{i} " + "word " * 100 for i in range(8000)]
    folder = prepare(str(write(tmp_path / "c.parquet", texts)), "bytes", tmp_path, "text", workers=2)
    split = datasets.Dataset.from_dict({"text": texts}).train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    expected = {int(text.split()[0]) for text in split["test"]["text"]}
    ours = [int(bytes(document.astype(np.uint8)).split()[0]) for document in documents(folder, "val")]
    assert len(expected) == 4
    assert expected <= set(ours)  # and more, for 200,000 tokens
    assert 200_000 <= len(tokens_of(folder, "val")) < 201_000


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda d: d / "nowhere.txt",
            "no corpus or file .*nowhere.txt.*; known corpora: wikitext2, wikitext103, ",
        ),
        (
            lambda d: write(d / "c.parquet", DOCUMENTS, "body"),
            "has no column 'text'; its columns: body, title; set",
        ),
        (lambda d: write(d / "c.jsonl", [None, "a"]), "row 0: 'text' is NoneType, not text"),
        (lambda d: write(d / "c.csv", DOCUMENTS), "c.csv is not a text corpus; files must end in .parquet, .json"),
        (lambda d: write(d / "c.txt", ["one line\n"]), "a corpus of 1 document is too small to hold out any"),
        (lambda d: write(d / "c.txt", []), "the corpus holds no text"),
        (lambda d: d, "train.bin is not a file of uint16 tokens; such a folder holds train.bin and val.bin"),
    ],
)
def test_bad_corpora(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    tokenizer = "gpt2" if "val.bin" in said else "bytes"
    with pytest.raises(UserError, match=said):
        prepare(str(make(tmp_path)), tokenizer, tmp_path, "text", workers=1)


def test_broken_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", DOCUMENTS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"c.parquet cannot be read as parquet: "):
        prepare(str(path), "bytes", tmp_path, "text", workers=1)


def test_ready_pair_of_nanogpt(tmp_path: Path) -> None:
    pair = tmp_path / "openwebtext"
    pair.mkdir()
    tokens = np.arange(3000).astype(np.uint16)
    tokens[::100] = 50256
    for split in ("train", "val"):
        tokens.tofile(pair / f"{split}.bin")
    folder = prepare(str(pair), "gpt2", tmp_path, "text", workers=1)
    description = described(folder, "train")
    assert (description["file"], description["tokens"], description["documents"]) == (str(pair / "train.bin"), 3000, 30)
    with pytest.raises(UserError, match="nanoGPT's token files, which are gpt2's, not tokenizer=bytes"):
        prepare(str(pair), "bytes", tmp_path, "text", workers=1)
    tokens[7] = 50300
    tokens.tofile(pair / "val.bin")
    with pytest.raises(UserError, match="of another tokenizer than gpt2: highest token 50300"):
        prepare(str(pair), "gpt2", tmp_path, "text", workers=1)


def test_made_again_when_the_text_changes_or_a_file_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", DOCUMENTS)
    folder = prepare(str(path), "bytes", tmp_path, "text", workers=1)
    first, stamp = tokens_of(folder, "train"), (folder / "train.bin").stat().st_mtime_ns
    prepare(str(path), "bytes", tmp_path, "text", workers=1)
    assert (folder / "train.bin").stat().st_mtime_ns == stamp
    content = bytearray((folder / "train.bin").read_bytes())
    content[50] ^= 1
    (folder / "train.bin").write_bytes(content)
    prepare(str(path), "bytes", tmp_path, "text", workers=1)
    assert np.array_equal(tokens_of(folder, "train"), first)
    write(path, [text.upper() for text in DOCUMENTS])
    prepare(str(path), "bytes", tmp_path, "text", workers=1)
    assert not np.array_equal(tokens_of(folder, "train"), first)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (preparation.TOKENS, lambda content: content[:50] + bytes(50) + content[100:]),
        (preparation.TOKENS, lambda content: content[:-2]),
        (preparation.PROGRESS, lambda content: b"nonsense"),
    ],
)
def test_a_damaged_beginning_is_not_continued(
    file: str, change: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    path = str(write(tmp_path / "c.jsonl", DOCUMENTS))
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_divide", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(path, "bytes", tmp_path, "text", workers=1)
    (begun,) = tmp_path.glob(f"language/*.unfinished/{file}")
    begun.write_bytes(change(begun.read_bytes()))
    with pytest.raises(UserError, match=rf"damaged {begun}: .*; delete {begun.parent} to start over"):
        prepare(path, "bytes", tmp_path, "text", workers=1)


def test_what_is_ready_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write(tmp_path / "c.jsonl", DOCUMENTS))
    folder = prepare(path, "bytes", tmp_path, "text", workers=1)
    monkeypatch.setattr(preparation, "FileLock", None)  # a lock would have to be written to the folder
    assert prepare(path, "bytes", tmp_path, "text", workers=1) == folder
    (folder / "val.json").write_text("[]")
    with pytest.raises(UserError, match=r"damaged .*val\.json: it holds no object"):
        preparation.verify(folder, "val", None)


def test_tokenizers(cache: Path) -> None:
    text = "Naïve café, 東京 — <|endoftext|>\n\n  def f(x):\treturn x ** 2"
    for name in tokenizers.VOCABULARY:
        tokenizer = tokenizers.load(name, cache)
        encoded = tokenizer.encode(text)
        assert encoded.dtype == np.uint16
        assert tokenizer.end not in encoded  # what is written in the text is text
        assert tokenizer.decode(encoded.tolist()) == text
        assert tokenizers.VOCABULARY[name] == tokenizer.tokens > tokenizer.end


def test_gpt2_agrees_with_an_independent_tokenizer(cache: Path, text_dir: Path) -> None:
    """Hugging Face's byte pairs, from the same two files."""
    gpt2 = tokenizers.load("gpt2", cache)
    folder = Path(os.environ["TIKTOKEN_CACHE_DIR"])
    names = [hashlib.sha1((tokenizers.TIKTOKEN_URL + name).encode()).hexdigest() for name in tokenizers.TIKTOKEN_FILES]
    merges, vocabulary = (str(folder / name) for name in names)
    text = bytes(tokens_of(folder_of("wikitext2", "bytes", text_dir), "val")[:300_000].astype(np.uint8)).decode()
    theirs = ByteLevelBPETokenizer(vocabulary, merges).encode(text).ids
    assert gpt2.encode(text).tolist() == theirs
    assert gpt2.encode("Hello world").tolist() == [15496, 995]  # known from GPT-2's release


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A corpus of some 30 MB, thirty groups of documents."""
    texts = [f"{i}: " + " ".join(DOCUMENTS[(i + j) % 2000] for j in range(10)) for i in range(30_000)]
    return write(tmp_path / "large.jsonl", texts)


def progress(folder: Path) -> dict[str, Any]:
    path = folder.with_name(f"{folder.name}.unfinished") / "progress.json"
    return json.loads(path.read_text()) if path.exists() else {"documents": {}}


@pytest.mark.slow
def test_kill_9_and_resume(large: Path, cache: Path, tmp_path: Path) -> None:
    """Killed between documents: no token file counts, what was tokenised is not tokenised again, the end is the
    same."""
    data = tmp_path / "killed"
    arguments = ["language", "data=files", f"data.first=[{large}]", f"data.second=[{large}]", "tokenizer=bytes"]
    folder = folder_of(str(large), "bytes", data)
    process = start_module("scripts.prepare_data", *arguments, "--data-dir", str(data), "--workers", "1")
    status, _ = interrupt(process, lambda: progress(folder)["documents"].get("train", 0) >= 2000, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert not folder.exists()
    done = progress(folder)["documents"]["train"]
    assert 2000 <= done < 30_000
    encoded = []

    class Counted(tokenizers.Bytes):
        def encode(self, text: str) -> np.ndarray:
            encoded.append(text)
            return super().encode(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "Bytes", Counted)
        prepare(str(large), "bytes", data, "text", workers=2)
    assert len(encoded) == 30_000 - done
    assert {path.name for path in folder.iterdir()} == {"train.bin", "train.json", "val.bin", "val.json"}
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f".{folder.name}.lock"}
    whole = prepare(str(large), "bytes", tmp_path / "whole", "text", workers=1)
    for split in ("train", "val"):
        assert described(folder, split)["sha256"] == described(whole, split)["sha256"]


@pytest.mark.parametrize("name", ["write_text", "_divide", "_parts", "_copy", "checksum", "sync_folder"])
def test_a_kill_at_any_step(tmp_path: Path, name: str) -> None:
    """Each step that writes fails once at each of its calls; the next call ends with the same files, or another text's
    if the text has changed meanwhile."""
    path = write(tmp_path / "c.jsonl", DOCUMENTS)
    folder, real = folder_of(str(path), "bytes", tmp_path), getattr(preparation, name)
    whole = prepare(str(path), "bytes", tmp_path / "whole", "text", workers=1)
    for call in range(1, 4):
        left = [call]

        def dies(*arguments: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return real(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(preparation, name, dies)
            try:
                prepare(str(path), "bytes", tmp_path, "text", workers=1)
            except KeyboardInterrupt:
                assert not folder.exists() or name == "sync_folder"
        prepare(str(path), "bytes", tmp_path, "text", workers=1)
        for split in ("train", "val"):
            assert (folder / f"{split}.bin").read_bytes() == (whole / f"{split}.bin").read_bytes()
        shutil.rmtree(folder)


def test_tokens_of_another_text_are_never_used(tmp_path: Path) -> None:
    """Neither those of an unfinished corpus, nor ready ones."""
    path = write(tmp_path / "c.jsonl", DOCUMENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "_divide", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(str(path), "bytes", tmp_path, "text", workers=1)
    assert progress(folder_of(str(path), "bytes", tmp_path))["documents"] == {"train": 2000}
    write(path, [text.upper() for text in DOCUMENTS])
    folder = prepare(str(path), "bytes", tmp_path, "text", workers=1)
    found = b"".join(tokens_of(folder, split).tobytes() for split in ("train", "val"))
    assert len(found) == 2 * sum(len(text.upper().encode()) + 1 for text in DOCUMENTS)
    first = bytes(documents(folder, "train")[0].astype(np.uint8)).decode()
    assert first == first.upper()


def test_two_processes(tmp_path: Path) -> None:
    """The second waits for the first, which here ends without a result, and then prepares the corpus."""
    path = write(tmp_path / "c.jsonl", DOCUMENTS)
    folder = folder_of(str(path), "bytes", tmp_path)
    folder.parent.mkdir()
    code = "import sys; from pathlib import Path; from experiments.language.prepare import prepare; import logging; "
    code += "logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout); "
    code += "prepare(sys.argv[1], 'bytes', Path(sys.argv[2]), 'text', workers=1)"
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", code, str(path), str(tmp_path)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"waiting for another process that prepares {folder}\n"
        assert not folder.exists()
    assert process.wait(60) == 0
    assert described(folder, "train")["documents"] > 0


# Not getrusage: its peak counts what the process that forked this one had in memory.
MEASURE = """
import sys
from pathlib import Path
from experiments.language.prepare import prepare
prepare(sys.argv[1], "bytes", Path(sys.argv[2]), "text", workers=2)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    peaks = []
    for copies in (1, 12):
        path = tmp_path / f"{copies}.jsonl"
        with path.open("w") as file:
            for i in range(3000 * copies):
                text = f"{i}: " + " ".join(DOCUMENTS[(i + j) % 2000] for j in range(100))
                file.write(json.dumps({"text": text}) + "\n")
        arguments = [sys.executable, "-c", MEASURE, str(path), str(tmp_path)]
        result = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        peaks.append(int(result.stdout.split()[-1]) * 1024)
    assert path.stat().st_size > 350e6
    assert peaks[1] < 2e9
    assert peaks[1] - peaks[0] < 250e6


def test_command_line(text_dir: Path, tmp_path: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scripts.prepare_data", "language", *arguments, "--data-dir", str(text_dir)]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    ready = call("data=wikitext2_imdb")
    assert ready.returncode == 0
    assert ready.stdout.count("checksums right") == 2
    for arguments, said in (
        (("data=nothing",), "Could not find 'data/nothing'"),
        (("data=files",), "data=files needs data.first=[...] and data.second=[...]"),
        (("data.frist=[a]",), "did you mean 'data.first'?"),
    ):
        wrong = call(*arguments)
        assert wrong.returncode == 1
        assert wrong.stderr.startswith("error: ")
        assert said in wrong.stderr
        assert wrong.stderr.count("\n") == 1
