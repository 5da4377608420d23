"""What differs on a GPU: actions and updates as captured graphs, and where observations are kept."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.common.config import Runtime, build_scope, compose_domain, resolve_runtime
from experiments.common.device_replay import DeviceReplay
from experiments.common.replay import ReplayBuffer, Stored
from experiments.humanoid.config import HumanoidConfig
from experiments.humanoid.learner import Learner
from tests.conftest import Command, needs_cuda, numbers, run_dirs
from tests.experiments.common import precision
from tests.experiments.common.captured import method_of
from tests.experiments.humanoid import test_learner
from tests.experiments.humanoid.plain_sac import PlainSac
from tests.experiments.humanoid.test_captured import training
from tests.tape import Tape

STORED = Stored((5,), torch.float32, 1, (3,), torch.float32)


def learner(compiled: str, device: str = "cuda") -> Learner:
    """With the precision of matrix products that a run has."""
    settings = ["scale=smoke", f"device={device}", "precision=fp32", "threads=1"]
    cfg = compose_domain("humanoid", HumanoidConfig, settings)
    runtime = replace(resolve_runtime(cfg), compile=compiled)
    return test_learner.learner("optimizer.learning_rate=1e-3", runtime=runtime)


def update(one: Learner | PlainSac, seed: int, device: str = "cuda") -> None:
    size = 16 * (1 + seed % 2)  # one or two updates
    one.normaliser.update(torch.full((5,), float(seed)))
    batch = test_learner.batch(size, seed)
    one.update(type(batch)(*(tensor.to(device) for tensor in batch)), test_learner.noise(size, seed).to(device))


def weights(one: Learner | PlainSac) -> dict[str, Tensor]:
    target = {f"target.{name}": tensor for name, tensor in one.target.state_dict().items()}
    return {**one.agent.state_dict(), **target, "log_temperature": one.log_temperature}


def check_update(compiled: str, method: str, device: str) -> Learner:
    """Check an update that is captured or compiled, before and after a reset."""
    cfg = compose_domain("humanoid", HumanoidConfig, ["scale=smoke"])
    plain, fast = learner("false", device), learner(compiled, device)
    exact = PlainSac(plain)
    initial = {name: tensor.clone() for name, tensor in plain.agent.state_dict().items()}
    for phase in range(2):
        for one in (plain, fast, exact):
            for seed in range(20):
                update(one, seed, device)
        precision.check(weights(fast), weights(plain), weights(exact), f"phase {phase}, {method}")
        if phase == 0:
            for one in (plain, fast, exact):
                method_of(method).reset(one.agent, initial, build_scope(cfg.model.scope))
                one.follow()
                one.begin_anew()
            precision.check(weights(fast), weights(plain), weights(exact), f"after {method}")
    assert fast.totals.tolist() == pytest.approx(plain.totals.tolist(), rel=1e-2)
    return fast


METHODS = pytest.mark.parametrize("method", ["fire", "full_reset", "plasticity_injection"])


@needs_cuda
@pytest.mark.parametrize("compiled", ["graphs", "true"])
@METHODS
def test_captured_update_equals_eager_before_and_after_a_reset(compiled: str, method: str) -> None:
    assert check_update(compiled, method, "cuda").totals[-1] == 60


@METHODS
def test_the_same_on_the_cpu(method: str, taped: list[Tape]) -> None:
    assert check_update("graphs", method, "cpu").totals[-1] == 60
    assert taped


@pytest.mark.slow
def test_a_compiled_update_on_the_cpu() -> None:
    assert check_update("true", "fire", "cpu").totals[-1] == 60


@needs_cuda
@pytest.mark.parametrize("method", ["none", "fire", "full_reset", "shrink_perturb", "plasticity_injection"])
def test_captured_steps_are_those_of_a_cpu(method: str, robot_dir: Path, tmp_path: Path) -> None:
    """Real actions with a reset in between, drawn from the policy on a GPU and on a CPU: as long as rounding has not
    led the two simulations apart, they see the same."""
    plain = training(robot_dir, tmp_path, runtime=Runtime("cpu", "fp32", "false", 0))
    captured = training(robot_dir, tmp_path, runtime=learner("graphs").runtime)
    assert isinstance(captured.buffer, DeviceReplay)
    assert captured.buffer.frames.is_cuda
    built = method_of(method)
    for step in range(44):  # the last 14 by the policy
        for one in (plain, captured):
            if step == 36:
                built.reset(one.learner.agent, one.initial, one.scope)
                one.learner.follow()
                one.learner.begin_anew()
            one.take_action()
        assert plain.observation is not None
        assert captured.observation is not None
        torch.testing.assert_close(captured.observation, plain.observation, rtol=1e-2, atol=1e-2)
    assert captured.learner.totals[-1] == plain.learner.totals[-1] == 28
    batches = [one.probe("probe", 128)[0] for one in (plain, captured)]
    for a, b in zip(*batches, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-2, atol=1e-2)
    states = batches[0].frames[:10, 0]
    torch.testing.assert_close(captured.learner.act(states), plain.learner.act(states), rtol=1e-2, atol=1e-2)


@needs_cuda
def test_what_an_action_launches(robot_dir: Path, tmp_path: Path) -> None:
    """As the driver sees it: two graphs, and one copy each way, between pinned memory and the device."""
    ours = training(robot_dir, tmp_path, runtime=learner("graphs").runtime)
    while ours.step < 80:
        ours.take_action()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    begun = ours.buffer.stop
    with torch.profiler.profile(activities=activities) as profiled:
        for _ in range(10):
            ours.take_action()
        torch.cuda.synchronize()
    extra = ours.buffer.stop - begun - 10  # episodes that ended: an observation more, sent by itself
    counts = Counter(event.name for event in profiled.events())
    assert counts["cudaGraphLaunch"] == 20, counts
    copies = {name: count for name, count in counts.items() if "HtoD" in name or "DtoH" in name}
    assert sum(copies.values()) == 20 + extra, copies
    assert all("Pinned" in name for name in copies), copies


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
    for buffer in (
        ReplayBuffer(STORED, 50, 1),
        ReplayBuffer(STORED, 50, 1, "cuda", "cuda"),
        ReplayBuffer(STORED, 50, 1, "cuda", "cpu"),
        DeviceReplay(STORED, 50, 1, "cuda", most=64),
    ):
        rng = torch.Generator().manual_seed(0)
        for step in range(80):
            buffer.begin(torch.randn(1, 5, generator=rng), step % 7 == 0)
            if step % 7 != 6:
                buffer.complete(torch.randn(1, 3, generator=rng), 1.0, False)
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
