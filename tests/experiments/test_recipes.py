"""Every recipe of every domain: composed as the paper's protocol, and run at the smoke scale."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiments.common import schema
from experiments.common.config import build_method, recipes
from experiments.domains import domain as domain_of
from tests.conftest import DOMAINS, Command, jobs_of, run_dirs

ALL = [(domain, recipe) for domain in DOMAINS for recipe in recipes(domain)]
FIGURES = {  # what each recipe named after a part of the paper is about
    "fig2a_cifar10": "warm_start-cifar10-resnet18", "fig2b_cifar10": "continual-cifar10-resnet18",
    "fig2a_cifar10_core": "warm_start-cifar10-resnet18", "fig2b_cifar10_core": "continual-cifar10-resnet18",
    "fig5a_cifar10": "warm_start-cifar10-resnet18", "fig5b_cifar10": "warm_start-cifar10-resnet18",
    "fig3_best": "wikitext103_openwebtext-best", "fig3_30k": "wikitext103_openwebtext-30k",
    "fig3_60k": "wikitext103_openwebtext-60k", "fig4a_asterix": "asterix", "fig4a_beam_rider": "beam_rider",
    "fig4a_demon_attack": "demon_attack", "fig4b_walk": "h1-walk", "fig4b_balance_simple": "h1-balance_simple",
    "fig4b_run": "h1-run",
}  # fmt: skip

BEYOND = {"isometry_or_norm", "isometry_exactness", "interpolation", "scale_factor"}


def test_every_figure_has_its_recipe() -> None:
    assert {recipe for _, recipe in ALL} >= FIGURES.keys() | BEYOND


@pytest.mark.parametrize(("domain", "recipe"), ALL)
def test_composes_at_paper_scale(domain: str, recipe: str, robot_dir: Path) -> None:
    described = domain_of(domain)
    jobs = jobs_of(domain, recipe, "scale=paper", "seed=0")
    assert len({OmegaConf.to_yaml(cfg.method) for cfg in jobs}) == len(jobs)
    assert {"none", "full_reset", "fire"} <= {cfg.method.name for cfg in jobs}
    seeds = {cfg.seed for cfg in jobs_of(domain, recipe, "method=none")}
    assert len(seeds) == (5 if recipe.startswith("fig4") or recipe == "isometry_or_norm" else 3)
    for cfg in jobs:
        cfg.data_dir = str(robot_dir)
        schema.check(described.schema, cfg)
        described.check(cfg)
        build_method(cfg)
        assert cfg.scale == "paper"
        if recipe in FIGURES:
            assert described.benchmark(cfg) == FIGURES[recipe]


def test_fires_variants_differ_from_it_in_one_setting_alone() -> None:
    """Also where a domain tunes FIRE: the language model takes 5 steps."""
    variants = (("vision", "isometry_exactness"), ("language", "interpolation"), ("language", "scale_factor"))
    for domain, recipe in variants:
        settings = {cfg.method.name: dict(cfg.method) for cfg in jobs_of(domain, recipe, "seed=0")}
        for name, one in settings.items():
            if name.startswith("fire_"):
                different = {key for key in one if one[key] != settings["fire"][key]} - {"name"}
                assert len(different) == 1, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("domain", "tiny"),
    [
        ("vision", ["budget.train_images=100", "budget.test_images=20"]),
        ("language", ["budget.iterations=[4,2]"]),
        (
            "atari",
            ["budget.steps=[160,160]", "budget.learning_starts=64", "budget.eval_every=160", "budget.eval_steps=4"],
        ),
        ("humanoid", ["budget.steps=[200,100]", "budget.eval_every=100", "budget.eval_episodes=1"]),
    ],
)
def test_runs_in_a_few_steps(
    domain: str, tiny: list[str], request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if domain == "atari":  # real environments would take minutes to start
        from tests.experiments.atari.scripted import Scripted

        monkeypatch.setattr("experiments.atari.envs.make", lambda _game, count, _sticky: Scripted(count))
    call: Callable[..., Command] = request.getfixturevalue(domain)
    jobs = 0
    for recipe in recipes(domain):
        status, printed = call(f"experiment={recipe}", "seed=0", *tiny)
        assert status == 0, printed
        ended = [line for line in printed.splitlines() if line.startswith("method=")]
        assert len(ended) == len(jobs_of(domain, recipe, "seed=0")), printed
        assert all(" done " in line for line in ended)
        jobs += len(ended)
    assert 0 < len(run_dirs(tmp_path / "outputs")) < jobs  # recipes share runs, which are done once
    # A run knows every recipe that has asked for it, also those that came when it was done.
    asked = [path for directory in run_dirs(tmp_path / "outputs") for path in (directory / "recipes").glob("*.json")]
    assert len(asked) == jobs
    assert {path.stem for path in asked} == set(recipes(domain))
    assert all("none" in json.loads(path.read_text())["method"].split(",") for path in asked)
