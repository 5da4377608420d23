"""The command lines of all domains refuse bad input: one clear line, a non-zero exit, nothing left behind."""

import shlex
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from experiments.common import memory
from experiments.domains import NAMES
from experiments.domains import domain as domain_of
from experiments.rl import replay
from tests.battery.rows import COMMON, ROWS

TURNS = [(NAMES[i % len(NAMES)], words, said) for i, (words, said) in enumerate(COMMON.items())]
OWN = [(name, words, said) for name, rows in ROWS.items() for words, said in rows.items()]


@pytest.mark.parametrize(("name", "words", "said"), TURNS + OWN, ids=lambda value: value[:60])
def test_refused(
    name: str, words: str, said: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (memory, replay):  # the same on every machine
        monkeypatch.setattr(module, "available", lambda device: 16e9)
    command: Callable[..., tuple[int, str]] = request.getfixturevalue(name)
    status, printed = command(*shlex.split(words))
    assert status != 0
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, printed
    assert said in errors[0]
    assert len(errors[0]) < 1000
    assert "Traceback" not in printed
    left = {path.name for path in (tmp_path / "outputs").glob("*")}
    assert left <= ({".hydra"} if "-m" in words else set())  # where Hydra keeps a sweep's own file


def numeric(schema: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of a schema that are numbers or lists of them, with their metadata."""
    found = {}
    hints = get_type_hints(schema)
    for item in schema.__dataclass_fields__.values():
        kind = hints[item.name]
        if is_dataclass(kind):
            found |= numeric(kind, f"{prefix}{item.name}.")
        elif {int, float} & {kind, *get_args(kind)}:
            found[prefix + item.name] = item.metadata
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_range_and_a_row(name: str) -> None:
    rows = " ".join([*COMMON, *ROWS[name]])
    for key, metadata in numeric(domain_of(name).schema).items():
        assert metadata.get("high") is not None, f"{key} has no upper bound"
        assert metadata.get("low") is not None or metadata.get("above") is not None, f"{key} has no lower bound"
        assert f"{key}=" in rows, f"{key} has no row"
