"""The MuJoCo models of HumanoidBench's H1 tasks: fetched once, verified file by file.

They are HumanoidBench's own (Sferrazza et al. 2024, MIT licence), and come from its archive or, where that cannot be
reached, from the Python package robust-gymnasium, which carries the same files but for an older balance board.
"""

import hashlib
import logging
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from experiments.common.errors import UserError
from experiments.common.fetch import default_data_dir, download, extract, pip_download, write_atomically

logger = logging.getLogger("fire")

COMMIT = "791405f5eacf879adbc99105adb3fee73f5a49fc"
ARCHIVE = "https://github.com/carlosferrazza/humanoid-bench/archive/{commit}.tar.gz"
PACKAGE = "robust-gymnasium==0.1.4"
PACKAGE_SHA256 = "26f12629577d3a3e3c61613bb948dad318cc97383ead94d14fa6cd1946d36093"
PACKAGE_FOLDER = "robust_gymnasium/envs/robust_humanoid/assets"
# What makes the board of the package the one of HumanoidBench.
_KEYFRAME = [(b"-0.1 0 1.32 1 ", b"-0.1 0 1.38 1 "), (b"0 0 0.34 1 ", b"0 0 0.37 1 ")]
_BOARD = [(b'"stand_board" pos="0 0 0.34"', b'"stand_board" pos="0 0 0.37"'), (b"0.15 0.55 0.01", b"0.15 0.55 0.03")]
CORRECTIONS = {
    "envs/h1_pos_balance_simple.xml": _KEYFRAME,
    "envs/h1_pos_balance_hard.xml": _KEYFRAME,
    "tasks/balance_simple.xml": _BOARD,
    "tasks/balance_hard.xml": _BOARD,
}
_LINES = Path(__file__).with_name("assets.sha256").read_text().splitlines()
SHA256 = {name: checksum for checksum, name in map(str.split, _LINES)}
COMMAND = "python -m scripts.prepare_data humanoid"


def folder(data_dir: Path) -> Path:
    """Where the models are kept."""
    return data_dir / "humanoid_bench"


def check(data_dir: Path) -> Path:
    """The folder of the models, every file of which is there and right.

    Raises:
        UserError: one is missing or damaged; the line says which command fetches them.
    """
    if faults := _faults(folder(data_dir)):
        where = "" if data_dir == default_data_dir() else f" --data-dir {shlex.quote(str(data_dir))}"
        raise UserError(f"{faults[0]}; fetch the models with: {COMMAND}{where}")
    return folder(data_dir)


def prepare(data_dir: Path) -> list[Path]:
    """Fetch what is missing or damaged, and return all files.

    Raises:
        UserError: they cannot be had.
    """
    target = folder(data_dir)
    if _faults(target):  # a shared folder need not be writable
        try:
            target.mkdir(parents=True, exist_ok=True)
            with FileLock(target / ".lock"):
                _fetch(data_dir, target)
        except OSError as error:
            raise UserError(f"data_dir={data_dir} cannot be used: {error}") from error
    return [target / name for name in SHA256]


def _fetch(data_dir: Path, target: Path) -> None:
    reasons = _faults(target)
    for source in (_from_archive, _from_package):
        if not reasons:
            return
        with tempfile.TemporaryDirectory(dir=data_dir) as temporary:
            try:
                source(Path(temporary), target)
                reasons = _faults(target)
            except UserError as error:
                logger.info("%s", error)
                reasons.append(str(error))
    if faults := _faults(target):
        causes = [reason for reason in reasons if reason not in faults]
        raise UserError(
            f"HumanoidBench's models cannot be had: {len(faults)} of {len(SHA256)} files in {target} are missing or "
            f"damaged; {'; '.join(causes)}"
        )


def _faults(target: Path) -> list[str]:
    """A line for each file that is missing or damaged."""
    faults = []
    for name, checksum in SHA256.items():
        path = target / name
        if not path.exists():
            faults.append(f"{path} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            faults.append(f"{path} is damaged: its SHA-256 is not {checksum}")
    return faults


def _from_archive(temporary: Path, target: Path) -> None:
    archive = temporary / "humanoid-bench.tar.gz"
    download(ARCHIVE.format(commit=COMMIT), archive)
    _unpack(archive, f"humanoid-bench-{COMMIT}/humanoid_bench/assets", target, lambda _, content: content)


def _from_package(temporary: Path, target: Path) -> None:
    wheel = pip_download(PACKAGE, temporary, megabytes=237)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != PACKAGE_SHA256:
        raise UserError(f"{wheel.name} is not the file it should be: its SHA-256 is not {PACKAGE_SHA256}")
    _unpack(wheel, PACKAGE_FOLDER, target, corrected)


def _unpack(archive: Path, prefix: str, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent) as unpacked:
        places = {name: Path(unpacked) / f"{number}" for number, name in enumerate(SHA256)}
        extract(archive, {f"{prefix}/{name}": place for name, place in places.items()})
        for name, place in places.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target / name, change(name, place.read_bytes()))


def corrected(name: str, content: bytes) -> bytes:
    """A file of the package as HumanoidBench has it."""
    for old, new in CORRECTIONS.get(name, ()):
        content = content.replace(old, new)
    return content
