"""Whole runs on real CIFAR-10 through the command line, at the smoke scale."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from experiments.common import checkpoint
from experiments.common.seeding import generator
from experiments.vision import data
from experiments.vision.datasets.cifar10 import CIFAR10
from experiments.vision.models import build
from fire import metrics as fire_metrics
from tests.conftest import numbers, run_dirs, slow

Vision = Callable[..., tuple[int, str]]


def test_sweep_shares_phase_0_and_repeats_nothing(vision: Vision, tmp_path: Path) -> None:
    sweep = ("--multirun", "method=none,full_reset,fire", "seed=0,1")
    status, printed = vision(*sweep)
    assert status == 0, printed
    outputs = tmp_path / "outputs"
    assert len(list(outputs.glob("phases/*/kept-end-*.pt"))) == 2  # one phase 0 a seed
    directories = run_dirs(outputs)
    assert len(directories) == 6
    assert printed.count("phase 0 was trained before") == 4
    rows = {directory.name.rsplit("-", 1)[0]: numbers(directory) for directory in directories}
    for seed in (0, 1):
        shared = [[r for r in rows[f"{m}-s{seed}"] if r["phase"] == 0] for m in ("none", "fire", "full_reset")]
        assert shared[0] == shared[1] == shared[2]
    assert rows["none-s0"] != rows["none-s1"]
    for name, run in rows.items():
        assert [r["epoch"] for r in run] == [1, 2, 3, 3, 4, 5]
        assert {"train/loss", "train/accuracy", "test/accuracy", "test/loss", "plasticity/grad_norm"} <= run[-1].keys()
        boundary = run[3]
        assert {"reset/sfe", "reset/dfi_before", "reset/dfi_after", "plasticity/dormant"} <= boundary.keys()
        assert (boundary["reset/sfe"] == 0) == name.startswith("none")
    fire, none = rows["fire-s0"][3], rows["none-s0"][3]
    assert fire["reset/dfi_after"] < 0.1 * fire["reset/dfi_before"]
    assert fire["reset/dfi_before"] == pytest.approx(none["reset/dfi_after"])
    assert none["plasticity/dfi"] == pytest.approx(rows["none-s0"][2]["plasticity/dfi"])
    # A full reset returns to the network the run began with.
    initial = fire_metrics.isometry(build("resnet18", 10, (3, 32, 32), 4, 0))
    assert rows["full_reset-s0"][3]["plasticity/dfi"] == initial["dfi"]

    times = {d: (d / "metrics.jsonl").stat().st_mtime_ns for d in directories}
    (directories[3] / "done").unlink()
    status, printed = vision(*sweep)
    assert status == 0
    assert printed.count("done before: ") == 5
    assert [d for d in directories if (d / "metrics.jsonl").stat().st_mtime_ns != times[d]] == [directories[3]]


@pytest.mark.slow
def test_dash_parseval_and_muon_run_with_the_papers_values(vision: Vision, tmp_path: Path) -> None:
    status, printed = vision("-m", "method=none,dash,parseval,muon")
    assert status == 0, printed
    assert printed.count("phase 0 was trained before") == 3  # none of them acts in it
    rows = {directory.name.split("-")[0]: numbers(directory) for directory in run_dirs(tmp_path / "outputs")}
    assert len({run[-1]["train/loss"] for run in rows.values()}) == 4
    assert rows["dash"][3]["reset/dfi_after"] < rows["none"][3]["reset/dfi_after"]
    assert [("method/penalty" in row) for row in rows["parseval"]] == [False] * 4 + [True] * 2
    for name, settings in {
        "dash": {"alpha": 0.3, "lambda_": 0.05, "variant": "published"},
        "parseval": {"coefficient": 1e-3, "first_phase": 1},
        "muon": {"learning_rate": 1e-2, "momentum": 0.95, "first_phase": 1, "variant": "published", "adam": ["head"]},
    }.items():
        (directory,) = (path for path in run_dirs(tmp_path / "outputs") if path.name.startswith(f"{name}-"))
        used = json.loads((directory / "run.json").read_text())["values"]
        assert used["method"] == {"name": name, "kind": name, **settings}
        assert "adam" not in used["model"]["scope"]  # other runs do not depend on it
        assert used["optimizer_at_boundary"] == "reset"


def test_branched_equals_uninterrupted(vision: Vision, tmp_path: Path) -> None:
    for cached in ("true", "false"):
        # The phase cache is filled first, so that the run starts from what lies on disk.
        for until in ("phase0", "end") if cached == "true" else ("end",):
            status, printed = vision(
                "method=fire", f"phase_cache={cached}", f"until={until}", f"outputs_dir={tmp_path / cached}"
            )
            assert status == 0, printed
    (branched,), (whole,) = run_dirs(tmp_path / "true"), run_dirs(tmp_path / "false")
    assert branched.name == whole.name
    assert numbers(branched) == numbers(whole)
    assert not (tmp_path / "false" / "phases").exists()


def test_phase_0_alone_then_any_method(vision: Vision, tmp_path: Path) -> None:
    status, printed = vision("until=phase0")
    assert status == 0
    assert "phase 0 is in " in printed
    assert not run_dirs(tmp_path / "outputs")
    status, printed = vision("method=shrink_perturb")
    assert "phase 0 was trained before" in printed


def test_continual_has_ten_phases(vision: Vision, tmp_path: Path) -> None:
    status, printed = vision("benchmark=continual", "method=fire")
    assert status == 0, printed
    rows = numbers(run_dirs(tmp_path / "outputs")[0])
    assert [r["phase"] for r in rows if "reset/sfe" in r] == list(range(1, 10))
    assert rows[-1]["epoch"] == 11


def test_optimizer_kept_is_another_run(vision: Vision, tmp_path: Path) -> None:
    vision("method=none", "optimizer_at_boundary=keep")
    vision("method=none")
    kept, renewed = sorted(run_dirs(tmp_path / "outputs"), key=lambda d: d.stat().st_mtime)
    assert numbers(kept)[:4] == numbers(renewed)[:4]
    assert numbers(kept)[4:] != numbers(renewed)[4:]


def test_overwrite_redoes_the_run_but_not_the_phase(vision: Vision, tmp_path: Path) -> None:
    vision()
    (directory,) = run_dirs(tmp_path / "outputs")
    before = numbers(directory)
    status, printed = vision("overwrite=true")
    assert status == 0
    assert "phase 0 was trained before" in printed
    assert numbers(directory) == before
    assert (directory / "overwrites").read_text() == "1\n"


def test_a_recipe_of_ones_own(vision: Vision, tmp_path: Path) -> None:
    """It sets what the scale and the benchmark set too, and the run belongs to it also when done over again."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "fast.yaml").write_text(
        "# @package _global_\noptimizer:\n  learning_rate: 0.005\nbudget:\n  epochs: [1, 1]\n"
    )
    recipe = (f"hydra.searchpath=[pkg://configs.shared,file://{tmp_path / 'mine'}]", "experiment=fast")
    for words in (recipe, ("optimizer.learning_rate=0.005", "budget.epochs=[1,1]", "overwrite=true")):
        status, printed = vision(*words)
        assert status == 0, printed
    (directory,) = run_dirs(tmp_path / "outputs")
    values = json.loads((directory / "run.json").read_text())["values"]
    assert values["optimizer"]["learning_rate"] == 0.005
    assert numbers(directory)[-1]["epoch"] == 2
    assert [path.stem for path in (directory / "recipes").iterdir()] == ["fast"]


@pytest.mark.parametrize("batches", [(), slow(("hydra.sweeper.max_batch_size=1",))], ids=["together", "in batches"])
def test_bad_job_in_the_middle_of_a_sweep(vision: Vision, tmp_path: Path, batches: tuple[str, ...]) -> None:
    status, printed = vision("-m", "method=shrink_perturb", "method.coefficient=0.2,7,0.8", *batches)
    assert status == 1
    assert "error: method=shrink_perturb: coefficient must lie in [0, 1], got 7.0" in printed
    assert "1 of 3 runs failed" in printed
    assert "Traceback" not in printed
    assert len(run_dirs(tmp_path / "outputs")) == 2


def test_non_finite_loss_stops_the_run(vision: Vision, tmp_path: Path) -> None:
    status, printed = vision("optimizer.learning_rate=1e30", "optimizer.clip_norm=1e30", "checkpoint_seconds=0")
    assert status == 1
    assert "the loss or gradient is not finite in phase 0, epoch" in printed
    assert "the last good checkpoint" in printed
    for path in (tmp_path / "outputs").rglob("checkpoint-*.pt"):
        weights = torch.load(path, weights_only=True)["state"]["model"].values()
        assert all(torch.isfinite(w.float()).all() for w in weights)


def test_run_finished_by_another_process_is_not_touched(
    vision: Vision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = data.load

    def finish_meanwhile(*arguments: object) -> object:
        monkeypatch.setattr(data, "load", load)
        assert vision("method=none")[0] == 0
        return load(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(data, "load", finish_meanwhile)
    status, _ = vision("method=none")
    assert status == 0
    (directory,) = run_dirs(tmp_path / "outputs")
    assert len(numbers(directory)) == 6
    assert (directory / "log").read_text().count("finished in") == 1


def test_what_changed_around_a_run_is_recorded(vision: Vision, tmp_path: Path) -> None:
    vision("method=none")
    (directory,) = run_dirs(tmp_path / "outputs")
    description = directory / "run.json"
    info = json.loads(description.read_text())
    assert info["continued"] == []
    description.write_text(json.dumps({**info, "git": "an older commit"}))
    (directory / "done").unlink()
    vision("method=none")
    continued = json.loads(description.read_text())
    assert (continued["git"], continued["continued"][0]["git"]) == ("an older commit", info["git"])
    # Phase 0 was not trained again, and where a later run's was trained is known.
    (phase,) = (tmp_path / "outputs" / "phases").iterdir()
    assert json.loads((phase / "run.json").read_text())["continued"] == []
    (phase / "run.json").write_text(json.dumps({**json.loads((phase / "run.json").read_text()), "git": "the phase's"}))
    vision("method=fire")
    (branched,) = (path for path in run_dirs(tmp_path / "outputs") if path.name.startswith("fire"))
    (part,) = json.loads((branched / "run.json").read_text())["branched_from"]
    assert part == {"git": "the phase's", "versions": info["versions"], "machine": info["machine"]}
    vision("method=none", "overwrite=true")
    assert json.loads(description.read_text())["git"] == info["git"]
    assert json.loads(description.read_text())["continued"] == []


def test_run_directory_describes_itself(vision: Vision, tmp_path: Path) -> None:
    vision("seed=3")
    (directory,) = run_dirs(tmp_path / "outputs")
    assert directory.parent.name == "warm_start-cifar10-resnet18-smoke"
    assert directory.name.startswith("fire-s3-")
    info = json.loads((directory / "run.json").read_text())
    assert info["identity"].startswith(directory.name[-8:])
    assert info["values"]["seed"] == 3
    assert info["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "experiments.vision seed=3" in info["command"]
    assert "seed: 3" in (directory / "config.yaml").read_text()
    assert "finished in" in (directory / "log").read_text()
    assert not list(directory.glob("checkpoint*"))
    (phase,) = (tmp_path / "outputs" / "phases").iterdir()
    assert checkpoint.load(phase) is not None


def test_first_line_names_scale_and_the_papers_command(vision: Vision) -> None:
    _, printed = vision("method=none")
    first = printed.strip().splitlines()[0]
    assert "scale=smoke" in first
    assert (
        "python -m experiments.vision benchmark=warm_start data=cifar10 model=resnet18 method=none scale=paper" in first
    )


@pytest.mark.slow
def test_sharpness_is_measured_and_changes_nothing_else(vision: Vision, data_dir: Path, tmp_path: Path) -> None:
    rows = {}
    for method, images in (("none", 96), ("fire", 96), ("fire", 0)):
        status, printed = vision(f"method={method}", f"sharpness={images}")
        assert status == 0, printed
        (directory,) = set(run_dirs(tmp_path / "outputs")) - {rows[key][0] for key in rows}
        rows[method, images] = directory, numbers(directory)
    assert len(list((tmp_path / "outputs/phases").glob("*/kept-end-*.pt"))) == 1  # phase 0 does not depend on it
    none, fire, without = (run[1] for run in rows.values())
    at = next(i for i, row in enumerate(none) if "reset/sfe" in row)
    assert none[at]["plasticity/sharpness"] == none[at]["reset/sharpness_before"]  # fixed batches
    assert fire[at]["reset/sharpness_before"] == none[at]["reset/sharpness_before"]
    assert fire[at]["plasticity/sharpness"] != fire[at]["reset/sharpness_before"]
    assert 0 < fire[at]["plasticity/sharpness_error"] <= 0.01 * fire[at]["plasticity/sharpness"]
    measured = {"plasticity/sharpness", "plasticity/sharpness_error", "reset/sharpness_before"}
    assert [{k: v for k, v in row.items() if k not in measured} for row in fire] == without

    # ARPACK finds the same eigenvalue for the network that phase 0 left, on the images the run says it looks at.
    (path,) = (tmp_path / "outputs/phases").rglob("checkpoint-*.pt")
    model = build("resnet18", 10, (3, 32, 32), 4, 0)
    model.load_state_dict(torch.load(path, weights_only=True)["state"]["model"])
    train, _ = data.load(CIFAR10, data_dir, 320, 100, 0)
    chosen = torch.randperm(320, generator=generator(0, "sharpness", 1))[:96]
    batches = [train.batch(part) for part in chosen.split(32)]
    model.train()
    loss = sum(torch.nn.functional.cross_entropy(model(x), y, reduction="sum") / 96 for x, y in batches)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([gradient.flatten() for gradient in gradients])

    def product(vector: np.ndarray) -> np.ndarray:
        slope = flat @ torch.as_tensor(vector.ravel(), dtype=torch.float32)
        parts = torch.autograd.grad(slope, parameters, retain_graph=True)
        return torch.cat([part.flatten() for part in parts]).double().numpy()

    hessian = LinearOperator((len(flat),) * 2, matvec=product, dtype=np.float64)
    (expected,) = eigsh(hessian, k=1, which="LA", tol=1e-3, return_eigenvectors=False)
    assert none[at]["plasticity/sharpness"] == pytest.approx(expected, rel=0.02)
