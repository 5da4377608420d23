"""The captured step, which a GPU runs, on the CPU with tapes: what it computes and what it costs."""

from pathlib import Path

import pytest
import torch

import fire
from experiments.common.config import Runtime, compose_domain
from experiments.common.device_replay import DeviceReplay
from experiments.humanoid.config import HumanoidConfig
from experiments.humanoid.train import HumanoidTraining
from tests.conftest import Command, numbers, run_dirs
from tests.experiments.common.captured import GRAPHS, capture_everywhere, check_stops, cost, method_of
from tests.tape import Tape

METHODS = ("none", "shrink_perturb", "full_reset", "fire", "plasticity_injection")


def training(data_dir: Path, tmp_path: Path, *overrides: str, runtime: Runtime = GRAPHS) -> HumanoidTraining:
    """One that has not begun."""
    folders = [f"data_dir={data_dir}", f"outputs_dir={tmp_path}"]
    given = ["scale=smoke", "env.backend=native", "budget.random_actions=30", *folders, *overrides]
    return HumanoidTraining(compose_domain("humanoid", HumanoidConfig, given), runtime, fire.build("none"))


def test_what_an_action_costs(
    robot_dir: Path, tmp_path: Path, taped: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the two updates that come with it. These numbers may only fall."""
    ours = training(robot_dir, tmp_path)
    while ours.step < 80:
        ours.take_action()
    assert ours.player.taken > 0  # not the action that ends an episode, which sends one observation more
    found = cost(ours.take_action, taped, monkeypatch)
    assert ours.player.taken > 0
    assert found.graphs == 2  # acting, learning
    assert found.copies == 2  # one each way
    # Besides the copies: candidates and noise are drawn, and the observation becomes float32.
    assert found.outside.total() <= 8, found.outside
    # 24 of them are copies of gradients: autograd makes them because the tape holds the gradients too.
    assert found.inside.total() <= 508, found.inside


@pytest.mark.parametrize("ratio", [2, 0.7])
def test_captured_steps_are_those_of_the_plain_loop(
    ratio: float, robot_dir: Path, tmp_path: Path, taped: list[Tape]
) -> None:
    """To the bit, action by action: observations, weights, statistics, and everything in the buffer, which goes round,
    over the ends of episodes; with less than an update an action too."""
    settings = [f"sac.replay_ratio={ratio}", "budget.buffer=60"]
    plain = training(robot_dir, tmp_path, *settings, runtime=Runtime("cpu", "fp32", "false", 1))
    captured = training(robot_dir, tmp_path, *settings)
    assert isinstance(captured.buffer, DeviceReplay)
    for _ in range(80):
        for one in (plain, captured):
            one.take_action()
        assert plain.observation is not None
        assert captured.observation is not None
        assert torch.equal(plain.observation, captured.observation)
    assert len(taped) == 2  # acting and the updates
    assert plain.meter.window["episodes"] == captured.meter.window["episodes"] > 0
    assert plain.buffer.oldest == captured.buffer.oldest > 0
    one, other = (each.probe("probe", 300) for each in (plain, captured))
    assert torch.equal(one[1], other[1])
    assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    weights = [
        [*each.learner.agent.parameters(), *each.learner.target.parameters(), each.learner.log_temperature]
        for each in (plain, captured)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert torch.equal(plain.learner.totals, captured.learner.totals)
    normalisers = [each.learner.normaliser for each in (plain, captured)]
    for name in ("mean", "variance", "shift", "scale"):
        assert torch.equal(getattr(normalisers[0], name), getattr(normalisers[1], name)), name


@pytest.mark.parametrize("method", METHODS)
def test_acting_is_by_the_network_that_a_reset_leaves(
    method: str, robot_dir: Path, tmp_path: Path, taped: list[Tape]
) -> None:
    ours = training(robot_dir, tmp_path)
    while ours.step < 80:
        ours.take_action()
    learner, buffer = ours.learner, ours.on_device
    assert buffer is not None
    assert ours.observation is not None
    method_of(method).reset(learner.agent, ours.initial, ours.scope)
    learner.follow()
    learner.begin_anew()
    with torch.no_grad():
        for parameter in learner.agent.parameters():
            parameter.normal_()
        mean, log_std = learner.agent.actor(learner.normaliser(ours.observation[None]))
    learner.pack(buffer.parcel, 0, torch.Generator().manual_seed(0), ours.drawing)
    noise = torch.randn((1, ours.actions), generator=torch.Generator().manual_seed(0))
    assert torch.equal(learner.act_in(buffer), (mean + log_std.exp() * noise).tanh())
    assert torch.equal(learner.act(ours.observation[None]), mean.tanh())


@pytest.mark.parametrize("method", METHODS)
def test_resets_and_checkpoints(
    method: str, humanoid: Command, tmp_path: Path, taped: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain run, and a captured one that is stopped in both phases and goes on: the same rows to the bit."""
    arguments = (
        f"method={method}", "budget.steps=[160,120]", "budget.log_every=40", "budget.eval_every=80",
        "budget.random_actions=30", "budget.buffer=90", "sharpness=32",
    )  # fmt: skip
    lengths = (40, 60, 40)  # in phase 0, in phase 1 twice
    check_stops(humanoid, arguments, tmp_path, HumanoidTraining, "take_action", lengths, monkeypatch)
    assert taped


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_runs_are_the_plain_ones(
    precision: str, humanoid: Command, tmp_path: Path, taped: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole runs with every method: the same rows to the bit."""
    arguments = ("-m", f"method={','.join(METHODS)}", f"precision={precision}")
    status, printed = humanoid(*arguments)
    assert status == 0, printed
    capture_everywhere(monkeypatch)
    status, printed = humanoid(*arguments, f"outputs_dir={tmp_path / 'captured'}")
    assert status == 0, printed
    assert taped
    plain, captured = run_dirs(tmp_path / "outputs"), run_dirs(tmp_path / "captured")
    assert len(plain) == len(captured) == 5
    rows = [{path.name.rsplit("-", 1)[0]: numbers(path) for path in paths} for paths in (plain, captured)]
    assert rows[0] == rows[1]
