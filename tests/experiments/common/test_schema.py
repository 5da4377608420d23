"""What fields say of their values: ranges, and what they decide."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments.common import schema
from experiments.common.errors import UserError
from experiments.common.schema import EACH_PHASE, LATER_PHASES, NOTHING, setting
from experiments.domains import NAMES, domain


@dataclass
class Inner:
    steps: list[int] = setting([3, 2], low=1, length=2, decides=EACH_PHASE)
    share: float | None = setting(None, above=0, high=1)


@dataclass
class Outer:
    seed: int = setting(0, low=0)
    folder: str = setting("here", decides=NOTHING)
    compile: str = setting("auto", choices=("auto", "true"))
    method: Any = setting("fire", decides=LATER_PHASES)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=-1", "seed=-1 must not be negative"),
        ("compile=maybe", "compile=maybe is unknown; valid: auto, true"),
        ("compile=True", None),
        ("inner.share=0", r"inner.share=0.0 must lie in \(0, 1\]"),
        ("inner.share=nan", r"inner.share=nan must lie in \(0, 1\]"),
        ("inner.share=1", None),
        ("inner.steps=[1,0]", r"inner.steps=\[1, 0\] must be at least 1"),
        ("inner.steps=[1]", r"inner.steps=\[1\] must be 2 numbers"),
    ],
)
def test_ranges(word: str, message: str | None) -> None:
    cfg = OmegaConf.merge(OmegaConf.structured(Outer), OmegaConf.from_dotlist([word]))
    if message is None:
        schema.check(Outer, cfg)
    else:
        with pytest.raises(UserError, match=message):
            schema.check(Outer, cfg)


def test_identities() -> None:
    values: Any = OmegaConf.to_container(OmegaConf.structured(Outer))
    inner = {"steps": [3, 2], "share": None}
    assert schema.identity(Outer, values) == {"seed": 0, "compile": "auto", "method": "fire", "inner": inner}
    first = {"seed": 0, "compile": "auto", "inner": {"steps": 3, "share": None}}
    assert schema.identity(Outer, values, phase_0=True) == first
    assert set(schema.later_keys(Outer)) == {"folder", "method"}


@pytest.mark.parametrize("name", NAMES)
def test_what_phase_0_ignores_is_the_same_in_every_domain(name: str) -> None:
    later = schema.later_keys(domain(name).schema)
    assert {"method", "optimizer_at_boundary", "sharpness", "outputs_dir", "model.scope.include"} <= set(later)
    assert not {"seed", "model.name", "model.scope.fused", "precision", "threads"} & set(later)
