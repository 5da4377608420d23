"""The captured step, which a GPU runs, on the CPU with tapes: what it computes and what it costs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fire
from experiments.atari import envs
from experiments.atari.config import AtariConfig
from experiments.atari.train import AtariTraining
from experiments.common.config import Runtime, compose_domain
from experiments.common.device_replay import DeviceReplay
from tests.conftest import numbers, run_dirs
from tests.experiments.atari.scripted import Scripted
from tests.experiments.common.captured import GRAPHS, capture_everywhere, check_stops, cost, method_of
from tests.tape import Tape

METHODS = "none,shrink_perturb,full_reset,fire,plasticity_injection"
Atari = Callable[..., tuple[int, str]]


def training(tmp_path: Path, *overrides: str, runtime: Runtime = GRAPHS) -> AtariTraining:
    """One that has begun, at the paper's replay ratio."""
    given = ["scale=smoke", "replay_ratio=1", "budget.learning_starts=64", f"outputs_dir={tmp_path}", *overrides]
    ours = AtariTraining(compose_domain("atari", AtariConfig, given), runtime, fire.build("none"))
    ours.restart_environments()
    return ours


def test_what_a_step_costs(tmp_path: Path, taped: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    """Four environments and four updates. These numbers may only fall."""
    ours = training(tmp_path)
    while ours.step < 100:
        ours.take_step()
    found = cost(ours.take_step, taped, monkeypatch)
    assert ours.learner.totals[-1] == 4 * 10
    assert found.graphs == 2  # acting, learning
    assert found.copies == 2  # one each way
    # Besides the copies and the conversion of what is kept for a checkpoint: candidates are drawn, and random actions.
    assert found.outside.total() <= 8, found.outside
    # 24 of them are copies of gradients, most because the tape holds the gradients too.
    assert found.inside.total() <= 269, found.inside


def test_captured_steps_are_those_of_the_plain_loop(tmp_path: Path, taped: list[Tape]) -> None:
    """To the bit, step by step: actions, weights, and everything in the buffer, which goes round, with environments
    that start afresh, and one or two updates a step."""
    settings = ["replay_ratio=0.3", "budget.buffer=120", "budget.restart_every=80", "dqn.epsilon=[1.0,0.1]"]
    plain = training(tmp_path, *settings, runtime=Runtime("cpu", "fp32", "false", 1))
    captured = training(tmp_path, *settings)
    assert isinstance(captured.buffer, DeviceReplay)
    for _ in range(45):
        for one in (plain, captured):
            one.take_step()
        assert torch.equal(plain.played[-1], captured.played[-1])
    assert len(taped) == 3  # acting, one update, two
    assert plain.buffer.oldest == captured.buffer.oldest > 0
    for a, b in zip(plain.learner.online.parameters(), captured.learner.online.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(plain.learner.totals, captured.learner.totals)
    one, other = (each.probe("probe", 300) for each in (plain, captured))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for name in ("frames", "begins", "actions", "rewards", "ends"):
        assert torch.equal(getattr(plain.buffer, name), getattr(captured.buffer, name)), name


@pytest.mark.parametrize("method", METHODS.split(","))
def test_acting_is_by_the_network_that_a_reset_leaves(method: str, tmp_path: Path, taped: list[Tape]) -> None:
    ours = training(tmp_path, "dqn.epsilon=[0.5,0.5]")
    while ours.step < 80:
        ours.take_step()
    assert ours.on_device is not None
    assert ours.observations is not None
    built = method_of(method)
    built.reset(ours.learner.online, ours.initial, ours.scope)
    ours.learner.follow()
    if built.resets_optimizer:
        ours.learner.new_optimizer()
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in ours.learner.online.parameters():
                parameter.normal_()
            expected = ours.learner.online(ours.observations).argmax(1)
        assert torch.equal(ours.learner.act_in(ours.on_device), expected)
        assert torch.equal(ours.learner.act(ours.observations), expected)
        seen.add(tuple(expected.tolist()))
    assert len(seen) > 2


def test_no_copy_is_overtaken(tmp_path: Path, taped: list[Tape]) -> None:
    """The memory of a parcel that is on its way is opened only after a wait for it."""
    ours = training(tmp_path)
    assert ours.on_device is not None
    parcel, waits = ours.on_device.parcel, []

    class Event:
        def record(self) -> None:
            pass

        def synchronize(self) -> None:
            waits.append(ours.step)

    parcel._sent = Event()  # type: ignore[assignment]
    for _ in range(5):
        ours.take_step()
    assert waits == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("method", METHODS.split(","))
def test_resets_and_checkpoints(
    method: str, atari: Atari, tmp_path: Path, taped: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain run, and a captured one that is stopped in both phases and goes on: the same rows to the bit."""
    monkeypatch.setattr(envs, "make", lambda _game, count: Scripted(count))
    arguments = (
        f"method={method}", "budget.steps=[320,240]", "budget.log_every=80", "budget.eval_every=160",
        "budget.restart_every=112", "budget.buffer=200", "budget.learning_starts=64", "sharpness=32",
    )  # fmt: skip
    lengths = (30, 55, 40)  # in phase 0, after its end, near that of phase 1
    check_stops(atari, arguments, tmp_path, AtariTraining, "take_step", lengths, monkeypatch)
    assert taped


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_runs_are_the_plain_ones(
    precision: str, atari: Atari, tmp_path: Path, taped: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole runs with every method, by the command line: the same rows to the bit."""
    arguments = ("-m", f"method={METHODS}", f"precision={precision}", "budget.buffer=600")
    status, printed = atari(*arguments)
    assert status == 0, printed
    capture_everywhere(monkeypatch)
    status, printed = atari(*arguments, f"outputs_dir={tmp_path / 'captured'}")
    assert status == 0, printed
    assert taped
    plain, captured = run_dirs(tmp_path / "outputs"), run_dirs(tmp_path / "captured")
    assert len(plain) == len(captured) == 5
    rows = [{path.name.rsplit("-", 1)[0]: numbers(path) for path in paths} for paths in (plain, captured)]
    assert rows[0] == rows[1]
