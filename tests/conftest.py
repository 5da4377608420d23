"""Shared fixtures: the real data sets, and the command lines as a user calls them.

A domain is imported when a test of it asks for it, so that the others' tests run without its packages.
"""

import ctypes.util
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from experiments.common import cuda_graphs
from experiments.common.config import CONFIGS, compose_domain, register_schemas
from experiments.common.launch import launch
from experiments.common.metric_log import read_rows
from experiments.domains import NAMES
from experiments.domains import domain as domain_of
from tests.tape import Tape

REPOSITORY = Path(__file__).parents[1]
# Wall-clock readings: the only numbers two equal runs may differ in.
CLOCK = ("speed/", "reset/seconds")
CUDA = (pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))


OPENGL = [name for name in ("EGL", "OSMesa") if ctypes.util.find_library(name)]
if OPENGL:
    os.environ.setdefault("MUJOCO_GL", OPENGL[0].lower())  # before any test imports MuJoCo
needs_opengl = pytest.mark.skipif(
    not OPENGL,
    reason="needs EGL or OSMesa (on Debian: libegl1 libopengl0 libgl1-mesa-dri), which .ci/run installs",
)


def slow(*values: Any, id: str | None = None) -> Any:
    """A case of a parametrised test that `make test-slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


def needs_cuda(test: Callable) -> Callable:
    """Mark a test that needs a GPU."""
    for mark in CUDA:
        test = mark(test)
    return test


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def device(request: pytest.FixtureRequest) -> str:
    """The test runs on the CPU and, where there is one, on a GPU."""
    return request.param


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """CUDA graphs are recorded on the CPU instead (`tests.tape`), so that what is captured can be tested anywhere; the
    tapes, in order of their recording."""
    tapes: list[Tape] = []

    def record(update: Callable[[], None]) -> Callable[[], None]:
        tapes.append(Tape())
        with tapes[-1]:
            update()
        return tapes[-1].replay

    monkeypatch.setattr(cuda_graphs, "warm_up", lambda update: [update() for _ in range(cuda_graphs.WARM_UP)])
    monkeypatch.setattr(cuda_graphs, "record", record)
    return tapes


@pytest.fixture(scope="session")
def cache() -> Path:
    """Where data fetched once a machine are kept."""
    return Path(os.environ.get("FIRE_DATA", "~/.cache/fire")).expanduser()


@pytest.fixture(scope="session")
def data_dir(cache: Path) -> Path:
    """Real CIFAR-10."""
    from experiments.vision.datasets import DATA_SETS

    DATA_SETS["cifar10"].files.prepare(cache)
    return cache


@pytest.fixture(scope="session")
def text_dir(cache: Path) -> Path:
    """WikiText-2 and IMDb, as bytes."""
    from experiments.language.prepare import prepare

    for corpus in ("wikitext2", "imdb"):
        prepare(corpus, "bytes", cache, "text", workers=2)
    return cache


def sentences(seed: int, bytes_at_least: int) -> str:
    """Text that a small model can learn: sentences of made-up words, each of which only a few others follow."""
    draw = random.Random(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(300)]
    after = {word: draw.choices(words, k=4) for word in words}
    lines, size = [], 0
    while size < bytes_at_least:
        sentence = [draw.choice(words)]
        while len(sentence) < 12:
            sentence.append(draw.choice(after[sentence[-1]]))
        lines.append(" ".join(sentence) + ".")
        size += len(lines[-1]) + 1
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def made_text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A data folder with two small corpora made here, as bytes, and the words of the command line that choose them."""
    from experiments.language.prepare import prepare

    folder = tmp_path_factory.mktemp("made_text")
    for number, name in enumerate(("first", "second")):
        path = folder / f"{name}.txt"
        path.write_text(sentences(number, 300_000))
        prepare(str(path), "bytes", folder, "text", workers=1)
    return folder, ["data=files", *(f"data.{name}=[{folder / name}.txt]" for name in ("first", "second"))]


@pytest.fixture(scope="session")
def robot_dir(cache: Path) -> Path:
    """HumanoidBench's models."""
    from experiments.humanoid import assets

    assets.FILES.prepare(cache)
    return cache


Command = Callable[..., tuple[int, str]]
DOMAINS = NAMES


def jobs_of(domain: str, recipe: str, *overrides: str) -> list[DictConfig]:
    """The configurations of the jobs of `python -m experiments.<domain> experiment=<recipe> <overrides>`, as Hydra's
    sweeper makes them."""
    described = domain_of(domain)
    register_schemas(described.schema)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS / domain), version_base="1.3"):
        sweeper = compose("config", [f"experiment={recipe}"], return_hydra_config=True).hydra.sweeper
        words = [*(f"{key}={value}" for key, value in sweeper.params.items()), f"experiment={recipe}", *overrides]
        parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(words)
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    return [compose_domain(domain, described.schema, job) for job in jobs]


@pytest.fixture
def command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Command]]:
    """`command_line("vision", data_dir)("method=fire", ...)` runs the command line in this process at the smoke scale
    and returns its exit status and what it printed; runs go to `tmp_path/outputs`."""

    def of(domain: str, data_dir: Path) -> Command:
        def call(*arguments: str) -> tuple[int, str]:
            GlobalHydra.instance().clear()
            given = {argument.split("=")[0] for argument in arguments}
            defaults = {
                "scale": "smoke",
                "outputs_dir": str(tmp_path / "outputs"),
                "data_dir": str(data_dir),
                "wandb.mode": "disabled",
                "device": "cpu",  # on which equal runs are equal to the bit
                "threads": "1",  # these networks are too small for more, and a busy machine would make more crawl
            }
            extra = [f"{key}={value}" for key, value in defaults.items() if key not in given]
            main = REPOSITORY / "experiments" / domain / "__main__.py"
            monkeypatch.setattr(sys, "argv", [str(main), *arguments, *extra])
            status = launch(domain_of(domain))
            return status, capsys.readouterr().out

        return call

    yield of
    logging.getLogger("fire").handlers = []


@pytest.fixture
def vision(command_line: Callable[..., Command], data_dir: Path) -> Command:
    """The command line of the vision domain."""
    return command_line("vision", data_dir)


@pytest.fixture
def language(command_line: Callable[..., Command], text_dir: Path) -> Command:
    """The command line of the language domain."""
    return command_line("language", text_dir)


@pytest.fixture
def language_made(command_line: Callable[..., Command], made_text: tuple[Path, list[str]]) -> Command:
    """The command line of the language domain, on text that is made here."""
    folder, words = made_text
    call = command_line("language", folder)
    return lambda *arguments: call(*words, *arguments)


@pytest.fixture
def atari(command_line: Callable[..., Command], tmp_path: Path) -> Command:
    """The command line of the Atari domain, whose games come with their emulator."""
    return command_line("atari", tmp_path)


@pytest.fixture
def humanoid(command_line: Callable[..., Command], robot_dir: Path) -> Command:
    """The command line of the humanoid domain, with the environment that needs nothing but MuJoCo."""
    call = command_line("humanoid", robot_dir)

    def native(*arguments: str) -> tuple[int, str]:
        backend = [] if any(argument.startswith("env.backend=") for argument in arguments) else ["env.backend=native"]
        return call(*arguments, *backend)

    return native


def start(domain: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m experiments.<domain>` in a process of its own, on the CPU."""
    return start_module(f"experiments.{domain}", *arguments, **environment)


def start_module(module: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m <module>` in a process of its own, on the CPU."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
    )  # fmt: skip


def stopped_when(
    domain: str, condition: Callable[[Path], bool], how: int, arguments: list[str], outputs: Path
) -> tuple[int, str]:
    """Start a run, send it the signal `how` once `condition` holds; its exit status and output."""
    return interrupt(start(domain, *arguments), lambda: condition(outputs), how)


def undisturbed(domain: str, outputs: Path, *arguments: str) -> list[dict[str, Any]]:
    """The metric rows of a run in a process of its own that nothing stops."""
    process = start(domain, *arguments, f"outputs_dir={outputs}")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return numbers(run_dirs(outputs)[0])


def rows_so_far(outputs: Path, folders: str) -> list[dict[str, Any]]:
    """The metric rows in the first of the folders, a pattern below `outputs`; none if there is none yet."""
    logs = list(outputs.glob(f"{folders}/metrics.jsonl"))
    return read_rows(logs[0]) if logs else []


def interrupt(process: subprocess.Popen[str], condition: Callable[[], bool], how: int) -> tuple[int, str]:
    """Send a process the signal `how` once `condition` holds; its exit status and output."""
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(how)
    printed, _ = process.communicate(timeout=120)
    return process.returncode, printed


def run_dirs(outputs: Path) -> list[Path]:
    """Run directories below an outputs folder."""
    return sorted(path.parent for path in outputs.glob("*/*/*/run.json"))


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    """The metric rows of a run without clock readings."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(CLOCK)} for row in rows]
