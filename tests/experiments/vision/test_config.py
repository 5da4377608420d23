"""Configuration: the paper's protocol, recipes, and what makes two runs the same."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from experiments.common import schema
from experiments.common.config import build_method, compose_domain
from experiments.common.domain import Job, describe
from experiments.common.runtime import resolve_runtime
from experiments.vision.config import VisionConfig
from experiments.vision.datasets import DATA_SETS
from experiments.vision.domain import VISION


def composed(*overrides: str) -> DictConfig:
    return compose_domain("vision", VisionConfig, [*overrides, "outputs_dir=outputs"])


def job_of(cfg: DictConfig) -> Job:
    return describe(VISION, cfg, resolve_runtime(cfg), build_method(cfg), None)


def directories(*overrides: str) -> tuple[Path, Path]:
    job = job_of(composed(*overrides))
    return job.run_dir, job.phase_dir


@pytest.mark.parametrize("benchmark", ["warm_start", "continual"])
def test_paper_scale_is_the_papers_protocol(benchmark: str) -> None:
    cfg = composed(f"benchmark={benchmark}", "scale=paper", "method=shrink_perturb")
    schema.check(VisionConfig, cfg)
    VISION.check(cfg)
    budget = cfg.budget
    assert (*DATA_SETS["cifar10"].used(budget), budget.width, budget.batch_size) == (50_000, 10_000, 64, 256)
    assert budget.epochs == ([1000, 100] if benchmark == "warm_start" else [100] * 10)
    assert budget.test_every == ([50, 1] if benchmark == "warm_start" else [1] * 10)
    shares = [0.1, 1.0] if benchmark == "warm_start" else [i / 10 for i in range(1, 11)]
    assert cfg.benchmark.fractions == pytest.approx(shares)
    assert dict(cfg.optimizer) == {"learning_rate": 1e-3, "warmup_fraction": 0.1, "clip_norm": 0.5}
    assert (cfg.optimizer_at_boundary, cfg.method.coefficient, cfg.precision) == ("reset", 0.8, "fp32")
    fire = composed(f"benchmark={benchmark}", "scale=paper").method
    assert (fire.name, fire.solver, fire.steps) == ("fire", "newton_schulz", 10)


@pytest.mark.parametrize(
    "same", ["wandb.mode=online", "data_dir=elsewhere", "debug=true", "checkpoint_seconds=5", "phase_cache=false"]
)
def test_what_changes_no_number_is_the_same_run(same: str) -> None:
    assert directories(same) == directories()


@pytest.mark.parametrize(
    ("other", "shares_phase_0"),
    [
        ("method=none", True), ("method.steps=20", True), ("optimizer_at_boundary=keep", True),
        ("model.scope.exclude=[head]", True), ("budget.epochs=[60,11]", True), ("seed=1", False),
        ("budget.epochs=[61,10]", False), ("precision=bf16", False), ("optimizer.learning_rate=1e-4", False),
        ("budget.width=9", False), ("threads=1", False), ("benchmark.order=classes", False),
    ],
)  # fmt: skip
def test_what_changes_a_number_is_another_run(other: str, shares_phase_0: bool) -> None:
    run, phase = directories("threads=2")
    other_run, other_phase = directories("threads=2", other) if "threads" not in other else directories(other)
    assert run != other_run
    assert (phase == other_phase) == shares_phase_0


def test_scale_is_only_a_name() -> None:
    numbers: Any = composed().budget
    overrides = [f"budget.{key}={value}".replace(" ", "") for key, value in numbers.items()]
    paper, laptop = (composed(f"scale={scale}", *overrides) for scale in ("paper", "laptop"))
    one, two = job_of(paper), job_of(laptop)
    assert one.identity == two.identity
    assert one.phase_dir == two.phase_dir
    assert one.run_dir.parent.name == "warm_start-cifar10-resnet18-paper"


@pytest.mark.parametrize(
    ("method", "settings", "values"),
    [
        ("redo", ("tau",), {"warm_start": [0.5], "continual": [0.05]}),
        ("cbp", ("replacement_rate", "maturity_threshold"), {"warm_start": [1e-4, 1000], "continual": [1e-5, 1000]}),
        ("snr", ("percentile",), {"warm_start": [0.99], "continual": [0.92]}),
    ],
)
def test_the_authors_values_of_each_benchmark(method: str, settings: tuple[str, ...], values: dict[str, list]) -> None:
    for benchmark, expected in values.items():
        chosen = composed("scale=paper", f"benchmark={benchmark}", f"method={method}").method
        assert [chosen[setting] for setting in settings] == expected
    assert composed("method=cbp").method.maturity_threshold == 40  # at scale=laptop
    assert composed("method=cbp", "method.maturity_threshold=7").method.maturity_threshold == 7


def test_a_method_that_acts_in_phase_0_has_its_own() -> None:
    words = ("method=l2_init", "method.coefficient=0.01")
    assert directories(*words)[1] == directories()[1]  # the warm start: from phase 1 on
    acting = [directories("benchmark=continual", *words, f"method.first_phase={phase}")[1] for phase in (0, 1)]
    assert directories("benchmark=continual", *words)[1] == acting[0] != acting[1]
    assert acting[1] == directories("benchmark=continual")[1]
    redo = ("benchmark=continual", "method=redo", "method.tau=0.1", "method.period=100")
    units = "+model.scope.units={relu: {incoming: conv1, outgoing: [conv2]}}"
    for first_phase, shares in ((0, False), (1, True)):  # the units that it resets decide its own phase 0
        one, other = (directories(*redo, f"method.first_phase={first_phase}", *w)[1] for w in ((), (units,)))
        assert (one == other) == shares
