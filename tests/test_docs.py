"""What the README and docs/ show is what happens: their code, their commands and their numbers."""

import copy
import inspect
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

import fire
from experiments.common.config import recipes
from experiments.common.metric_log import read_rows
from fire import reference
from tests.conftest import DOMAINS, REPOSITORY, Command, numbers, run_dirs
from tests.fire.recipes import recipe
from tests.settings_page import page

README = (REPOSITORY / "README.md").read_text()
SPEED = (REPOSITORY / "results/benchmark/README.md").read_text()
DOCS = {path.stem: path.read_text() for path in sorted((REPOSITORY / "docs").glob("*.md"))}
PAGES = {"README": README, **DOCS}


def blocks(text: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)


def block(containing: str, text: str = DOCS["extending"]) -> str:
    """The code block of a page that contains a text."""
    return next(code for code in blocks(text) if containing in code)


def test_three_lines_in_ones_own_loop(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    exec(block("import fire\n", README), {"torch": torch, "model": model, "optimizer": optimizer})
    printed = capsys.readouterr().out
    sfe, before, after = map(float, re.findall(r"SFE (\S+), DfI (\S+) -> (\S+)\n", printed)[0])
    assert sfe > 0
    assert after < before
    assert len(printed.splitlines()) == 2  # nothing left out, zero or rank-deficient
    assert "100.0% of the weights with two or more dimensions are written as matrices" in printed


def test_the_algorithm_shown_is_the_reference() -> None:
    assert block("def scaled_isometry", README) == inspect.getsource(reference.scaled_isometry)


def test_the_librarys_page() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    batches = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(3)]
    known = {
        "fire": fire, "copy": copy, "torch": torch, "model": model, "batches": batches,
        "criterion": nn.CrossEntropyLoss(), "optimizer": torch.optim.Adam(model.parameters()),
    }  # fmt: skip
    code = blocks(DOCS["library"])
    assert len(code) == 3
    exec(code[1].split("...")[0], known)
    exec(code[2], known)
    assert float(known["penalty"].detach()) > 0
    for one in (code[1].split("...")[1], code[0]):
        exec(one, known)
    assert known["report"].sfe > 0
    units = re.search(r"`fire\.Scope\(units=(.*?)\)`", DOCS["library"])[1]
    fire.ReDo().check(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), fire.Scope(units=eval(units)))


def test_the_page_of_frameworks() -> None:
    """Its plain loop, copies and batch normalisation; tests/fire/test_ranks.py and test_frameworks.py run the rest."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    phase = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)
    train = recipe("def train(", "train")
    train(model, optimizer, nn.CrossEntropyLoss(), [phase])
    assert fire.metrics.isometry(model)["dfi_normalised"] > 0.1
    train(model, optimizer, nn.CrossEntropyLoss(), [phase, []])
    assert fire.metrics.isometry(model)["dfi_normalised"] < 0.1
    assert float(optimizer.state[model[0].weight]["momentum_buffer"].abs().max()) == 0
    online = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    target, average = copy.deepcopy(online), torch.optim.swa_utils.AveragedModel(online)
    average.update_parameters(online)
    recipe("n_averaged", "reset_copies")(online, target, average)
    for copied in (target, average.module):
        assert torch.equal(copied[0].weight, online[0].weight)
    assert int(average.n_averaged) == 0
    recipe("refresh_batch_norm", "refresh")(online, phase)
    assert float(online[1].running_mean.abs().max()) > 0.01


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository as a user edits it."""
    for folder in ("fire", "experiments", "configs", "hydra_plugins", "scripts", "results/paper"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(clone: Path, module: str, *arguments: str) -> str:
    """What `python -m <module>` prints in the edited repository."""
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=clone, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_extending(clone: Path, data_dir: Path) -> None:
    """A method, one that acts during training, a model and a data set: the files that the page names, and no others."""
    for file, markers in (
        ("fire/resets.py", ["class Noise"]),
        ("fire/methods.py", ["class WeightDecay"]),
        ("experiments/vision/models.py", ["def small_cnn"]),
        ("experiments/vision/datasets/__init__.py", ['DATA_SETS["stripes"]']),
    ):
        with (clone / file).open("a") as source:
            source.write("\n\n" + "\n\n".join(map(block, markers)))
    (clone / "experiments/vision/datasets/stripes.py").write_text(block("STRIPES = DataSet("))
    for file, marker in (
        ("shared/method/noise.yaml", "@_here_: noise"), ("shared/method/weight_decay.yaml", "@_here_: weight_decay"),
        ("vision/model/small_cnn.yaml", "name: small_cnn"), ("vision/data/stripes.yaml", "name: stripes"),
    ):  # fmt: skip
        (clone / "configs" / file).write_text(block(marker))
    run(clone, "mypy", "--config-file", str(REPOSITORY / "pyproject.toml"), "-p", "fire")
    settings = ("scale=smoke", "threads=1", "device=cpu", f"data_dir={data_dir}", "wandb.mode=disabled")
    commands = re.findall(r"`python -m experiments\.vision (.*?)`", DOCS["extending"])
    assert len(commands) == 4
    for command in commands:
        run(clone, "experiments.vision", *command.split(), *settings)
    run(clone, "experiments.vision", "method=redo", "method.period=3", "model=small_cnn", *settings)
    found = {(path.parent.name, path.name.split("-")[0]): numbers(path) for path in run_dirs(clone / "outputs")}
    usual, own = "warm_start-cifar10-resnet18-smoke", "warm_start-cifar10-small_cnn-smoke"
    assert found.keys() == {
        (usual, "noise"), (usual, "weight_decay"), (own, "fire"), (own, "redo"),
        ("warm_start-stripes-small_cnn-smoke", "fire"),
    }  # fmt: skip
    assert next(row for row in found[usual, "noise"] if "reset/sfe" in row)["reset/sfe"] > 0
    assert found["warm_start-stripes-small_cnn-smoke", "fire"][-1]["test/accuracy"] > 0.8
    assert found[usual, "weight_decay"] != found[usual, "noise"]


@pytest.mark.slow
def test_a_domain_of_ones_own(clone: Path) -> None:
    """The package and configs of `tests/toy`, and the name in the list of domains; nothing else."""
    shutil.copytree(REPOSITORY / "tests/toy/package", clone / "experiments/toy")
    shutil.copytree(REPOSITORY / "tests/toy/configs", clone / "configs/toy")
    listed = clone / "experiments/domains.py"
    listed.write_text(listed.read_text().replace("NAMES = (", 'NAMES = ("toy", '))
    settings = ("threads=1", "device=cpu", "wandb.mode=disabled")
    run(clone, "experiments.toy", "-m", "method=none,fire,full_reset", "seed=0,1", "sharpness=4", *settings)
    run(clone, "experiments.toy", "method=redo", "method.period=5", "method.first_phase=0", *settings)
    assert len(list((clone / "outputs/phases").iterdir())) == 3  # for each seed one that is shared, and ReDo's
    printed = run(clone, "scripts.report", "toy")
    assert "| FIRE " in printed
    assert (clone / "outputs/report/toy/sines-laptop-sharpness=4.png").exists()


COMMAND = re.compile(r"-m experiments\.(\w+) ([^`#\n&]*?)(?:\s+#|`|\n| &)")
COMMANDS = sorted({found for text in PAGES.values() for found in COMMAND.findall(text)})
OTHERS = ("noise", "weight_decay", "small_cnn", "stripes", "...")  # of the page about extending, run above


@pytest.mark.parametrize(("domain", "words"), [c for c in COMMANDS if not any(word in c[1] for word in OTHERS)])
def test_commands_compose(command_line: Callable[..., Command], domain: str, words: str, tmp_path: Path) -> None:
    # SLURM's launcher composes, but there is no cluster here.
    arguments = [argument for argument in shlex.split(words) if argument not in ("-m", "--cfg", "job")]
    first = [re.sub(r"=([^,\[]*),.*", r"=\1", argument) for argument in arguments]
    status, printed = command_line(domain, tmp_path)("--cfg", "job", *first)
    assert status == 0
    assert "optimizer_at_boundary:" in printed


def test_every_command_of_a_script_is_known() -> None:
    for name in {found for text in PAGES.values() for found in re.findall(r"-m (?:scripts|tests)\.(\w+)", text)}:
        places = (REPOSITORY / folder / file for folder in ("scripts", "tests") for file in (name, f"{name}.py"))
        assert any(place.exists() for place in places), name


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_metric_is_described(domain: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    call: Command = request.getfixturevalue(domain)
    methods = ["method=fire sharpness=4", "method=l2_init method.coefficient=1e-3"]
    methods.append("method=redo method.period=3")
    for words in methods:
        status, printed = call(*words.split())
        assert status == 0, printed
    described = set(re.findall(r"`((?:\w+/)\w+)`", DOCS["metrics"]))
    logged = {
        key for path in run_dirs(tmp_path / "outputs") for row in read_rows(path / "metrics.jsonl") for key in row
    }
    assert {key for key in logged if "/" in key} <= described
    known = [(REPOSITORY / "experiments").rglob("*.py"), (REPOSITORY / "fire").rglob("*.py")]
    code = "\n".join(path.read_text() for files in known for path in files)
    assert all(f'"{key}"' in code for key in described)


def test_settings_are_those_of_the_schemas() -> None:
    assert DOCS["settings"] == page()


def test_every_recipe_and_method_is_in_the_readme() -> None:
    for domain in DOMAINS:
        assert all(f"`{recipe}`" in README for recipe in recipes(domain) if recipe not in ("fig3", "fig4a", "fig4b"))
    for path in (REPOSITORY / "configs/shared/method").glob("*.yaml"):
        assert f"`{path.stem}`" in README + DOCS["running"] or path.stem.startswith(("fire_steps", "fire_part"))


def test_links_lead_somewhere() -> None:
    for name, text in PAGES.items():
        folder = REPOSITORY if name == "README" else REPOSITORY / "docs"
        for path in re.findall(r"\]\(([^):]+)\)", text):
            assert (folder / path.split("#")[0]).exists(), (name, path)


def test_results_are_those_of_the_report() -> None:
    assert (REPOSITORY / "results/summary.md").read_text() in README


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
    measured = [
        ms["ResNet-18, width 64", "newton_schulz"], ms["GPT-0.1B", "newton_schulz"],
        f"{language.mfu.max():.1%}".replace("%", " %"), ms["ResNet-18, width 64", "polar_express"],
        f"{epochs.max():,.0f}", f"{atari.steps_per_second[0]:,.0f}",
    ]  # fmt: skip
    aims = SPEED.split("**Aims, none of them measured yet**")[1]
    assert all(number in aims for number in measured)
    assert all(number in README for number in measured[:3])
