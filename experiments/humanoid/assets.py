"""The MuJoCo models of HumanoidBench's H1 tasks.

They are HumanoidBench's own (Sferrazza et al. 2024, MIT licence), and come from its archive or, where that cannot be
reached, from the Python package robust-gymnasium, which carries the same files but for an older balance board.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

from experiments.common.errors import UserError
from experiments.common.fetch import Files, default_data_dir, download, pip_download, read_members

COMMIT = "791405f5eacf879adbc99105adb3fee73f5a49fc"
ARCHIVE = f"https://github.com/carlosferrazza/humanoid-bench/archive/{COMMIT}.tar.gz"
PACKAGE = "robust-gymnasium==0.1.4"
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
_LINES = Path(__file__).with_name("assets.sha256").read_text("utf-8").splitlines()
SHA256 = {name: checksum for checksum, name in map(str.split, _LINES)}
COMMAND = "python -m scripts.prepare_data humanoid"


def _from_archive(_: Path, temporary: Path) -> Iterator[tuple[str, bytes]]:
    archive = temporary / "humanoid-bench.tar.gz"
    download(ARCHIVE, archive)
    yield from read_members(archive, SHA256, f"humanoid-bench-{COMMIT}/humanoid_bench/assets/")


def _from_package(_: Path, temporary: Path) -> Iterator[tuple[str, bytes]]:
    wheel = pip_download(PACKAGE, temporary, FILES.megabytes)
    for name, content in read_members(wheel, SHA256, f"{PACKAGE_FOLDER}/"):
        for old, new in CORRECTIONS.get(name, ()):
            content = content.replace(old, new)
        yield name, content


FILES = Files(
    "HumanoidBench's models",
    "humanoid_bench",
    SHA256,
    {"HumanoidBench's archive": _from_archive, f"the Python package {PACKAGE}": _from_package},
    megabytes=237,
)


def folder(data_dir: Path) -> Path:
    """Where the models are kept."""
    return data_dir / FILES.folder


def check(data_dir: Path) -> Path:
    """The folder of the models, every file of which is there and right.

    Raises:
        UserError: one is missing or damaged; the line says which command fetches them.
    """
    if faults := FILES.faults(data_dir):
        where = "" if data_dir == default_data_dir() else f" --data-dir {shlex.quote(str(data_dir))}"
        raise UserError(f"{next(iter(faults.values()))}; fetch the models with: {COMMAND}{where}")
    return folder(data_dir)
