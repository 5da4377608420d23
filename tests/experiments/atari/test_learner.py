"""The learner on an environment whose action values are known, and what resets do to it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import smooth_l1_loss

import fire
from experiments.atari import envs, models
from experiments.atari.config import AtariConfig
from experiments.atari.learner import huber_loss, td_targets
from experiments.common import checkpoint
from experiments.common.config import build_scope, compose_domain
from tests.conftest import run_dirs
from tests.experiments.atari.agent import EAGER, learner, transitions
from tests.experiments.atari.scripted import DISCOUNT, VALUES, Scripted, frame
from tests.experiments.rl.captured import capture_everywhere
from tests.tape import Tape

Atari = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("way", "precision"), [("plain", "fp32"), pytest.param("captured", "bf16", marks=pytest.mark.slow)]
)
def test_finds_the_values_of_a_scripted_environment(
    way: str, precision: str, atari: Atari, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taped: list[Tape]
) -> None:
    monkeypatch.setattr(envs, "make", lambda _game, count, _sticky: Scripted(count))
    if way == "captured":
        capture_everywhere(monkeypatch)
    status, printed = atari(
        "method=none", "replay_ratio=0.5", f"dqn.discount={DISCOUNT}", "optimizer.learning_rate=1e-3",
        "budget.steps=[2000,1200]", "budget.target_every=80", "budget.buffer=1600", "budget.restart_every=36",
        "budget.width=8", "budget.hidden=32", "budget.eval_every=4000", "budget.learning_starts=64",
        "dqn.epsilon=[1.0,1.0]", f"precision={precision}",
    )  # fmt: skip
    assert status == 0, printed
    assert bool(taped) == (way == "captured")
    (run,) = run_dirs(tmp_path / "outputs")
    network = models.QNetwork(8, 32, 2)
    weights = checkpoint.read(checkpoint.kept(run)[checkpoint.FINAL])
    assert weights is not None
    network.load_state_dict(weights["state"]["model"])
    # The value of the newest frame, whatever came before it.
    for history in (["A", "A", "A"], ["A", "B", "A"], [None, None, "A"]):
        for place, expected in VALUES.items():
            stack = [torch.zeros(84, 84) if h is None else torch.from_numpy(frame(h)) for h in history]
            state = torch.stack([*stack, torch.from_numpy(frame(place))])[None].to(torch.uint8)
            with torch.no_grad():
                assert network(state)[0].tolist() == pytest.approx(expected, abs=0.08), (history, place)


def test_loss_is_that_of_the_paper() -> None:
    """Against the formula, transition by transition, in float64."""
    ours, given = learner(), transitions()
    with torch.no_grad():
        for parameter in ours.target.parameters():
            parameter.mul_(1.5)
    expected, values = 0.0, []
    online, target = ours.network.double(), ours.target.double()
    pixels = given.frames.double() / 255

    def q(network: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
        return network.head(network.convolutions(states[None]))[0]  # type: ignore[operator, union-attr]

    for i in range(8):
        value = q(online, pixels[i, :4])[given.actions[i]]
        goal = given.rewards[i].double().clip(-1, 1)
        if not given.ends[i]:
            goal = goal + 0.99 * q(target, pixels[i, 1:]).max()
        values.append(value.item())
        expected += smooth_l1_loss(value, goal).item() / 8 if i != 5 else 0.0
    online.float(), target.float()
    targets = td_targets(ours.target, given, 0.99, EAGER)
    loss, value = huber_loss(ours.network, given, targets, EAGER)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(value) == pytest.approx(sum(values) / 8, rel=1e-4)


def test_updates_of_one_step_are_those_of_several() -> None:
    """All batches at once, or one after another."""
    one, other = learner(), learner()
    batches = transitions(96)
    one.update(batches)
    for part in batches.split(32):
        other.update(part)
    for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert one.totals[[0, 1, 3]].tolist() == pytest.approx(other.totals[[0, 1, 3]].tolist(), rel=1e-5)
    assert one.totals[3] == 3


def test_updates_change_the_online_network_alone() -> None:
    ours = learner()
    before = {name: tensor.clone() for name, tensor in ours.target.state_dict().items()}
    for _ in range(3):
        ours.update(transitions())
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.target.state_dict().items())
    assert not any(torch.equal(tensor, before[name]) for name, tensor in ours.network.state_dict().items())
    assert ours.totals[-1] == 3
    last = ours.totals[2].clone()
    ours.update(transitions())
    norms = [p.grad.norm() ** 2 for p in ours.network.parameters() if p.grad is not None]
    assert float(ours.totals[2] - last) == pytest.approx(float(sum(norms)) ** 0.5, rel=1e-5)
    ours.update_target()
    for name, tensor in ours.network.state_dict().items():
        assert torch.equal(tensor, ours.target.state_dict()[name])


@pytest.mark.parametrize("method", ["none", "shrink_perturb", "full_reset", "fire", "plasticity_injection"])
def test_what_a_reset_changes(method: str) -> None:
    """Paper, section 4.3: convolutions projected or moved, linear layers back to their initial weights."""
    cfg = compose_domain("atari", AtariConfig, ["scale=smoke", f"method={method}"])
    ours = learner(f"method={method}")
    initial = {name: tensor.clone() for name, tensor in ours.network.state_dict().items()}
    for _ in range(5):
        ours.update(transitions())
    old = {name: tensor.clone() for name, tensor in ours.network.state_dict().items()}
    states = transitions().frames[:, :4]
    values = ours.network(states).detach()
    built = fire.build(method, **({"coefficient": 0.8} if method == "shrink_perturb" else {}))
    built.reset(ours.network, initial, build_scope(cfg.model.scope))
    ours.follow()
    new = ours.network.state_dict()
    assert {name: tensor.tolist() for name, tensor in ours.target.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in new.items()
    }
    linear = [name for name in initial if name.startswith("head")]
    convolutions = [name for name in initial if name.startswith("convolutions")]
    if method == "none":
        assert all(torch.equal(new[name], old[name]) for name in initial)
    elif method == "plasticity_injection":
        assert torch.equal(ours.network(states), values)
        assert all(torch.equal(new[name], old[name]) for name in convolutions)
        ours.new_optimizers()
        ours.update(transitions())
        assert not torch.equal(ours.network(states), values)
        after = ours.network.state_dict()
        for name in linear:
            short = name.removeprefix("head.")
            assert torch.equal(after[f"head.frozen.{short}"], old[name])
            assert torch.equal(after[f"head.copy.{short}"], initial[name])
            assert not torch.equal(after[f"head.new.{short}"], initial[name])
    else:
        assert all(torch.equal(new[name], initial[name]) for name in linear)
        for name in convolutions:
            if method == "full_reset":
                assert torch.equal(new[name], initial[name])
            elif method == "shrink_perturb":
                torch.testing.assert_close(new[name], 0.2 * old[name] + 0.8 * initial[name])
            elif name.endswith("bias"):
                assert torch.equal(new[name], old[name])
            else:
                per_position = old[name].permute(2, 3, 0, 1).double()
                out, fan_in = per_position.shape[-2:]
                expected = fire.polar(per_position, steps=10) * (out / fan_in) ** 0.5 / per_position[..., 0, 0].numel()
                torch.testing.assert_close(new[name].permute(2, 3, 0, 1).double(), expected, rtol=1e-4, atol=1e-5)


def test_initial_weights_are_xavier_uniform() -> None:
    cfg = compose_domain("atari", AtariConfig, ["scale=paper"])
    network = models.build(cfg.budget, 9, seed=3).requires_grad_(False)
    assert [tuple(p.shape) for p in network.parameters() if p.ndim > 1] == [
        (32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (9, 512),
    ]  # fmt: skip
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            assert not parameter.any(), name
        else:
            out, fan_in = parameter.shape[:2]
            positions = parameter[0, 0].numel()
            bound = (6 / ((out + fan_in) * positions)) ** 0.5
            assert 0.9 * bound < parameter.abs().max() <= bound, name
            assert parameter.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert torch.equal(models.build(cfg.budget, 9, seed=3).head[0].weight, network.head[0].weight)
    assert not torch.equal(models.build(cfg.budget, 9, seed=4).head[0].weight, network.head[0].weight)
