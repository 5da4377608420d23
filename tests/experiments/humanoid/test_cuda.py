"""What differs on a GPU: the update as a captured graph, and where observations are kept."""

from pathlib import Path

import pytest
import torch

import fire
from experiments.common.config import Runtime, build_scope, compose_domain
from experiments.common.replay import ReplayBuffer, Stored
from experiments.humanoid.config import HumanoidConfig
from experiments.humanoid.learner import Learner
from tests.conftest import Command, needs_cuda, numbers, run_dirs
from tests.experiments.humanoid import test_learner

STORED = Stored((5,), torch.float32, 1, (3,), torch.float32)


def learner(compiled: str) -> Learner:
    return test_learner.learner("optimizer.learning_rate=1e-3", runtime=Runtime("cuda", "fp32", compiled, 0))


def update(one: Learner, seed: int) -> None:
    size = 16 * (1 + seed % 2)  # one or two updates
    one.normaliser.update(torch.full((5,), float(seed)))
    batch = test_learner.batch(size, seed)
    one.update(type(batch)(*(tensor.cuda() for tensor in batch)), test_learner.noise(size, seed).cuda())


@needs_cuda
@pytest.mark.parametrize("compiled", ["graphs", "true"])
@pytest.mark.parametrize("method", ["fire", "full_reset", "plasticity_injection"])
def test_captured_update_equals_eager_before_and_after_a_reset(compiled: str, method: str) -> None:
    cfg = compose_domain("humanoid", HumanoidConfig, ["scale=smoke"])
    both = [learner("false"), learner(compiled)]
    initial = {name: tensor.clone() for name, tensor in both[0].agent.state_dict().items()}
    for phase in range(2):
        for one in both:
            for seed in range(20):
                update(one, seed)
            if phase == 0:
                fire.build(method).reset(one.agent, initial, build_scope(cfg.model.scope))
                one.follow()
                one.begin_anew()
    eager, captured = ({**one.agent.state_dict(), **one.target.state_dict()} for one in both)
    for name, tensor in eager.items():
        torch.testing.assert_close(captured[name], tensor, rtol=1e-3, atol=1e-4)
    assert both[1].log_temperature.item() == pytest.approx(both[0].log_temperature.item(), rel=1e-4)
    assert both[1].totals.tolist() == pytest.approx(both[0].totals.tolist(), rel=1e-2)
    assert both[1].totals[-1] == 60


@needs_cuda
def test_going_on_from_a_checkpoint_captures_again(tmp_path: Path) -> None:
    one, other = learner("graphs"), learner("graphs")
    for seed in range(5):
        update(one, seed)
        update(other, seed + 100)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu"))
    for seed in range(5, 10):
        update(one, seed)
        update(other, seed)
    for a, b in zip(one.agent.parameters(), other.agent.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@needs_cuda
def test_buffer_on_the_gpu_gives_the_same_batches() -> None:
    drawn = []
    for device, frames_on in (("cpu", "cpu"), ("cuda", "cuda"), ("cuda", "cpu")):
        rng = torch.Generator().manual_seed(0)
        buffer = ReplayBuffer(STORED, 50, 1, device, frames_on)
        for step in range(80):
            buffer.begin(torch.randn(1, 5, generator=rng), torch.tensor([step % 7 == 0]))
            if step % 7 != 6:
                buffer.complete(torch.randn(1, 3, generator=rng), torch.ones(1), torch.zeros(1))
        drawn.append(buffer.sample(64, torch.Generator().manual_seed(0)))
    for other in drawn[1:]:
        assert all(tensor.is_cuda for tensor in other)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(drawn[0], other, strict=True))


@needs_cuda
def test_whole_run(humanoid: Command, tmp_path: Path) -> None:
    status, printed = humanoid("-m", "method=fire,plasticity_injection", "device=cuda", "checkpoint_seconds=0.1")
    assert status == 0, printed
    for run in run_dirs(tmp_path / "outputs"):
        assert numbers(run)[-1]["train/loss"] > 0
