"""Sequences, mixtures and validation windows, on the real token files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.common.errors import UserError
from experiments.language import corpora
from experiments.language.corpora import Corpus, Mixture


def load(text_dir: Path, *entries: str, block: int = 64, first_tokens: int | None = None) -> Corpus:
    return corpora.load(list(entries), "bytes", text_dir, block, "prepare it", first_tokens)


def contains(tokens: np.ndarray, sequence: np.ndarray) -> bool:
    return tokens.astype(np.uint16).tobytes().find(sequence.astype(np.uint16).tobytes()) >= 0


def test_sequences_are_stretches_of_the_corpus(text_dir: Path) -> None:
    both = load(text_dir, "wikitext2", "imdb")
    places = torch.linspace(0, 1 - 1e-9, 20, dtype=torch.float64)
    sequences = both.sequences(places, 64)
    assert sequences.shape == (20, 65)
    share = len(both.train[0]) / sum(map(len, both.train))
    first = [contains(both.train[0], sequence) for sequence in sequences]
    assert sum(first) == pytest.approx(20 * share, abs=1)  # as often as there is text of it
    rest = [sequence for sequence, is_first in zip(sequences, first, strict=True) if not is_first]
    assert all(contains(both.train[1], sequence) for sequence in rest)
    assert (sequences[0] == both.train[0][:65]).all()
    assert (sequences[-1] == both.train[1][-65:]).all()  # to the very end


def test_first_tokens_is_the_front(text_dir: Path) -> None:
    whole, front = load(text_dir, "wikitext2"), load(text_dir, "wikitext2", first_tokens=1000)
    assert (front.train[0] == whole.train[0][:1000]).all()
    assert len(front.train[0]) == 1000
    assert (front.val[0] == whole.val[0]).all()
    assert front.identity != whole.identity
    over = load(text_dir, "wikitext2", "imdb", first_tokens=len(whole.train[0]) + 500)
    assert [len(part) for part in over.train] == [len(whole.train[0]), 500]


def test_windows_are_fixed_spread_and_apart(text_dir: Path) -> None:
    corpus = load(text_dir, "wikitext2")
    windows = corpus.windows(64, 100)
    assert windows.shape == (100, 65)
    assert torch.equal(windows, corpus.windows(64, 100))
    held_out = corpus.val[0]
    assert (windows[0].numpy() == held_out[:65]).all()
    places = [held_out.tobytes().find(w.numpy().astype(np.uint16).tobytes()) // 2 for w in windows]
    assert min(np.diff(places)) >= 64
    assert places[-1] > len(held_out) - 2 * 65
    assert len(corpus.windows(64, 10**9)) == (len(held_out) - 1) // 64


def test_windows_of_several_files_are_in_their_proportions(text_dir: Path) -> None:
    both = load(text_dir, "wikitext2", "imdb")
    shares = np.array([len(tokens) for tokens in both.train]) / sum(map(len, both.train))
    windows = both.windows(64, 1000)
    first = sum(contains(both.val[0], window.numpy()) for window in windows)
    assert first / len(windows) == pytest.approx(shares[0], abs=0.01)
    every = both.windows(64, 10**9)  # as many as the scarcer text allows
    assert len(every) == pytest.approx((len(both.val[1]) // 64) / shares[1], abs=2)


def test_mixture_draws_each_sequence(text_dir: Path) -> None:
    first, second = load(text_dir, "wikitext2", first_tokens=5000), load(text_dir, "imdb")
    mixture = Mixture(first, second, 0.3, 64)
    batches = [mixture.batch(seed=0, phase=1, iteration=i, size=50) for i in range(20)]
    share = np.mean([contains(first.train[0], sequence.numpy()) for batch in batches for sequence in batch])
    assert share == pytest.approx(0.3, abs=0.04)
    within = [sum(contains(first.train[0], s.numpy()) for s in batch) for batch in batches]
    assert len(set(within)) > 3  # sequence by sequence, not batch by batch
    assert torch.equal(mixture.batch(0, 1, 7, 50), batches[7])  # whatever was drawn before
    assert not torch.equal(mixture.batch(1, 1, 7, 50), batches[7])
    only_first = Mixture(first, None, 0.0, 64).batch(0, 0, 0, 20)
    assert all(contains(first.train[0], sequence.numpy()) for sequence in only_first)


@pytest.fixture
def copied(text_dir: Path, tmp_path: Path) -> Path:
    """A data folder with token files of its own to spoil."""
    for name in ("wikitext2-bytes", "imdb-bytes"):
        (tmp_path / "language" / name).mkdir(parents=True)
        for split in ("train", "val"):
            source = text_dir / "language" / name
            for suffix in ("bin", "json"):
                shutil.copy(source / f"{split}.{suffix}", tmp_path / "language" / name)
    return tmp_path


def rewrite(folder: Path, **changes: object) -> None:
    sidecar = folder / "language/imdb-bytes/val.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **changes}))


def flip(folder: Path) -> None:
    path = folder / "language/imdb-bytes/val.bin"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "language/imdb-bytes/train.json").unlink(), "imdb is not prepared .* prepare it"),
        (
            lambda folder: (folder / "language/imdb-bytes/train.bin").unlink(),
            "train.bin is missing or damaged; .* prepa",
        ),
        (flip, "val.bin is missing or damaged"),
        (lambda folder: rewrite(folder, tokenizer="gpt2"), "was made with tokenizer=gpt2, not bytes"),
    ],
)
def test_bad_token_files(copied: Path, spoil: Callable[[Path], None], said: str) -> None:
    assert load(copied, "imdb").train
    spoil(copied)
    with pytest.raises(UserError, match=said):
        load(copied, "imdb")


def test_block_longer_than_the_corpus(text_dir: Path) -> None:
    with pytest.raises(
        UserError, match=r"budget.block=100 is longer than the train text of wikitext2: 90 bytes tokens"
    ):
        load(text_dir, "wikitext2", block=100, first_tokens=90)
