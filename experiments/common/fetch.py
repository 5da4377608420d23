"""Getting data files: from their official host or a package registry, verified, whole or not at all."""

import hashlib
import http.client
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlparse

from filelock import FileLock
from tqdm import tqdm

from experiments.common.errors import UserError
from experiments.common.files import write_bytes

logger = logging.getLogger("fire")

DEFAULT_DATA = "~/.cache/fire"
TIMEOUT_SECONDS = 20
# A source that sends less than this over so many seconds is left for the next one.
SLOW_BYTES_PER_SECOND, SLOW_SECONDS = 200_000, 20.0
_patient: ContextVar[bool] = ContextVar("patient", default=True)  # whether a slow source is waited for
ALGORITHMS = {32: "MD5", 64: "SHA-256"}  # of checksums, by their number of hexadecimal digits

Source = Callable[[Path, Path], Iterable[tuple[str, bytes]]]
"""Given the data folder and an empty folder for downloads, yields file names and contents; raises UserError."""


class SlowSource(UserError):
    """A source is too slow, and there is another one."""


@dataclass(frozen=True)
class Files:
    """Files with checksums in a folder, and where to get them.

    Attributes:
        title: what error messages call them.
        folder: their folder in the data folder.
        checksums: MD5 (32 digits) or SHA-256 (64 digits) of each file, by its path in the folder.
        sources: by what error messages call them; the first that works is taken, and a slow one only if no other does.
        megabytes: size of the download.
    """

    title: str
    folder: str
    checksums: Mapping[str, str]
    sources: Mapping[str, Source]
    megabytes: int

    def faults(self, data_dir: Path) -> dict[str, str]:
        """For each file that is missing or damaged, a line that says so."""
        found = {}
        for name, checksum in self.checksums.items():
            path = data_dir / self.folder / name
            try:
                about = path.stat()
                if not _has_checksum(path, about.st_size, about.st_mtime_ns, checksum):
                    found[name] = f"{path} is damaged: its {ALGORITHMS[len(checksum)]} is not {checksum}"
            except FileNotFoundError:
                found[name] = f"{path} is missing"
            except OSError as error:
                found[name] = f"{path} cannot be read: {error}"
        return found

    def prepare(self, data_dir: Path) -> Path:
        """Fetch what is missing or damaged; returns the folder, in which every file is then right.

        Raises:
            UserError: no source has the files, or the folder cannot be written to.
        """
        folder = data_dir / self.folder
        if self.faults(data_dir):  # where nothing is missing, the folder need not be writable
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / ".lock"):  # the jobs of a parallel sweep start together
                    self._fetch(data_dir, folder)
            except OSError as error:
                raise UserError(f"data_dir={data_dir} cannot be used: {error}") from error
        return folder

    def _fetch(self, data_dir: Path, folder: Path) -> None:
        for leftover in folder.glob(".download-*"):  # of a killed process: the lock is ours
            shutil.rmtree(leftover)
        faults = self.faults(data_dir)  # another process may have fetched them in the meantime
        reasons = []
        turns = [(source, len(self.sources) == 1) for source in self.sources]
        for source, patient in turns:
            if not faults:
                return
            contents, wrong = self.sources[source], []
            token = _patient.set(patient)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
                try:
                    for name, content in contents(data_dir, Path(temporary)):
                        if not has_checksum(content, self.checksums[name]):
                            wrong.append(name)
                        elif name in faults:
                            (folder / name).parent.mkdir(parents=True, exist_ok=True)
                            write_bytes(folder / name, content)
                            del faults[name]
                except SlowSource as error:
                    logger.info("%s: %s", source, error)
                    turns.append((source, True))
                except (UserError, OSError) as error:
                    logger.info("%s: %s", source, error)
                    reasons.append(f"{source}: {error}")
                finally:
                    _patient.reset(token)
            if wrong:
                reasons.append(f"{source}: wrong checksum of {len(wrong)} files, the first {wrong[0]}")
        if faults:
            raise UserError(
                f"{self.title} cannot be had: {len(faults)} of {len(self.checksums)} files are missing or damaged; "
                + "; ".join([next(iter(faults.values())), *reasons])
            )
        logger.info("%s: all files are in %s, verified", self.title, folder)


def has_checksum(content: bytes, checksum: str) -> bool:
    """Whether a file has an MD5 (against damage, not against attack) or SHA-256, in hexadecimal digits."""
    algorithm = ALGORITHMS[len(checksum)].replace("-", "")
    return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() == checksum


@lru_cache
def _has_checksum(path: Path, size: int, changed: int, checksum: str) -> bool:
    """`has_checksum` of a file, read again only if its size or time has changed: the jobs of a sweep use the same."""
    return has_checksum(path.read_bytes(), checksum)


def default_data_dir() -> Path:
    """The user's data folder where no configuration says otherwise."""
    return Path(os.environ.get("FIRE_DATA") or DEFAULT_DATA).expanduser()


def download(url: str, target: Path) -> None:
    """Fetch `url` to `target` with a progress bar. UserError where the host is not reached, is slow or breaks off."""
    host = urlparse(url).hostname
    logger.info("fetching %s from %s, which has %d s to answer", target.name, host, TIMEOUT_SECONDS)
    request = urllib.request.Request(url, headers={"User-Agent": "fire-reinit"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as source, target.open("wb") as file:
            total = int(source.headers.get("Content-Length", 0)) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=target.name, mininterval=1) as bar:
                since, received = time.monotonic(), 0
                while block := source.read1(1 << 20):
                    file.write(block)
                    bar.update(len(block))
                    received += len(block)
                    if (seconds := time.monotonic() - since) >= SLOW_SECONDS:
                        if received < SLOW_BYTES_PER_SECOND * seconds and not _patient.get():
                            raise SlowSource(f"{host} sends {received / seconds / 1000:.0f} kB/s, which is slow")
                        since, received = time.monotonic(), 0
        if total and target.stat().st_size != total:
            raise UserError(f"{url} broke off after {target.stat().st_size} of {total} bytes")
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise UserError(f"cannot fetch {url}: {error}") from error


def npm_pack(package: str, folder: Path, megabytes: int) -> Path:
    """Fetch a package of about `megabytes` with the `npm` client; the archive in `folder`. UserError if it fails."""
    if shutil.which("npm") is None:
        raise UserError(f"the npm client, which could fetch the package {package} instead, is not installed")
    command = ["npm", "pack", package, "--loglevel=error", "--pack-destination"]
    return _run_client(command, folder, f"the npm package {package}", megabytes)


def pip_download(package: str, folder: Path, megabytes: int) -> Path:
    """Fetch a Python package, as `npm_pack` does, with the `pip` client; its wheel in `folder`."""
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"pip, which could fetch the Python package {package} instead, is not installed here")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    return _run_client([*pip, package, "--dest"], folder, f"the Python package {package}", megabytes)


def _run_client(command: list[str], folder: Path, what: str, megabytes: int) -> Path:
    print(f"fetching {what}, {megabytes} MB", flush=True)
    result = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise UserError(f"could not fetch {what}: {' '.join(result.stderr.split()) or 'no reason given'}")
    return next(path for path in folder.iterdir() if path.suffix in (".tgz", ".whl"))


def read_members(archive: Path, names: Iterable[str], prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """Name and content of the members `prefix` + name of a tar or zip archive (a wheel is one), in the archive's order.

    Raises:
        UserError: the archive is damaged or lacks one of them.
    """
    wanted = {prefix + name: name for name in names}
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for entry in packed.namelist():
                    if entry in wanted:
                        yield wanted.pop(entry), packed.read(entry)
        else:
            with tarfile.open(archive) as tar:
                for member in tar:  # in one pass: going back in a compressed archive means reading it again
                    file = tar.extractfile(member) if member.name in wanted else None
                    if file is not None:
                        yield wanted.pop(member.name), file.read()
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError) as error:
        raise UserError(f"{archive.name} is damaged: {error}") from error
    if wanted:
        raise UserError(f"{archive.name} has no file {next(iter(wanted))}")
