"""Training steps as on a GPU, on the CPU: captured graphs are tapes, and copies between devices are counted."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fire
from experiments.common import run
from experiments.common.runtime import Runtime
from experiments.common.workspace import Workspace
from experiments.rl import transfers
from tests.conftest import Command, numbers, run_dirs
from tests.tape import Tape, launches

GRAPHS = Runtime("cpu", "fp32", "graphs", 1)
METHODS = ("none", "shrink_perturb", "full_reset", "fire", "plasticity_injection")


def capture_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the command line capture their steps although they are on the CPU."""

    def runtime(cfg: Any, _: str) -> Runtime:
        torch.set_num_threads(1)
        return Runtime("cpu", cfg.precision, "graphs", 1)

    monkeypatch.setattr(run, "resolve_runtime", runtime)


def method_of(name: str) -> fire.Method:
    """A reset method, with the settings it cannot do without."""
    return fire.build(name, **({"coefficient": 0.8} if name == "shrink_perturb" else {}))


def check_stops(
    call: Command, arguments: tuple[str, ...], outputs: Path, training: type, step: str, lengths: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A plain run by the command line, and a captured one that is stopped and resumed: the same rows to the bit.

    Args:
        call: the command line, and its arguments.
        outputs: where it puts runs by default is `outputs`/outputs.
        training: the class of the domain's loop, and the name of the method that is its step.
        lengths: after how many steps each part is stopped; the last part goes to the end.
    """
    status, printed = call(*arguments)
    assert status == 0, printed
    capture_everywhere(monkeypatch)
    turns = count()
    monkeypatch.setattr(Workspace, "save_due", lambda _: next(turns) % 9 == 8)
    original, into = getattr(training, step), outputs / "captured"
    for length in lengths:
        left = [length]

        def stopping(self: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            original(self)

        monkeypatch.setattr(training, step, stopping)
        status, printed = call(*arguments, f"outputs_dir={into}")
        assert status == 130, printed
        assert list(into.glob("**/checkpoint-*.pt"))
    monkeypatch.setattr(training, step, original)
    status, printed = call(*arguments, f"outputs_dir={into}")
    assert status == 0, printed
    (plain,), (captured,) = run_dirs(outputs / "outputs"), run_dirs(into)
    assert numbers(plain) == numbers(captured)


@dataclass
class Cost:
    """What a step has taken.

    Attributes:
        outside: operations launched one by one, the copies among them.
        inside: operations within graphs.
        graphs: how many of them were launched.
        copies: between CPU and GPU, each way.
    """

    outside: Counter[str]
    inside: Counter[str] = field(default_factory=Counter)
    graphs: int = 0
    copies: int = 0


def cost(step: Callable[[], object], tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> Cost:
    """Of a step whose graphs have been captured before."""
    before, captured, copies, original = [tape.replays for tape in tapes], len(tapes), [], transfers.copy

    def counted(there: Tensor, here: Tensor) -> None:
        copies.append(here)
        original(there, here)

    with monkeypatch.context() as patch:
        patch.setattr(transfers, "copy", counted)
        found = Cost(launches(step))
    assert len(tapes) == captured
    for tape, replays in zip(tapes, before, strict=True):
        for _ in range(tape.replays - replays):
            found.inside += tape.launches
            found.graphs += 1
    found.copies = len(copies)
    return found
