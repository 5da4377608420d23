"""The best checkpoint of phase 0: held in memory, on disk before any state that names it, the same after every kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.common import checkpoint
from experiments.common.workspace import Workspace
from experiments.language import best
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
    monkeypatch.setattr(best, "PERIODIC", list(PERIODIC))

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
    for name in ("write_checked", "move", "link", "drop"):
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
        _, at, settled = (checkpoint.read(path) or {})["state"]["best"]
        if at > 0:
            names = [name for name in (f"best_at_{at}", "best") if name in kept]
            assert "best" in names or not settled
            best = checkpoint.read(kept[names[0]]) or {}
            assert best["state"]["position"][:2] == [0, at]
    return len(paths)


@pytest.mark.parametrize(
    ("script", "branch", "at", "step"),
    [
        (MIDDLE, "best", 8, 7),
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


def test_an_improvement_writes_nothing(
    losses: Callable, language_made: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every validation improves; what is written are the periodic checkpoints, which are the best of that moment, and
    at the end the best and the state that knows it."""
    losses(LATE)
    written, write = [0], checkpoint.write_checked

    def counted(*arguments: Any) -> Any:
        written[0] += 1
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write_checked", counted)
    status, printed = language_made(*SETTINGS, "checkpoint=best", "until=phase0")
    assert status == 0, printed
    assert written[0] == len(PERIODIC) + 2


def test_what_is_written_later_is_what_was(
    losses: Callable, language_made: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of the best is, byte for byte, the one that would have been written at once."""
    losses([*MIDDLE[:4], 3.9, *MIDDLE[5:]])  # after 5, when nothing is written
    at_once: dict[int, str] = {}
    snapshot = Workspace.snapshot

    def also_written(self: Workspace, state: dict[str, Any]) -> dict[str, Any]:
        at = state["position"][1]
        checkpoint.save_as(tmp_path, self._content(state), f"at_once_{at}")
        at_once[at] = checkpoint.kept(tmp_path)[f"at_once_{at}"].stem[-16:]
        return snapshot(self, state)

    monkeypatch.setattr(Workspace, "snapshot", also_written)
    status, printed = language_made(*SETTINGS, "checkpoint=best", "until=phase0")
    assert status == 0, printed
    (phase,) = (tmp_path / "outputs" / "phases").iterdir()
    assert checkpoint.kept(phase)["best"].stem[-16:] == at_once[5]
    content = checkpoint.read(checkpoint.kept(phase)["best"]) or {}
    assert content["state"]["best"] == [3.9, 5, False]
    assert content["log"]["rows"] == 5


def test_a_lost_best_is_one_line(losses: Callable, language_made: Command, tmp_path: Path) -> None:
    losses(MIDDLE)
    assert language_made(*SETTINGS, "checkpoint=30k", "until=phase0")[0] == 0
    (phase,) = (tmp_path / "outputs" / "phases").iterdir()
    checkpoint.kept(phase)["best_at_3"].unlink()
    status, printed = language_made(*SETTINGS, "checkpoint=60k")
    assert status == 1
    assert "error: the checkpoint best_at_3 is missing, as in an unfinished phase of an older version; " in printed
    assert f"delete {phase} to start over" in printed
