"""`data.split=published`: the authors' order of the training text, and the lines that they hold out.

The oracle is the datasets library, whose `train_test_split(test_size=0.0005, seed=2357, shuffle=True)` they call. They
append an end token to every row of its two parts, and the rows to each other.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiktoken

from experiments.language import prepare as preparation
from experiments.language import tokenizers
from experiments.language.prepare import prepare
from experiments.language.sources import folder_of
from tests.conftest import REPOSITORY, Command, numbers, run_dirs
from tests.experiments.language.test_config import directories
from tests.experiments.language.test_prepare import described, documents, tokens_of, write
from tests.experiments.language.test_sources import serving

# Like WikiText-103's: blank lines, titles, and tokens such as <unk>; many are equal to others.
LINES = [["", f" = Title {i} = \n", "", f" <unk> said {i} @,@ 000 words . \n", " Größe \n"][i % 5] for i in range(4100)]
OFFICIAL_LINES = [" = Held out = \n", "", " Official . \n"] * 20


def as_bytes(text: str) -> list[int]:
    return list(text.encode())


def oracle(lines: list[str], encode: Callable[[str], list[int]], end: int) -> dict[str, list[int]]:
    """The tokens of the authors' train.bin and val.bin."""
    parts = datasets.Dataset.from_dict({"text": lines}).train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    rows = {"train": parts["train"]["text"], "val": parts["test"]["text"]}
    return {name: [token for text in texts for token in [*encode(text), end]] for name, texts in rows.items()}


def check(folder: Path, lines: list[str], encode: Callable[[str], list[int]] = as_bytes, end: int = 256) -> None:
    """The token files in a folder are the oracle's."""
    for split, expected in oracle(lines, encode, end).items():
        tokens, description = tokens_of(folder, split), described(folder, split)
        assert tokens.tolist() == expected
        assert (description["tokens"], description["documents"]) == (len(expected), expected.count(end))
        assert description["sha256"] == hashlib.sha256(tokens.tobytes()).hexdigest()
        assert description["held_out"] == f"{-(-len(lines) // 2000)} of {len(lines)} documents, seed 2357, shuffled"


@pytest.mark.parametrize("count", [2, 2000, 2001, 4100])
def test_token_files_are_the_authors(count: int, tmp_path: Path) -> None:
    path = write(tmp_path / "lines.parquet", LINES[:count])
    check(prepare(str(path), "bytes", tmp_path, "text", workers=2, published=True), LINES[:count])


def test_with_gpt2s_tokens(cache: Path, tmp_path: Path) -> None:
    tokenizers.load("gpt2", cache)  # its files are there from now on
    path, encoding = write(tmp_path / "lines.jsonl", LINES), tiktoken.get_encoding("gpt2")
    (tmp_path / "tiktoken").symlink_to(cache / "tiktoken")
    folder = prepare(str(path), "gpt2", tmp_path, "text", workers=2, published=True)
    check(folder, LINES, encoding.encode_ordinary, encoding.eot_token)


def test_the_held_out_lines_of_wikitext103() -> None:
    """NumPy does not promise that a permutation stays the same in its next version; with another, these lines would no
    longer be the authors'."""
    train, val, _ = preparation._parts(np.ones(1_801_350, int), {"train": 1_801_350}, published=True)
    assert (len(val), val[:4].tolist()) == (901, [742515, 165002, 377569, 1623160])
    assert (train[:3].tolist(), train[-1]) == ([92980, 1774832, 1583659], 1414865)
    assert len(np.unique(np.concatenate([train, val]))) == 1_801_350


@pytest.mark.slow
def test_both_splits_of_wikitext103_from_the_hub_by_the_command_line(tmp_path: Path) -> None:
    files = {
        f"wikitext-103-v1/{name}.parquet": write(tmp_path / "t.parquet", lines).read_bytes()
        for name, lines in (
            ("train-00000-of-00002", LINES[:3000]),
            ("train-00001-of-00002", LINES[3000:]),
            ("validation-00000-of-00001", OFFICIAL_LINES),
            ("test-00000-of-00001", ["never read"]),
        )
    }
    data = tmp_path / "data"
    with serving("Salesforce/wikitext", files) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        for words in ([], ["data.split=official"]):
            command = [
                *("-m", "scripts.prepare_data", "language", "scale=paper", "data.second=[wikitext103]"),
                *("tokenizer=bytes", *words, "--data-dir", str(data)),
            ]
            result = subprocess.run(
                [sys.executable, *command],
                cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert result.returncode == 0, result.stdout + result.stderr
    published, official = (data / "language" / name for name in ("wikitext103-published-bytes", "wikitext103-bytes"))
    assert {path.name for path in (data / "language").iterdir() if path.is_dir()} == {published.name, official.name}
    check(published, LINES)
    for split, lines in (("train", LINES), ("val", OFFICIAL_LINES)):
        expected = [token for text in lines for token in [*text.encode(), 256]]
        assert tokens_of(official, split).tolist() == expected
        assert described(official, split)["held_out"] == "official split"


def test_the_splits_are_two_corpora_and_two_runs(made_text: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Each has its own folder; what one prepares, the other does not replace."""
    folder, words = made_text
    for name in ("first", "second"):
        path = str(folder / f"{name}.txt")
        official = prepare(path, "bytes", tmp_path, "text", workers=1)
        before = (official / "train.bin").read_bytes()
        published = prepare(path, "bytes", tmp_path, "text", workers=1, published=True)
        assert published != official
        assert (official / "train.bin").read_bytes() == before
        both = [sorted(d.tobytes() for s in ("train", "val") for d in documents(f, s)) for f in (official, published)]
        assert both[0] == both[1]
    runs, phases = zip(
        *(directories(tmp_path, *words, f"data.split={split}") for split in ("official", "published")), strict=True
    )
    assert runs[0] != runs[1]
    assert phases[0] != phases[1]
    assert (runs[0], phases[0]) == directories(tmp_path, *words)


def test_nanogpts_token_files_are_what_they_are(tmp_path: Path) -> None:
    """Those that the authors' script has made are split as theirs already."""
    for split in ("train", "val"):
        np.array([1, 2, 50256, 3, 50256], np.uint16).tofile(tmp_path / f"{split}.bin")
    for published in (True, False):
        folder = prepare(str(tmp_path), "gpt2", tmp_path / "data", "text", workers=1, published=published)
        assert described(folder, "train")["file"] == str(tmp_path / "train.bin")


@pytest.mark.slow
def test_a_run_says_how_to_prepare_it_and_trains(command_line: Callable[..., Command], tmp_path: Path) -> None:
    """The lines have numbers: with data.split=published the run trains on them in another order."""
    data, path = tmp_path / "data", write(tmp_path / "lines.jsonl", [f"line {i}\n" for i in range(8000)])
    call = command_line("language", data)
    words = ["data=files", f"data.first=[{path}]", f"data.second=[{path}]"]
    losses = []
    for split in ("official", "published"):
        run = (*words, f"data.split={split}", "method=none", "budget.first_tokens=null", "budget.eval_windows=1000")
        outputs = tmp_path / split
        status, printed = call(*run, f"outputs_dir={outputs}")
        assert status == 1
        (_, module, *rest) = printed.strip().split("to do so: python ")[1].replace("'", "").split()
        assert ("data.split=published" in rest) == (split == "published")
        subprocess.run([sys.executable, "-m", module, *rest], cwd=REPOSITORY, check=True, capture_output=True)
        status, printed = call(*run, f"outputs_dir={outputs}")
        assert status == 0, printed
        (directory,) = run_dirs(outputs)
        losses.append(numbers(directory)[-1]["val/loss_first"])
        folder = folder_of(str(path), "bytes", data, published=split == "published")
        found = [int(bytes(d.astype(np.uint8)).split()[1]) for d in documents(folder, "train")]
        assert (found == sorted(found)) == (split == "official")
    assert losses[0] != losses[1]
