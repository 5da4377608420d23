"""The best checkpoint of phase 0: on disk before any state that names it, the same after every kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.common import checkpoint
from experiments.language import protocol
from experiments.language.train import LanguageTraining
from tests.conftest import Command, numbers, run_dirs

# Validation losses by iteration of phase 0. The best comes after 3 and is settled after 5, comes after 8 and is settled
# after 10, or comes after the last.
EARLY = [9.0, 8.0, 4.0, *[5.0] * 9]
MIDDLE = [9, 8, 7, 7.5, 6, 5, 5.5, 4, 4.5, 4.6, 4.7, 4.8]
LATE = [9.0 - number / 10 for number in range(12)]
SETTINGS = (
    "method=none", "budget.iterations=[12,1]", "budget.eval_every=[1,1]", "budget.log_every=1", "patience=0.15",
    "checkpoint_seconds=1000",
)  # fmt: skip
PERIODIC = {"30k": 4, "60k": 7}  # the checkpoints that are kept, and after which iterations


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Phase 0 has the validation losses that are given."""
    evaluate = LanguageTraining.evaluate
    monkeypatch.setattr(protocol, "PERIODIC", list(PERIODIC))

    def script(values: list[float]) -> None:
        def scripted(self: LanguageTraining) -> dict[str, float]:
            measured = evaluate(self)
            return measured | ({"val/loss": values[self.iteration - 1]} if self.phase == 0 else {})

        monkeypatch.setattr(LanguageTraining, "evaluate", scripted)

    return script


class Killed(BaseException):
    """Stands in for a kill."""


def killed_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """The process dies before its operation `number` on the files of checkpoints."""
    left = [number]
    for name in ("write_checked", "move", "link", "_drop_others"):
        real = getattr(checkpoint, name)

        def dies(*arguments: Any, real: Callable[..., Any] = real) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(*arguments)

        patch.setattr(checkpoint, name, dies)


def check_invariant(folder: Path) -> int:
    """Every checkpoint's best is on disk; how many checkpoints there are."""
    kept = checkpoint.kept(folder)
    paths = list(folder.glob("checkpoint-*.pt"))
    for path in paths:
        _, at, _ = (checkpoint.read(path) or {})["state"]["best"]
        if at > 0:
            names = [name for name in (f"best_at_{at}", "best") if name in kept]
            best = checkpoint.read(kept[names[0]]) or {}
            assert best["state"]["position"][:2] == [0, at]
    return len(paths)


@pytest.mark.parametrize(
    ("script", "branch", "at", "step"),
    [
        (MIDDLE, "best", 8, 3),
        pytest.param(MIDDLE, "best", 8, 1, marks=pytest.mark.slow),
        pytest.param(EARLY, "60k", 3, 1, marks=pytest.mark.slow),
        pytest.param(LATE, "best", 12, 1, marks=pytest.mark.slow),
    ],
)
def test_a_kill_between_any_two_operations(
    script: list[float], branch: str, at: int, step: int, losses: Callable, language_made: Command, tmp_path: Path
) -> None:
    """A run that is killed before operation 1, 1 + step, 1 + 2 step, ... ends with the numbers of the whole one."""
    losses(script)
    arguments = (*SETTINGS, f"checkpoint={branch}")
    assert language_made(*arguments, f"outputs_dir={tmp_path / 'whole'}")[0] == 0
    whole = numbers(run_dirs(tmp_path / "whole")[0])
    (phase,) = (tmp_path / "whole" / "phases").iterdir()
    assert (checkpoint.read(checkpoint.kept(phase)["best"]) or {})["state"]["position"][1] == at
    assert not [name for name in checkpoint.kept(phase) if name.startswith("best_at_")]
    seen, number, finished = set(), 1, False
    while not finished:
        outputs = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            killed_at(number, patch)
            try:
                finished = language_made(*arguments, f"outputs_dir={outputs}")[0] == 0
            except Killed:
                phases = list((outputs / "phases").glob("*"))
                seen |= {check_invariant(folder) for folder in phases}
        status, printed = language_made(*arguments, f"outputs_dir={outputs}")
        assert status == 0, printed
        assert numbers(run_dirs(outputs)[0]) == whole
        number += step
    assert {1, 2} <= seen
    assert number > 20


def test_a_lost_best_is_one_line(losses: Callable, language_made: Command, tmp_path: Path) -> None:
    losses(MIDDLE)
    assert language_made(*SETTINGS, "checkpoint=30k", "until=phase0")[0] == 0
    (phase,) = (tmp_path / "outputs" / "phases").iterdir()
    checkpoint.kept(phase)["best_at_3"].unlink()
    status, printed = language_made(*SETTINGS, "checkpoint=60k")
    assert status == 1
    assert "error: the checkpoint best_at_3 is missing, as in an unfinished phase of an older version; " in printed
    assert f"delete {phase} to start over" in printed
