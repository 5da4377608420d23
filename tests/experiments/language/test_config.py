"""Configuration: the paper's protocol, recipes, and what makes two runs the same."""

import math
from functools import partial
from pathlib import Path

import pytest
from omegaconf import DictConfig

from experiments.common import schema
from experiments.common.config import build_method, compose_domain
from experiments.common.domain import describe
from experiments.common.errors import UserError
from experiments.common.runtime import resolve_runtime
from experiments.language import best, model, sources
from experiments.language.config import LanguageConfig
from experiments.language.distributed import ProcessGroup
from experiments.language.domain import LANGUAGE, Opened, load_corpora


def composed(*overrides: str) -> DictConfig:
    return compose_domain("language", LanguageConfig, [*overrides, "outputs_dir=outputs"])


def directories(text_dir: Path, *overrides: str, processes: int = 1) -> tuple[Path, Path]:
    cfg = composed(f"data_dir={text_dir}", *overrides)
    group = ProcessGroup("cpu")
    group.world_size = processes
    job = describe(LANGUAGE, cfg, resolve_runtime(cfg), build_method(cfg), Opened(*load_corpora(cfg), group))
    return job.run_dir, job.phase_dir


def check(cfg: DictConfig) -> None:
    schema.check(LanguageConfig, cfg)
    LANGUAGE.check(cfg)


@pytest.mark.parametrize(
    ("checkpoint", "coefficient", "at"), [("best", 0.5, 0), ("30k", 0.8, 30_000), ("60k", 0.5, 60_000)]
)
def test_paper_scale_is_the_papers_protocol(checkpoint: str, coefficient: float, at: int) -> None:
    cfg = composed("scale=paper", f"checkpoint={checkpoint}", "method=shrink_perturb")
    check(cfg)
    budget = cfg.budget
    assert (budget.layers, budget.heads, budget.width, budget.block) == (12, 12, 768, 1024)
    assert budget.sequences * budget.block == 491_520
    assert list(budget.iterations) == [97_282, 18_626]
    assert list(budget.eval_every) == [min(2000, n // 20) for n in budget.iterations]
    assert budget.learning_rate == 6e-4
    expected = {
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "warmup_fraction": 0.1,
        "warmup_limit": 2000,
    }
    assert dict(cfg.optimizer) == expected
    assert (cfg.tokenizer, cfg.precision, cfg.optimizer_at_boundary) == ("gpt2", "fp16", "reset")
    assert (list(cfg.data.first), list(cfg.data.second)) == (["wikitext103"], ["openwebtext"])
    assert cfg.data.split == "published"
    assert cfg.data.replay == pytest.approx(0.1 / 9.1, rel=1e-5)
    assert cfg.method.coefficient == coefficient
    fire = composed("scale=paper", f"checkpoint={checkpoint}").method
    assert (fire.name, fire.solver, fire.steps) == ("fire", "newton_schulz", 5)
    assert at == 0 or best.kept_at(checkpoint, budget.iterations[0]) == at
    assert sources.NAMED["wikitext103"].config == "wikitext-103-v1"


def test_workstation_is_gpt2_size_on_ones_own_files() -> None:
    cfg = composed("scale=workstation", "data.first=[a.parquet]", "data.second=[b.parquet,imdb]")
    check(cfg)
    budget, paper = cfg.budget, composed("scale=paper").budget
    assert all(budget[key] == paper[key] for key in ("layers", "heads", "width", "block", "learning_rate"))
    assert (cfg.data.name, cfg.tokenizer, cfg.precision) == ("files", "gpt2", "bf16")
    assert cfg.data.split == "official"
    assert 2_000_000 <= budget.first_tokens <= 5_000_000
    # Phase 0 until 60k, and four methods, at the 450,000 tokens a second that others report.
    iterations = best.kept_at("60k", budget.iterations[0]) + 4 * budget.iterations[1]
    assert iterations * budget.sequences * budget.block / 450_000 < 13 * 60
    assert composed("scale=workstation", "data=wikitext2_imdb").data.name == "wikitext2_imdb"


def test_learning_rate_is_a_warm_up_and_a_cosine() -> None:
    cfg = composed("scale=paper")
    at = partial(model.learning_rate, iterations=97_282, cfg=cfg)
    assert at(0) == pytest.approx(6e-4 / 2001)
    assert at(1999) < at(2000) == 6e-4 > at(2001)
    assert at(2000 + (97_282 - 2000) // 2) == pytest.approx((6e-4 + 6e-5) / 2)
    assert at(97_281) == pytest.approx(6e-5, rel=1e-4)
    assert at(50_000) == pytest.approx(6e-5 + 5.4e-4 * 0.5 * (1 + math.cos(math.pi * 48_000 / 95_282)))
    assert model.learning_rate(99, 1000, cfg) == pytest.approx(6e-4 * 100 / 101)  # a tenth of a short phase


@pytest.mark.parametrize(
    ("other", "shares_phase_0"),
    [
        ("method=none", True), ("method.steps=20", True), ("optimizer_at_boundary=keep", True),
        ("checkpoint=30k", True),
        ("data.replay=0.5", True), ("budget.iterations=[2800,501]", True), ("data.second=[wikitext2]", True),
        ("seed=1", False), ("budget.iterations=[2801,500]", False), ("precision=bf16", False),
        ("budget.width=165", False),
        ("budget.first_tokens=100000", False), ("patience=0.2", False), ("budget.micro_batch=16", False),
        ("model.scope.exclude=[lm_head]", True), ("budget.eval_every=[100,26]", True), ("method=redo", True),
        ("method=redo method.first_phase=0", False),
    ],
)  # fmt: skip
def test_what_changes_a_number_is_another_run(other: str, shares_phase_0: bool, text_dir: Path) -> None:
    run, phase = directories(text_dir)
    other_run, other_phase = directories(text_dir, *other.split())
    assert run != other_run
    assert (phase == other_phase) == shares_phase_0


def test_identity_is_the_text_not_its_place(text_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "language").symlink_to(text_dir / "language")
    assert directories(text_dir) == directories(tmp_path)
    assert directories(text_dir, processes=2)[1] != directories(text_dir)[1]


def test_the_name_of_a_choice_and_where_its_files_are_change_no_run(text_dir: Path) -> None:
    words = ("data=files", "data.first=[wikitext2]", "data.second=[imdb]")
    (run, phase), (named, same) = directories(text_dir, *words), directories(text_dir)
    assert (run.name, phase) == (named.name, same)
    assert run.parent.name == "files-60k-laptop"


def test_an_unknown_model_is_an_error() -> None:
    with pytest.raises(UserError, match=r"model\.name=llama is unknown; valid: gpt$"):
        check(composed("model.name=llama"))
