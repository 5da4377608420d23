"""What the README shows is what happens: its code blocks and its commands, run."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from experiments.common.config import recipes
from tests.conftest import DOMAINS, REPOSITORY, Command, numbers, run_dirs

README = (REPOSITORY / "README.md").read_text()
SPEED = (REPOSITORY / "results/benchmark/README.md").read_text()
PAGES = [README, *(path.read_text() for path in sorted((REPOSITORY / "experiments").glob("*/README.md")))]


def block(containing: str) -> str:
    """The code block of the README that contains a text."""
    return next(code for code in re.findall(r"```\w+\n(.*?)```", README, re.DOTALL) if containing in code)


def test_three_lines_in_ones_own_loop(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    exec(block("import fire\n"), {"torch": torch, "model": model})
    printed = capsys.readouterr().out
    sfe, before, after = map(float, re.findall(r"SFE (\S+), DfI (\S+) -> (\S+)\n", printed)[0])
    assert sfe > 0
    assert after < before
    assert len(printed.splitlines()) == 1  # nothing skipped, zero or rank-deficient


def test_add_your_own_method_and_model(data_dir: Path, tmp_path: Path) -> None:
    """In a copy of the repository, as a user would edit it."""
    for folder in ("fire", "experiments", "configs", "hydra_plugins", "results/paper"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    for file, marker in (("fire/methods.py", "class Noise"), ("experiments/vision/models.py", "def small_cnn")):
        with (tmp_path / file).open("a") as source:
            source.write("\n\n" + block(marker))
    (tmp_path / "configs/shared/method/noise.yaml").write_text(block("/schema/method@_here_: noise"))
    (tmp_path / "configs/vision/model/small_cnn.yaml").write_text(block("name: small_cnn"))
    for command in ("method=noise method.ratio=0.5", "model=small_cnn"):
        assert f"python -m experiments.vision {command}" in README
        arguments = [*command.split(), "scale=smoke", "threads=1", f"data_dir={data_dir}", "wandb.mode=disabled"]
        result = subprocess.run(
            [sys.executable, "-m", "experiments.vision", *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
    by_name = {directory.name.split("-")[0]: directory for directory in run_dirs(tmp_path / "outputs")}
    boundary = next(row for row in numbers(by_name["noise"]) if "reset/sfe" in row)
    assert boundary["reset/sfe"] > 0
    assert "small_cnn" in (by_name["fire"] / "config.yaml").read_text()


COMMANDS = sorted(
    {found for page in PAGES for found in re.findall(r"-m experiments\.(\w+) ([^`#\n]*?)(?:\s+#|`|\n)", page)}
)


@pytest.mark.parametrize(
    ("domain", "words"), [c for c in COMMANDS if not any(word in c[1] for word in ("noise", "small_cnn", "..."))]
)
def test_commands_compose(command_line: Callable[..., Command], domain: str, words: str, tmp_path: Path) -> None:
    arguments = [argument for argument in shlex.split(words) if argument not in ("-m", "--cfg", "job")]
    first = [re.sub(r"=([^,\[]*),.*", r"=\1", argument) for argument in arguments]
    status, printed = command_line(domain, tmp_path)("--cfg", "job", *first)
    assert status == 0
    assert "optimizer_at_boundary:" in printed


def test_table_of_keys_is_complete() -> None:
    from experiments.common.config import CHOICES

    for key, values in CHOICES.items():
        line = next(line for line in README.splitlines() if line.startswith("| ") and f"`{key}`" in line)
        assert all(value in line for value in values), key
    for group, line_key in (
        ("vision/benchmark", "benchmark"), ("shared/method", "method"), ("vision/scale", "scale"),
        ("language/scale", "scale"), ("atari/scale", "scale"), ("humanoid/scale", "scale"),
        ("language/data", "data"), ("language/checkpoint", "checkpoint"),
    ):  # fmt: skip
        line = next(line for line in README.splitlines() if line.startswith(f"| `{line_key}`"))
        for config in (REPOSITORY / "configs" / group).glob("*.yaml"):
            assert f"`{config.stem}`" in line


def test_every_recipe_is_told() -> None:
    for domain in DOMAINS:
        assert all(f"`{recipe}`" in README for recipe in recipes(domain))


def test_results_are_those_of_the_report() -> None:
    assert (REPOSITORY / "results/summary.md").read_text() in README
    for path in re.findall(r"\]\((results/[^)]+|experiments/[^)]+)\)", README):
        assert (REPOSITORY / path.split("#")[0]).exists(), path


@pytest.mark.parametrize("benchmark", sorted(path.stem for path in (REPOSITORY / "results/benchmark").glob("*-*.md")))
def test_speed_is_that_of_the_benchmark(benchmark: str) -> None:
    where, _, *table = (REPOSITORY / f"results/benchmark/{benchmark}.md").read_text().splitlines()
    assert "\n".join(table) in SPEED
    assert where in SPEED


def test_aims_are_beside_what_was_measured() -> None:
    """What the README and the table of aims say of the H200 is in its CSVs."""
    core, vision, language, atari = (
        pd.read_csv(REPOSITORY / f"results/benchmark/{name}-h200.csv")
        for name in ("core", "vision", "language", "atari")
    )
    assert {commit for table in (core, vision, language, atari) for commit in table.commit} == {
        "103a8a6c1381bc3acc8c4423955c520dc8997fb8"
    }
    ms = (1e3 * core.set_index(["case", "solver"]).seconds).map("{:.1f} ms".format)
    epochs = vision[vision.case.str.startswith("whole epoch")].images_per_second
    told = [
        ms["ResNet-18, width 64", "newton_schulz"], ms["ResNet-18, width 64", "polar_express"],
        ms["GPT-0.1B", "newton_schulz"], f"{epochs.max():,.0f}", f"{language.mfu.max():.1%}".replace("%", " %"),
        f"{atari.steps_per_second[0]:,.0f}",
    ]  # fmt: skip
    aims = SPEED.split("**Aims, none of them measured yet**")[1]
    assert all(number in aims for number in told)
    rounded = f"{epochs.max():,.0f}"[:-2] + "00"
    assert all(number in README for number in (told[0], told[2], rounded, told[4], told[5]))
