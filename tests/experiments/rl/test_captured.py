"""The captured step, which a GPU runs, on the CPU with tapes: what it computes and what it costs."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fire
from experiments.atari import envs
from experiments.common.runtime import Runtime
from experiments.rl.device_replay import DeviceReplay
from tests.conftest import Command, numbers, run_dirs, slow
from tests.experiments.rl import precision
from tests.experiments.rl.captured import GRAPHS, METHODS, capture_everywhere, check_stops, cost, method_of
from tests.tape import Tape

ACTING = {
    "l2_init": ["method.coefficient=0.01"], "redo": ["method.period=6", "method.tau=0.5"],
    "cbp": ["method.replacement_rate=0.01", "method.maturity_threshold=3"], "snr": ["method.period=3"],
    "parseval": ["method.coefficient=0.001"],
}  # fmt: skip
OTHER_ACTING = sorted({*ACTING} - {"redo"})


def test_what_a_step_costs(
    name: str, agent: Any, tmp_path: Path, taped: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four environments and four updates, or an action and two. These numbers may only fall."""
    ours = agent.training(tmp_path, runtime=GRAPHS)
    step = getattr(ours, agent.STEP)
    while ours.step < 100:
        step()
    before = ours.buffer.stop
    found = cost(step, taped, monkeypatch)
    assert ours.buffer.stop == before + 1  # not the action that ends an episode, which sends one observation more
    assert found.graphs == 2  # acting, learning
    assert found.copies == 2  # one each way
    # Besides the copies: candidates and noise are drawn, and the types of what comes back are changed.
    assert found.outside.total() <= 8, found.outside
    assert found.inside.total() <= agent.MOST_INSIDE, found.inside


LIKE_PLAIN = {
    # A buffer that goes round; environments that start again or episodes that end; one or two updates a step, or fewer.
    "atari": [["replay_ratio=0.3", "budget.buffer=80", "budget.restart_every=60", "dqn.epsilon=[1.0,0.1]"]],
    "humanoid": [[f"sac.replay_ratio={ratio}", "budget.buffer=60"] for ratio in (2, 0.7)],
}


@pytest.mark.parametrize("method", ["none", *map(slow, ACTING)])
def test_captured_steps_are_those_of_the_plain_loop(
    method: str, name: str, agent: Any, tmp_path: Path, taped: list[Tape]
) -> None:
    """To the bit, step by step: actions, weights, and everything in the buffer."""
    for settings in LIKE_PLAIN[name] if method == "none" else LIKE_PLAIN[name][:1]:
        taped.clear()
        given = [*settings, f"method={method}"]
        if method != "none":
            given += [*ACTING[method], "method.first_phase=0"]
        plain, captured = (agent.training(tmp_path, *given, runtime=one) for one in (agent.EAGER, GRAPHS))
        assert isinstance(captured.buffer, DeviceReplay)
        for _ in range(70 if name == "humanoid" else 45):
            for one in (plain, captured):
                getattr(one, agent.STEP)()
            assert agent.same_actions(plain, captured)
        assert len(taped) == (3 if name == "atari" else 2)  # acting and the updates of each number
        assert plain.meter.window == captured.meter.window
        assert plain.buffer.oldest == captured.buffer.oldest > 0
        ours, theirs = (agent.weights(one.learner) for one in (plain, captured))
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
        assert torch.equal(plain.learner.totals, captured.learner.totals)
        metrics = [one.during.metrics() for one in (plain, captured)]
        assert metrics[0] == metrics[1]
        if (method, name) == ("snr", "humanoid"):  # no unit of the small actor is silent for a whole batch
            states = [one.during.state_dict() for one in (plain, captured)]
            assert all(torch.equal(states[0][key], states[1][key]) for key in ("ages", "thresholds", "fired"))
        else:
            assert all(value > 0 for value in metrics[0].values())
        batches = [one.probe("probe", 300)[0] for one in (plain, captured)]
        assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
        for key in ("frames", "begins", "actions", "rewards", "ends"):
            assert torch.equal(getattr(plain.buffer, key), getattr(captured.buffer, key)), key


@pytest.mark.parametrize("method", METHODS)
def test_acting_is_by_the_network_that_a_reset_leaves(
    method: str, name: str, agent: Any, tmp_path: Path, taped: list[Tape]
) -> None:
    settings = ["dqn.epsilon=[0.5,0.5]"] if name == "atari" else []
    ours = agent.training(tmp_path, *settings, runtime=GRAPHS)
    while ours.step < 80:
        getattr(ours, agent.STEP)()
    built = method_of(method)
    built.reset(ours.network, ours.initial, ours.scope)
    ours.learner.follow()
    if built.resets_optimizer:
        ours.learner.new_optimizers()
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in ours.network.parameters():
                parameter.normal_()
        explored, expected, acted, expected_act = agent.next_actions(ours)
        assert torch.equal(explored, expected)
        assert torch.equal(acted, expected_act)
        seen.add(str(acted.tolist()))
    assert len(seen) > 2
    assert ours.on_device is not None
    assert ours.learner.act_in(ours.on_device) is ours.learner.act_in(ours.on_device)  # always the same memory


def test_no_copy_is_overtaken(tmp_path: Path, taped: list[Tape]) -> None:
    """The memory of a parcel that is on its way is opened only after a wait for it."""
    from tests.experiments.atari import agent

    ours = agent.training(tmp_path, runtime=GRAPHS)
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


@pytest.mark.parametrize(
    "method", ["fire", "plasticity_injection", "redo", *map(slow, ["shrink_perturb", "full_reset", *OTHER_ACTING])]
)
def test_resets_and_checkpoints(
    method: str, name: str, agent: Any, command: Command, tmp_path: Path, taped: list[Tape],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A plain run, and a captured one that is stopped in both phases and resumed: the same rows to the bit."""
    if name == "atari":
        from tests.experiments.atari.scripted import Scripted

        monkeypatch.setattr(envs, "make", lambda _game, count, _sticky: Scripted(count))
    training = {"atari": "AtariTraining", "humanoid": "HumanoidTraining"}[name]
    arguments = (f"method={method}", *ACTING.get(method, ()), *agent.SHORT, "sharpness=32")
    check_stops(command, arguments, tmp_path, getattr(agent, training), agent.STEP, agent.STOPS, monkeypatch)
    assert taped


@pytest.mark.slow
def test_captured_runs_are_the_plain_ones_in_half_precision(
    name: str, command: Command, tmp_path: Path, taped: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole runs with every method, by the command line: the same rows to the bit."""
    arguments = ("-m", f"method={','.join(METHODS)}", "precision=bf16")
    status, printed = command(*arguments)
    assert status == 0, printed
    capture_everywhere(monkeypatch)
    status, printed = command(*arguments, f"outputs_dir={tmp_path / 'captured'}")
    assert status == 0, printed
    assert taped
    plain, captured = run_dirs(tmp_path / "outputs"), run_dirs(tmp_path / "captured")
    assert len(plain) == len(captured) == 5
    rows = [{path.name.rsplit("-", 1)[0]: numbers(path) for path in paths} for paths in (plain, captured)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_updates_are_eager_ones_to_the_bit(precision: str, agent: Any, taped: list[Tape]) -> None:
    """Weights, moments and sums, with one and two steps of the optimisers in an update."""
    both = []
    for way in ("false", "graphs"):
        torch.manual_seed(0)
        one = agent.learner(runtime=Runtime("cpu", precision, way, 1))
        for seed in range(6):
            one.update(agent.transitions(one.batch_size * (1 + seed % 2), seed))
        moments = [t for optimizer in one.optimizers for state in optimizer.state.values() for t in state.values()]
        both.append([*agent.weights(one).values(), one.totals, *moments])
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))
    assert len(taped) == 2  # one for each size


@pytest.mark.parametrize("way", ["false", "graphs"])
def test_a_penalty_is_part_of_every_loss(way: str, agent: Any, taped: list[Tape]) -> None:
    """Of DQN's loss, and of the actor's and the critics' with each its own parameters: against plain float64."""
    one, plain = (agent.learner(runtime=Runtime("cpu", "fp32", how, 1)) for how in (way, "false"))
    exact, without = agent.Exact(plain), agent.Exact(plain)
    initial = {key: tensor.clone() for key, tensor in one.network.state_dict().items()}
    for each in (one, plain):
        each.use(fire.build("l2_init", coefficient=3.0).during(each.network, initial, fire.Scope()))
    start = [p.detach().clone() for p in exact.network.parameters()]
    exact.penalty = lambda: (
        1.5 * sum((p - before).square().sum() for p, before in zip(exact.network.parameters(), start, strict=True))
    )
    for seed in range(12):
        for each in (one, plain, exact, without):
            each.update(agent.transitions(one.batch_size * (1 + seed % 2), seed))
    precision.check(*(agent.weights(each) for each in (one, plain, exact)), "with a penalty")
    assert max(precision.distances(agent.weights(without), agent.weights(exact)).values()) > 0.01


@pytest.mark.parametrize("way", ["false", "graphs"])
def test_a_method_acts_once_for_every_step_of_the_optimisers(way: str, agent: Any, taped: list[Tape]) -> None:
    """Though an update of several steps may be one graph."""
    calls = []

    class Counting(fire.During):
        def after_step(self, *optimizers: torch.optim.Optimizer) -> None:
            calls.append(optimizers)

    one = agent.learner(runtime=Runtime("cpu", "fp32", way, 1))
    one.use(Counting())
    for steps in (1, 3, 2):
        one.update(agent.transitions(one.batch_size * steps))
    assert one.totals[-1] == len(calls) == 6
    assert all(optimizers == tuple(one.optimizers) for optimizers in calls)
