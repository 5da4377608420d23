"""The scripts refuse bad input in one line, and a damaged run stops none of them: it is named and left out."""

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import command
from tests.conftest import REPOSITORY, run_dirs, start

# script -> arguments -> exit status and a part of what it prints; {runs}, {text}, {file}, {damaged}, {tmp} are put in.
ROWS: dict[str, dict[str, tuple[int, str]]] = {
    "benchmark": {
        "": (2, "the following arguments are required: benchmark"),
        "nonsense": (2, "invalid choice: 'nonsense'"),
        "core --repeats 0": (2, "--repeats 0: it must be at least 1"),
        "core --budget nan": (2, "--budget nan: it must be a positive number of seconds"),
        "core --device cuda": (2, "--device cuda: PyTorch sees no CUDA device here"),
        "core --only nothing": (2, "--only nothing fits none of these:"),
        "core --out {file}/x": (1, "cannot write to {file}/x"),
    },
    "clean": {
        "": (2, "the following arguments are required: outputs"),
        "{tmp}/nowhere": (1, "there is no folder {tmp}/nowhere"),
        "{file}": (1, "there is no folder {file}"),
        "{tmp}": (0, "0.0 MB  in all"),
        "{nothing}": (2, "it names no folder"),
        "{tmp} --fre": (2, "unrecognized arguments: --fre"),
    },
    "prepare_data": {
        "": (2, "the following arguments are required: dataset"),
        "mnist": (2, "invalid choice: 'mnist'"),
        "cifar10 seed=1": (1, "cifar10 takes no settings: seed=1"),
        "cifar10 --data-dir {file}": (1, "data_dir={file} cannot be used"),
        "cifar10 --data-dir {nothing}": (2, "it names no folder"),
        "cifar10 --workers 0": (1, "--workers=0 must be positive"),
        "humanoid --data-dir {file}": (1, "data_dir={file} cannot be used"),
        "language --data-dir {file}": (1, "cannot prepare wikitext2 in {file}/language/wikitext2-bytes"),
        "language +data.foo=1": (1, "unknown key 'data.foo'"),
        "language sede=1": (1, "unknown key 'sede'; did you mean 'seed'?"),
        "language data=null": (1, "data=null chooses nothing; data is one of: files, wikitext103_openwebtext"),
        "language data=x(1)": (1, "data=x(1) cannot be read"),
        "language -m": (2, "unrecognized arguments: -m"),
        "language data.split=lines": (1, "data.split=lines is unknown; valid: published, official"),
        "language data.replay=2": (1, "data.replay=2.0 must lie in [0, 1]"),
        "language data=files": (1, "data=files needs data.first=[...] and data.second=[...]"),
        "language data=files data.first=[no.txt] data.second=[imdb]": (1, "no corpus or file 'no.txt'"),
        "language data=files data.first=[{binary}] data.second=[imdb]": (1, "{binary} cannot be read as text"),
    },
    "report": {
        "mnist": (2, "invalid choice: 'mnist'"),
        "vision {tmp}/nowhere": (1, "no finished run below {tmp}/nowhere"),
        "vision {runs} --out {file}/x": (1, "cannot write to {file}/x"),
        "vision {runs} --out {nothing}": (2, "it names no folder"),
        "humanoid {runs}": (1, "is not a run of humanoid"),
        "--out {tmp}/nowhere": (1, "no results in {tmp}/nowhere"),
    },
    "sample": {
        "": (2, "the following arguments are required: run"),
        "{tmp}/nowhere": (1, "{tmp}/nowhere is not the directory of a run"),
        "{run}": (1, "is not a run of a language model"),
        "{text} --checkpoint 40k": (1, "has no checkpoint 40k; those there are: final"),
        "{text} --tokens 0": (1, "--tokens must be a whole number in [1, 1000000], got 0"),
        "{text} --temperature -1": (1, "--temperature must lie in [0.001, 1000], got -1.0"),
        "{text} --temperature 1e-320": (1, "--temperature must lie in [0.001, 1000], got"),
        "{text} --temperature nan": (1, "--temperature must be finite, got nan"),
        "{text} --top-k -1": (1, "--top-k must be a whole number in [0, 1000000], got -1"),
        "{text} --seed -1": (1, "--seed must be a whole number in [0, 4294967295], got -1"),
        "{text} --seed 99999999999999999999": (1, "--seed must be a whole number in [0, 4294967295]"),
        "{text} --prompt \udcff": (1, "--prompt is not UTF-8"),
        "{text} --tokens 5 --prompt ab": (0, "ab"),
    },
    "theorems": {
        "{tmp}/nowhere": (1, "{tmp}/nowhere is not the directory of a run"),
        "{text}": (1, "{text} is not a run of vision"),
        "{nothing}": (2, "it names no folder"),
        "{run} --out {tmp}/table": (2, "its name must end in .md"),
        "{run} --out {file}/x.md": (1, "cannot write to {file}"),
        "{run} {run}": (2, "unrecognized arguments: {run}"),
        "{damaged}": (1, "damaged {damaged}/config.yaml"),
    },
    "wandb_workspace": {
        "": (1, "whose workspace? give --entity or set WANDB_ENTITY"),
        "{tmp}/nowhere --entity me": (1, "there is no folder {tmp}/nowhere"),
        "{runs} --entity me": (1, "vision: "),
    },
}

CASES = [(script, arguments, *said) for script, rows in ROWS.items() for arguments, said in rows.items()]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, made_text: tuple[Path, list[str]]) -> Path:
    """Two finished runs of vision, and one of language."""
    folder = tmp_path_factory.mktemp("outputs")
    shared = ["scale=smoke", "wandb.mode=disabled", "device=cpu", "threads=1", f"outputs_dir={folder}"]
    text, words = made_text
    for process in (
        start("vision", "-m", "method=none,fire", f"data_dir={data_dir}", *shared),
        start("language", "method=none", f"data_dir={text}", *words, *shared),
    ):
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
    return folder


Script = Callable[..., tuple[int, str]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """`script("clean", "outputs")` runs a script in this process; its exit status and all it printed."""
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:1")  # nothing answers there

    def call(name: str, *arguments: str) -> tuple[int, str]:
        package = (REPOSITORY / "scripts" / name).is_dir()
        module = importlib.import_module(f"scripts.{name}" + (".__main__" if package else ""))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            status = command.run(module.main)
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


@pytest.mark.parametrize(("name", "arguments", "status", "said"), CASES, ids=lambda value: ascii(value)[:60])
def test_scripts(
    name: str, arguments: str, status: int, said: str, script: Script, outputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfa" * 100)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/config.yaml").write_bytes(b"damaged: [")
    (text,) = [path for path in run_dirs(outputs) if "language" in path.parts]
    places = {
        "tmp": tmp_path, "file": tmp_path / "file", "binary": tmp_path / "binary.txt", "damaged": tmp_path / "damaged",
        "runs": outputs / "vision",
        "run": next(path for path in run_dirs(outputs) if "vision" in path.parts), "text": text,
    }  # fmt: skip
    before = set(tmp_path.rglob("*"))
    found, printed = script(name, *(word.format(**places, nothing="") for word in arguments.split()))
    assert said.format(**places) in printed
    assert found == status, printed
    assert "Traceback" not in printed
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == set()


def test_every_script_has_rows() -> None:
    scripts = {path.stem for path in (REPOSITORY / "scripts").glob("*.py")} - {"__init__", "command"}
    scripts |= {path.parent.name for path in (REPOSITORY / "scripts").glob("*/__main__.py")}
    assert scripts == ROWS.keys()


# what is damaged -> its new content (None: 700 bytes in the middle are zeroed), and the scripts that read it
DAMAGE: dict[str, tuple[Any, list[str]]] = {
    "run.json": (b"damaged", ["report", "clean", "wandb_workspace"]),
    "run.json ": (b"[]", ["report", "clean", "wandb_workspace"]),
    "run.json  ": (b'{"identity": "x"}', ["report", "clean", "wandb_workspace"]),
    "run.json   ": (b"\xff\xfe", ["report", "clean", "wandb_workspace"]),
    "run.json    ": (
        lambda content: content.replace(b'"seed": 0', b'"seed": 7'),
        ["report", "clean", "wandb_workspace"],
    ),
    "metrics.jsonl": (None, ["report"]),
    "metrics.jsonl ": (b'{"phase": 0, "epo', ["report"]),
    "done": (b"{", ["report"]),
    "recipes/x.json": (b"nonsense", ["report"]),
}


@pytest.mark.parametrize("file", DAMAGE)
def test_a_damaged_run_is_left_out_and_stops_nobody(file: str, script: Script, outputs: Path, tmp_path: Path) -> None:
    content, readers = DAMAGE[file]
    runs = tmp_path / "runs"
    shutil.copytree(outputs / "vision", runs / "vision")
    damaged, intact = run_dirs(runs)
    for folder in (damaged, intact):
        (folder / "checkpoint-000001-0123456789abcdef.pt").write_bytes(b"x" * 1000)  # for clean to list
    path = damaged / file.strip()
    path.parent.mkdir(exist_ok=True)
    if content is None:
        content = path.read_bytes()
        content = content[:300] + bytes(700) + content[1000:]
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    given = {"report": ["vision", str(runs), "--out", str(tmp_path / "out")], "clean": [str(runs)]}
    given["wandb_workspace"] = [str(runs), "--entity", "me"]
    for name in ("report", "clean", "wandb_workspace"):
        status, printed = script(name, *given[name])
        assert "Traceback" not in printed
        if name in readers:
            assert status != 0
            assert f"left out: damaged {path}" in printed
        if name == "clean":
            assert str(intact) in printed
    (table,) = (tmp_path / "out").glob("*.csv")
    assert {line.split(",")[2] for line in table.read_text().splitlines()[1:]} == {intact.name.split("-")[0]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"damaged: [", "damaged {run}/config.yaml"),
        (b"\xff\xfe", "damaged {run}/config.yaml"),
        (b"[]", "damaged {run}/config.yaml"),
        (b"tokenizer: 3\nfoo: 1", "{run}/config.yaml is of another version: Key 'foo'"),
        (b"tokenizer: 3", "tokenizer=3 is unknown; valid: gpt2, bytes"),
    ],
)
def test_sample_of_a_damaged_run(content: bytes, said: str, script: Script, outputs: Path, tmp_path: Path) -> None:
    (text,) = [path for path in run_dirs(outputs) if "language" in path.parts]
    shutil.copytree(text, tmp_path / "run")
    (tmp_path / "run/config.yaml").write_bytes(content)
    status, printed = script("sample", str(tmp_path / "run"))
    assert status == 1
    assert said.format(run=tmp_path / "run") in printed
    assert "Traceback" not in printed
