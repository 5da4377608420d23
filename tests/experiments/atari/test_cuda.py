"""What differs on a GPU: steps as captured graphs, compiled updates, and where frames are kept."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.atari import models
from experiments.atari.config import AtariConfig
from experiments.atari.envs import STORED
from experiments.atari.learner import Learner
from experiments.common import replay
from experiments.common.config import Runtime, build_scope, compose_domain, resolve_runtime
from experiments.common.device_replay import DeviceReplay
from experiments.common.replay import Batch, ReplayBuffer
from tests.conftest import needs_cuda, numbers, run_dirs
from tests.experiments.atari.reference import Reference
from tests.experiments.atari.test_captured import training
from tests.experiments.atari.test_learner import batch
from tests.experiments.common import precision
from tests.experiments.common.captured import method_of
from tests.experiments.common.test_replay import CAPACITY, ENVIRONMENTS, Naive
from tests.tape import Tape

Atari = Callable[..., tuple[int, str]]


def learner(compiled: str, device: str = "cuda") -> Learner:
    """With the precision of matrix products and convolutions that a run has, which PyTorch's own is not: convolutions
    would be in TF32."""
    settings = ["scale=smoke", f"device={device}", "precision=fp32", "threads=1"]
    cfg = compose_domain("atari", AtariConfig, settings)
    runtime = replace(resolve_runtime(cfg), compile=compiled)
    return Learner(models.build(cfg.budget, 3, seed=0), cfg, runtime)


def batch_on(device: str, seed: int) -> Batch:
    return Batch(*(tensor.to(device) for tensor in batch(32 * (1 + seed % 2), seed=seed)))  # one or two updates


def check_update(compiled: str, method: str, device: str, skipped: int = -1) -> Learner:
    """Check an update that is captured or compiled, before and after a reset; one that is `skipped` is a fault."""
    cfg = compose_domain("atari", AtariConfig, ["scale=smoke"])
    plain, fast = learner("false", device), learner(compiled, device)
    exact = Reference(plain)
    initial = {name: tensor.clone() for name, tensor in plain.online.state_dict().items()}
    built = method_of(method)
    for phase in range(2):
        for seed in range(20):
            for one in (plain, fast, exact):
                if not (one is fast and seed == skipped):
                    one.update(batch_on(device, seed))
        states = [one.online.state_dict() for one in (fast, plain, exact)]
        precision.check(*states, f"phase {phase}, {method}")
        for one in (plain, fast, exact):
            one.update_target()
            if phase == 0:
                built.reset(one.online, initial, build_scope(cfg.model.scope))
                one.follow()
                if built.resets_optimizer:
                    one.new_optimizer()
        states = [one.online.state_dict() for one in (fast, plain, exact)]
        precision.check(*states, f"after phase {phase}, {method}")
    assert fast.totals.tolist() == pytest.approx(plain.totals.tolist(), rel=1e-3)
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


def test_the_check_sees_a_single_update_that_is_missing(taped: list[Tape]) -> None:
    with pytest.raises(AssertionError, match=r"phase 0, fire: beyond .*\nconvolutions.0.weight: fast to float64"):
        check_update("graphs", "fire", "cpu", skipped=7)


@needs_cuda
@pytest.mark.parametrize("method", ["none", "fire", "full_reset", "shrink_perturb", "plasticity_injection"])
def test_captured_steps_are_those_of_a_cpu(method: str, tmp_path: Path) -> None:
    """Real steps with a reset in between: acting, sampling, storing and learning on the GPU see the same batches as a
    plain loop on the CPU, as long as both take the same actions: random ones, so that no rounding leads them apart.
    What the networks would do in the end is the same too."""
    settings = ("dqn.epsilon=[0.999999,0.999999]", "budget.buffer=160", "budget.restart_every=120")
    plain = training(tmp_path, *settings, runtime=Runtime("cpu", "fp32", "false", 0))
    captured = training(tmp_path, *settings, runtime=learner("graphs").runtime)
    assert isinstance(captured.buffer, DeviceReplay)
    assert captured.buffer.frames.is_cuda
    built = method_of(method)
    for step in range(60):
        for one in (plain, captured):
            if step == 30:
                built.reset(one.learner.online, one.initial, one.scope)
                one.learner.follow()
                if built.resets_optimizer:
                    one.learner.new_optimizer()
            one.take_step()
    batches = [one.probe("probe", 128) for one in (plain, captured)]
    assert all(torch.equal(a, b.cpu()) for a, b in zip(*batches, strict=True))
    assert plain.observations is not None
    assert captured.on_device is not None
    states = batches[0].frames[:64, :4]
    found, expected = captured.learner.act(states), plain.learner.act(states)
    assert found.device.type == "cpu"
    assert (found == expected).float().mean() > 0.9  # but where two values are equal to the last bits
    newest = plain.learner.act(plain.observations)
    assert (captured.learner.act_in(captured.on_device) == newest).float().mean() > 0.7
    weights = [one.learner.online.state_dict() for one in (captured, plain)]
    assert max(precision.distances(*weights).values()) < 1e-3


@needs_cuda
def test_what_a_step_launches(tmp_path: Path) -> None:
    """As the driver sees it: two graphs, and one copy each way, between pinned memory and the device."""
    ours = training(tmp_path, "dqn.epsilon=[0.5,0.5]", runtime=learner("graphs").runtime)
    while ours.step < 120:
        ours.take_step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        for _ in range(10):
            ours.take_step()
        torch.cuda.synchronize()
    counts = Counter(event.name for event in profiled.events())
    assert counts["cudaGraphLaunch"] == 20, counts
    copies = {name: count for name, count in counts.items() if "HtoD" in name or "DtoH" in name}
    assert sum(copies.values()) == 20, copies
    assert all("Pinned" in name for name in copies), copies
    assert counts["cudaLaunchKernel"] == 0, counts


@needs_cuda
def test_going_on_from_a_checkpoint_captures_again(tmp_path: Path) -> None:
    one, other = learner("graphs"), learner("graphs")
    for seed in range(5):
        one.update(batch_on("cuda", seed))
        other.update(batch_on("cuda", seed + 100))
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu"))
    for seed in range(5, 10):
        one.update(batch_on("cuda", seed))
        other.update(batch_on("cuda", seed))
    for a, b in zip(one.online.parameters(), other.online.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@needs_cuda
def test_frames_on_the_gpu_give_the_same_batches() -> None:
    drawn = []
    for buffer in (
        ReplayBuffer(STORED, CAPACITY, ENVIRONMENTS),
        ReplayBuffer(STORED, CAPACITY, ENVIRONMENTS, "cuda", "cuda"),
        ReplayBuffer(STORED, CAPACITY, ENVIRONMENTS, "cuda", "cpu"),
        DeviceReplay(STORED, CAPACITY, ENVIRONMENTS, "cuda", most=64),
    ):
        naive = Naive(buffer, seed=3)
        for _ in range(70):
            naive.step()
        drawn.append(buffer.sample(64, torch.Generator().manual_seed(0)))
    for other in drawn[1:]:
        assert all(tensor.is_cuda for tensor in other)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(drawn[0], other, strict=True))


@needs_cuda
def test_a_buffer_that_does_not_fit_stays_in_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then batches come from there, and acting and updates are graphs by themselves."""
    settings = ("dqn.epsilon=[0.999999,0.999999]",)
    with monkeypatch.context() as patch:
        patch.setattr(replay, "place", lambda *_: "cpu")
        in_ram = training(tmp_path, *settings, runtime=learner("graphs").runtime)
    on_device = training(tmp_path, *settings, runtime=learner("graphs").runtime)
    assert in_ram.on_device is None
    assert not in_ram.buffer.frames.is_cuda
    for _ in range(30):
        for one in (in_ram, on_device):
            one.take_step()
    assert in_ram.learner.totals[-1] == on_device.learner.totals[-1] == 56
    for a, b in zip(in_ram.learner.online.parameters(), on_device.learner.online.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@needs_cuda
def test_whole_run(atari: Atari, tmp_path: Path) -> None:
    status, printed = atari("-m", "method=fire,plasticity_injection", "device=cuda", "checkpoint_seconds=0.1")
    assert status == 0, printed
    for run in run_dirs(tmp_path / "outputs"):
        assert numbers(run)[-1]["train/loss"] > 0
