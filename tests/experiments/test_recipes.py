"""Every recipe of every domain: composed as the paper's protocol, and run at the smoke scale."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

import experiments.atari.protocol as atari
import experiments.humanoid.protocol as humanoid
import experiments.language.protocol as language
import experiments.vision.train as vision
from experiments.common.config import build_method, compose_sweep, recipes
from scripts.report.__main__ import report
from scripts.report.domains import DOMAINS as REPORTED
from scripts.report.recipes import GENERIC
from tests.conftest import DOMAINS, Command, run_dirs, schema_of

CHECKS: dict[str, ModuleType] = {"vision": vision, "language": language, "atari": atari, "humanoid": humanoid}
ALL = [(domain, recipe) for domain in DOMAINS for recipe in recipes(domain)]
FIGURES = {  # what each recipe named after a part of the paper is about
    "fig2a_cifar10": "warm_start", "fig2b_cifar10": "continual", "fig5a_cifar10": "warm_start",
    "fig5b_cifar10": "warm_start", "fig3_best": "best", "fig3_30k": "30k", "fig3_60k": "60k",
    "fig4a_asterix": "asterix", "fig4a_beam_rider": "beam_rider", "fig4a_demon_attack": "demon_attack",
    "fig4b_walk": "h1-walk", "fig4b_balance_simple": "h1-balance_simple", "fig4b_run": "h1-run",
}  # fmt: skip


def test_every_figure_has_its_recipe() -> None:
    assert {recipe for _, recipe in ALL} >= FIGURES.keys() | {"isometry_exactness", "interpolation", "scale_factor"}


@pytest.mark.parametrize(("domain", "recipe"), ALL)
def test_composes_at_paper_scale(domain: str, recipe: str) -> None:
    jobs = compose_sweep(domain, schema_of(domain), recipe, ["scale=paper", "seed=0"])
    assert len({OmegaConf.to_yaml(cfg.method) for cfg in jobs}) == len(jobs)
    assert {"none", "full_reset", "fire"} <= {cfg.method.name for cfg in jobs}
    seeds = {cfg.seed for cfg in compose_sweep(domain, schema_of(domain), recipe, ["method=none"])}
    assert len(seeds) == (5 if recipe.startswith("fig4") else 3)
    for cfg in jobs:
        CHECKS[domain].check(cfg)
        build_method(cfg)
        assert cfg.scale == "paper"
        if recipe in FIGURES:
            about = {"vision": lambda c: c.benchmark.name, "language": lambda c: c.checkpoint}
            about |= {"atari": lambda c: c.game, "humanoid": lambda c: c.task}
            assert about[domain](cfg) == FIGURES[recipe]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("domain", "tiny"),
    [
        ("vision", ["budget.train_images=100", "budget.test_images=20"]),
        ("language", ["budget.iterations=[4,2]"]),
        ("atari", []),
        ("humanoid", ["budget.steps=[200,100]", "budget.eval_every=100", "budget.eval_episodes=1"]),
    ],
)
def test_runs_in_a_few_steps(domain: str, tiny: list[str], request: pytest.FixtureRequest, tmp_path: Path) -> None:
    call: Callable[..., Command] = request.getfixturevalue(domain)
    jobs = 0
    for recipe in recipes(domain):
        status, printed = call(f"experiment={recipe}", "seed=0", *tiny)
        assert status == 0, printed
        ended = [line for line in printed.splitlines() if line.startswith("method=")]
        assert len(ended) == len(compose_sweep(domain, schema_of(domain), recipe, ["seed=0"])), printed
        assert all(" done " in line for line in ended)
        jobs += len(ended)
    assert 0 < len(run_dirs(tmp_path / "outputs")) < jobs  # recipes share runs, which are done once
    if not tiny:  # the scale's own numbers, so that the report knows the runs for the recipes'
        report(REPORTED[domain], [tmp_path / "outputs" / domain], tmp_path / "report")
        about = [json.loads(path.read_text())["recipe"] for path in (tmp_path / "report").glob("*.json")]
        assert sorted(about) == sorted(recipe for recipe in recipes(domain) if recipe not in GENERIC)
