"""Files with checksums: several sources, nothing wrong or half-written, nothing left over."""

import contextlib
import hashlib
import io
import logging
import os
import shutil
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from experiments.common import fetch
from experiments.common.errors import UserError
from experiments.common.fetch import Files, read_members
from experiments.common.files import ABANDONED_SECONDS, write_bytes

CONTENT = {"a.txt": b"first", "folder/b.txt": b"second"}
CHECKSUMS = {"a.txt": hashlib.md5(b"first").hexdigest(), "folder/b.txt": hashlib.sha256(b"second").hexdigest()}


def unreachable(_: Path, temporary: Path) -> Iterator[tuple[str, bytes]]:
    (temporary / "part").write_bytes(b"half")
    yield "a.txt", CONTENT["a.txt"]
    raise UserError("the host is down")


def wrong(_: Path, __: Path) -> list[tuple[str, bytes]]:
    return [("a.txt", b"firsT"), ("folder/b.txt", b"seconD")]


def right(_: Path, __: Path) -> list[tuple[str, bytes]]:
    return list(CONTENT.items())


def files(**sources: fetch.Source) -> Files:
    return Files("Two files", "two", CHECKSUMS, sources, megabytes=1)


def everything(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found.pop(".lock") == b""
    return found


def test_first_source_that_works_gives_what_is_missing(tmp_path: Path) -> None:
    folder = files(down=unreachable, old=wrong, good=right).prepare(tmp_path)
    assert everything(folder) == CONTENT
    assert not [path for path in folder.iterdir() if path.name.startswith(".download-")]


def test_one_line_gives_all_reasons_and_nothing_wrong_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        files(down=unreachable, old=wrong).prepare(tmp_path)
    assert str(error.value) == (
        f"Two files cannot be had: 1 of 2 files are missing or damaged; {tmp_path}/two/folder/b.txt is missing; "
        "down: the host is down; old: wrong checksum of 2 files, the first a.txt"
    )
    assert everything(tmp_path / "two") == {"a.txt": b"first"}


def test_damage_is_found_and_intact_files_stay(tmp_path: Path) -> None:
    folder = files(good=right).prepare(tmp_path)
    intact = (folder / "a.txt").stat()
    (folder / "folder/b.txt").write_bytes(b"seconD")
    assert files().faults(tmp_path) == {
        "folder/b.txt": f"{folder}/folder/b.txt is damaged: its SHA-256 is not {CHECKSUMS['folder/b.txt']}"
    }
    files(good=right).prepare(tmp_path)
    assert everything(folder) == CONTENT
    assert (folder / "a.txt").stat().st_ino == intact.st_ino


def test_intact_files_need_no_source_and_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(good=right).prepare(tmp_path)
    monkeypatch.setattr(fetch, "FileLock", None)  # a lock would have to be written to the folder
    assert files().prepare(tmp_path) == tmp_path / "two"


def test_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data_dir=.*/file cannot be used: "):
        files(good=right).prepare(tmp_path / "file")
    (tmp_path / "two/a.txt").mkdir(parents=True)
    with pytest.raises(UserError, match=r"a\.txt cannot be read: .*cannot write"):
        files(good=right).prepare(tmp_path)


def test_leftovers_of_killed_processes_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "two/.download-killed").mkdir(parents=True)
    (tmp_path / "two/.download-killed/archive").write_bytes(b"half")
    abandoned, in_use = tmp_path / "two/.a.txt.0123.tmp", tmp_path / "two/.a.txt.4567.tmp"
    for leftover in (abandoned, in_use):
        leftover.write_bytes(b"fir")
    hours_ago = time.time() - 2 * ABANDONED_SECONDS
    os.utime(abandoned, (hours_ago, hours_ago))
    files(good=right).prepare(tmp_path)
    assert everything(tmp_path / "two") == {**CONTENT, in_use.name: b"fir"}


def test_temporary_file_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where its name is guessed."""
    (tmp_path / "victim").write_bytes(b"precious")
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".target.guessed.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=r"cannot write .*target"):
        write_bytes(tmp_path / "target", b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    monkeypatch.undo()
    umask = os.umask(0o022)
    try:
        write_bytes(tmp_path / "target", b"new")
    finally:
        os.umask(umask)
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o644  # a shared folder can be read by others
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "victim"]


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "target").write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*target: .*No space left on device"):
        write_bytes(tmp_path / "target", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"target": b"old"}


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_members_of_an_archive(kind: str, tmp_path: Path) -> None:
    archive = tmp_path / f"archive.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in CONTENT.items():
                packed.writestr(f"inside/{name}", content)
    else:
        with tarfile.open(archive, "w:gz") as tar:
            for name, content in CONTENT.items():
                info = tarfile.TarInfo(f"inside/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert dict(read_members(archive, ["folder/b.txt", "a.txt"], "inside/")) == CONTENT
    assert list(read_members(archive, ["a.txt"], "inside/")) == [("a.txt", b"first")]
    with pytest.raises(UserError, match=rf"archive\.{kind} has no file inside/c\.txt"):
        list(read_members(archive, ["a.txt", "c.txt"], "inside/"))
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(UserError, match=rf"archive\.{kind} is damaged"):
        list(read_members(archive, CONTENT, "inside/"))


def test_processes_that_start_together_fetch_once(tmp_path: Path) -> None:
    calls = []

    def slow(data_dir: Path, _: Path) -> list[tuple[str, bytes]]:
        calls.append(data_dir)
        time.sleep(0.3)
        return list(CONTENT.items())

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(files(slow=slow).prepare, [tmp_path] * 3))) == 1
    assert calls == [tmp_path]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a host that sends a byte every 20 ms, to a client that calls that slow after 0.2 s."""

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "40")
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has left
                for _ in range(40):
                    self.wfile.write(b"x")
                    time.sleep(0.02)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(fetch, "SLOW_SECONDS", 0.2)
    host = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{host.server_port}/archive"
    host.shutdown()


@pytest.mark.parametrize("other", [right, unreachable])
def test_a_slow_source_is_left_for_the_next_and_waited_for_if_there_is_none(
    other: fetch.Source, server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def slow(_: Path, temporary: Path) -> list[tuple[str, bytes]]:
        asked.append("slow")
        fetch.download(server, temporary / "archive")
        assert (temporary / "archive").read_bytes() == b"x" * 40
        return list(CONTENT.items())

    with caplog.at_level("INFO", "fire"):
        logging.getLogger("fire").propagate = True
        assert everything(files(slow=slow, other=other).prepare(tmp_path)) == CONTENT
    assert asked == (["slow"] if other is right else ["slow", "slow"])
    assert "fetching archive from 127.0.0.1, which has 20 s to answer" in caplog.text
    assert "slow: 127.0.0.1 sends 0 kB/s, which is slow" in caplog.text


def test_npm_says_why_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(UserError, match=r"could not fetch the npm package left-pad@1.3.0: .*ECONNREFUSED"):
        fetch.npm_pack("left-pad@1.3.0", tmp_path, 1)
