"""The Hugging Face hub as a source of text, by its own client, from a server on this machine."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.language.sources import folder_of
from tests.conftest import REPOSITORY
from tests.experiments.language.test_prepare import DOCUMENTS, MEASURE, described, documents, write


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as its client asks of one data set."""

    files: dict[str, bytes]
    repository: str
    commit = "0" * 40

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = self.path.split("?")[0]
        if path.startswith(f"/api/datasets/{self.repository}"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            info = {"id": self.repository, "sha": self.commit, "siblings": siblings, "private": False, "tags": []}
            listing = [{"type": "file", "path": n, "size": len(c), "oid": "1" * 40} for n, c in self.files.items()]
            return self.answer(json.dumps(listing if "/tree/" in path else info).encode(), body, {})
        name = path.partition(f"/resolve/{self.commit}/")[2]
        if name in self.files:
            headers = {"ETag": f'"{hashlib.sha1(self.files[name]).hexdigest()}"', "X-Repo-Commit": self.commit}
            return self.answer(self.files[name], body, headers)
        self.send_error(404)
        return None

    def answer(self, content: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@contextmanager
def serving(repository: str, files: dict[str, bytes]) -> Iterator[str]:
    """A hub on this machine that has one data set; its address."""
    Hub.repository, Hub.files = repository, {"README.md": b"", **files}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A hub on this machine, which has IMDb as 400 reviews."""
    files = {}
    for split, texts in (("train", DOCUMENTS[:200]), ("test", DOCUMENTS[200:400]), ("unsupervised", DOCUMENTS[400:])):
        files[f"plain_text/{split}-00000-of-00001.parquet"] = write(tmp_path / "t.parquet", texts).read_bytes()
    with serving("stanfordnlp/imdb", files) as address:
        yield address


def test_from_the_hub_by_its_own_client(hub: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    code = MEASURE.replace("prepare(sys", "prepare('imdb', 'bytes', Path(sys.argv[1]), 'text', workers=1) #")
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data")],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    folder = folder_of("imdb", "bytes", tmp_path / "data")
    assert described(folder, "train")["origin"] == "stanfordnlp/imdb"
    found = {bytes(d.astype(np.uint8)).decode() for split in ("train", "val") for d in documents(folder, split)}
    assert found == set(DOCUMENTS[:400])
