"""What differs on a GPU: the update as a captured graph, and where frames are kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fire
from experiments.atari import models
from experiments.atari.config import AtariConfig
from experiments.atari.envs import STORED
from experiments.atari.learner import Learner
from experiments.common.config import Runtime, build_scope, compose_domain
from experiments.common.replay import Batch, ReplayBuffer
from tests.conftest import needs_cuda, numbers, run_dirs
from tests.experiments.atari.test_learner import batch
from tests.experiments.common.test_replay import CAPACITY, ENVIRONMENTS, Naive

Atari = Callable[..., tuple[int, str]]


def learner(compiled: str) -> Learner:
    cfg = compose_domain("atari", AtariConfig, ["scale=smoke"])
    return Learner(models.build(cfg.budget, 3, seed=0), cfg, Runtime("cuda", "fp32", compiled, 0))


def on_cuda(seed: int) -> Batch:
    return Batch(*(tensor.cuda() for tensor in batch(32 * (1 + seed % 2), seed=seed)))  # one or two updates


@needs_cuda
@pytest.mark.parametrize("compiled", ["graphs", "true"])
@pytest.mark.parametrize("method", ["fire", "full_reset", "plasticity_injection"])
def test_captured_update_equals_eager_before_and_after_a_reset(compiled: str, method: str) -> None:
    cfg = compose_domain("atari", AtariConfig, ["scale=smoke"])
    both = [learner("false"), learner(compiled)]
    initial = {name: tensor.clone() for name, tensor in both[0].online.state_dict().items()}
    built = fire.build(method)
    for phase in range(2):
        for one in both:
            for seed in range(20):
                one.update(on_cuda(seed))
            one.update_target()
            if phase == 0:
                built.reset(one.online, initial, build_scope(cfg.model.scope))
                one.follow()
                if built.resets_optimizer:
                    one.new_optimizer()
    eager, captured = (one.online.state_dict() for one in both)
    for name, tensor in eager.items():
        torch.testing.assert_close(captured[name], tensor, rtol=1e-3, atol=1e-5)
    assert both[1].totals.tolist() == pytest.approx(both[0].totals.tolist(), rel=1e-3)
    assert both[1].totals[-1] == 60


@needs_cuda
def test_going_on_from_a_checkpoint_captures_again(tmp_path: Path) -> None:
    one, other = learner("graphs"), learner("graphs")
    for seed in range(5):
        one.update(on_cuda(seed))
        other.update(on_cuda(seed + 100))
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu"))
    for seed in range(5, 10):
        one.update(on_cuda(seed))
        other.update(on_cuda(seed))
    for a, b in zip(one.online.parameters(), other.online.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@needs_cuda
def test_frames_on_the_gpu_give_the_same_batches() -> None:
    drawn = []
    for device, frames_on in (("cpu", "cpu"), ("cuda", "cuda"), ("cuda", "cpu")):
        buffer = ReplayBuffer(STORED, CAPACITY, ENVIRONMENTS, device, frames_on)
        naive = Naive(buffer, seed=3)
        for _ in range(70):
            naive.step()
        drawn.append(buffer.sample(64, torch.Generator().manual_seed(0)))
    for other in drawn[1:]:
        assert all(tensor.is_cuda for tensor in other)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(drawn[0], other, strict=True))


@needs_cuda
def test_whole_run(atari: Atari, tmp_path: Path) -> None:
    status, printed = atari("-m", "method=fire,plasticity_injection", "device=cuda", "checkpoint_seconds=0.1")
    assert status == 0, printed
    for run in run_dirs(tmp_path / "outputs"):
        assert numbers(run)[-1]["train/loss"] > 0
