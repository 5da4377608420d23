"""What differs on a GPU: actions and updates as captured graphs, compiled updates, and where the buffer lies."""

from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.atari.config import AtariConfig
from experiments.common.config import build_scope, compose_domain
from experiments.common.runtime import Runtime, resolve_runtime
from experiments.domains import domain as domain_of
from experiments.rl import training as rl_training
from experiments.rl.device_replay import DeviceReplay
from experiments.rl.replay import ReplayBuffer, Stored
from tests.conftest import Command, needs_cuda, numbers, run_dirs
from tests.experiments.rl import precision
from tests.experiments.rl.captured import METHODS, method_of
from tests.experiments.rl.test_replay import CAPACITY, ENVIRONMENTS, STORED, Naive
from tests.tape import Tape


def runtime(compiled: str, device: str = "cuda") -> Runtime:
    """With the precision of matrix products and convolutions that a run has, which PyTorch's own is not: convolutions
    would be in TF32."""
    cfg = compose_domain("atari", AtariConfig, ["scale=smoke", f"device={device}", "precision=fp32", "threads=1"])
    return replace(resolve_runtime(cfg), compile=compiled)


def update(agent: Any, one: Any, seed: int, device: str) -> None:
    """One or two steps of the optimisers."""
    if hasattr(one, "normaliser"):
        one.normaliser.update(torch.full((agent.OBSERVATION,), float(seed)))
    size = one.batch_size * (1 + seed % 2)
    one.update(tuple(tensor.to(device) for tensor in agent.transitions(size, seed)))


def check_update(name: str, compiled: str, method: str, device: str, skipped: int = -1) -> None:
    """Check an update that is captured or compiled, before and after a reset; one that is `skipped` is a fault."""
    agent = import_module(f"tests.experiments.{name}.agent")
    cfg = compose_domain(name, domain_of(name).schema, ["scale=smoke"])
    plain, fast = (agent.learner(runtime=runtime(way, device)) for way in ("false", compiled))
    exact = agent.Exact(plain)
    initial = {key: tensor.clone() for key, tensor in plain.network.state_dict().items()}
    built = method_of(method)

    def check(when: str) -> None:
        precision.check(*(agent.weights(one) for one in (fast, plain, exact)), f"{when}, {method}")

    for phase in range(2):
        for seed in range(20):
            for one in (plain, fast, exact):
                if not (one is fast and seed == skipped):
                    update(agent, one, seed, device)
        check(f"phase {phase}")
        if phase == 0:
            for one in (plain, fast, exact):
                built.reset(one.network, initial, build_scope(cfg.model.scope))
                one.follow()
                if built.resets_optimizer or name == "humanoid":
                    one.new_optimizers()
            check("after the reset")
    assert fast.totals.tolist() == pytest.approx(plain.totals.tolist(), rel=1e-2)
    assert fast.totals[-1] == 60


RESETS = pytest.mark.parametrize("method", ["fire", "full_reset", "plasticity_injection"])


@needs_cuda
@pytest.mark.parametrize("compiled", ["graphs", "true"])
@RESETS
def test_captured_update_equals_eager_before_and_after_a_reset(name: str, compiled: str, method: str) -> None:
    check_update(name, compiled, method, "cuda")


@RESETS
def test_the_same_on_the_cpu(name: str, method: str, taped: list[Tape]) -> None:
    check_update(name, "graphs", method, "cpu")
    assert taped


@pytest.mark.slow
def test_a_compiled_update_on_the_cpu(name: str) -> None:
    check_update(name, "true", "fire", "cpu")


def test_the_check_sees_a_single_update_that_is_missing(taped: list[Tape]) -> None:
    with pytest.raises(AssertionError, match=r"phase 0, fire: beyond .*\nconvolutions.0.weight: fast to float64"):
        check_update("atari", "graphs", "fire", "cpu", skipped=7)


@needs_cuda
@pytest.mark.parametrize("method", METHODS)
def test_captured_steps_of_dqn_are_those_of_a_cpu(method: str, tmp_path: Path) -> None:
    """Real steps with a reset in between: acting, sampling, storing and learning on the GPU see the same batches as a
    plain loop on the CPU, as long as both take the same actions: random ones, so that no rounding leads them apart.
    What the networks would do in the end is the same too."""
    from tests.experiments.atari import agent

    settings = ("dqn.epsilon=[0.999999,0.999999]", "budget.buffer=160", "budget.restart_every=120")
    plain = agent.training(tmp_path, *settings)
    captured = agent.training(tmp_path, *settings, runtime=runtime("graphs"))
    assert isinstance(captured.buffer, DeviceReplay)
    assert captured.buffer.frames.is_cuda
    built = method_of(method)
    for step in range(60):
        for one in (plain, captured):
            if step == 30:
                built.reset(one.network, one.initial, one.scope)
                one.learner.follow()
                if built.resets_optimizer:
                    one.learner.new_optimizers()
            one.take_step()
    batches = [one.probe("probe", 128)[0] for one in (plain, captured)]
    assert all(torch.equal(a, b.cpu()) for a, b in zip(*batches, strict=True))
    assert plain.observations is not None
    assert captured.on_device is not None
    states = batches[0].frames[:64, :4]
    found, expected = captured.learner.act(states), plain.learner.act(states)
    assert found.device.type == "cpu"
    assert (found == expected).float().mean() > 0.9  # but where two values are equal to the last bits
    newest = plain.learner.act(plain.observations)
    assert (captured.learner.act_in(captured.on_device) == newest).float().mean() > 0.7
    weights = [one.network.state_dict() for one in (captured, plain)]
    assert max(precision.distances(*weights).values()) < 1e-3


@needs_cuda
@pytest.mark.parametrize("method", METHODS)
def test_captured_actions_of_sac_are_those_of_a_cpu(method: str, robot_dir: Path, tmp_path: Path) -> None:
    """Real actions with a reset in between, drawn from the policy on a GPU and on a CPU: as long as rounding has not
    led the two simulations apart, they see the same."""
    from tests.experiments.humanoid import agent

    plain, captured = agent.training(tmp_path), agent.training(tmp_path, runtime=runtime("graphs"))
    assert isinstance(captured.buffer, DeviceReplay)
    assert captured.buffer.frames.is_cuda
    built = method_of(method)
    for step in range(44):  # the last 14 by the policy
        for one in (plain, captured):
            if step == 36:
                built.reset(one.network, one.initial, one.scope)
                one.learner.follow()
                one.learner.new_optimizers()
            one.take_step()
        torch.testing.assert_close(captured.observation, plain.observation, rtol=1e-2, atol=1e-2)
    assert captured.learner.totals[-1] == plain.learner.totals[-1] == 28
    batches = [one.probe("probe", 128)[0] for one in (plain, captured)]
    for a, b in zip(*batches, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-2, atol=1e-2)
    states = batches[0].frames[:10, 0]
    torch.testing.assert_close(captured.learner.act(states), plain.learner.act(states), rtol=1e-2, atol=1e-2)


@needs_cuda
def test_what_a_step_launches(name: str, agent: Any, tmp_path: Path) -> None:
    """As the driver sees it: two graphs, and one copy each way, between pinned memory and the device."""
    settings = ["dqn.epsilon=[0.5,0.5]"] if name == "atari" else []
    ours = agent.training(tmp_path, *settings, runtime=runtime("graphs"))
    while ours.step < 120:
        getattr(ours, agent.STEP)()
    torch.cuda.synchronize()
    begun = ours.buffer.stop
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        for _ in range(10):
            getattr(ours, agent.STEP)()
        torch.cuda.synchronize()
    extra = ours.buffer.stop - begun - 10  # episodes that ended: an observation more, sent by itself
    counts = Counter(event.name for event in profiled.events())
    assert counts["cudaGraphLaunch"] == 20, counts
    copies = {key: count for key, count in counts.items() if "HtoD" in key or "DtoH" in key}
    assert sum(copies.values()) == 20 + extra, copies
    assert all("Pinned" in key for key in copies), copies
    if extra == 0:
        assert counts["cudaLaunchKernel"] == 0, counts


@needs_cuda
def test_resuming_captures_again(agent: Any, tmp_path: Path) -> None:
    one, other = (agent.learner(runtime=runtime("graphs")) for _ in range(2))
    for seed in range(5):
        update(agent, one, seed, "cuda")
        update(agent, other, seed + 100, "cuda")
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu"))
    for seed in range(5, 10):
        update(agent, one, seed, "cuda")
        update(agent, other, seed, "cuda")
    for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@needs_cuda
@pytest.mark.parametrize("stacked", [True, False])
def test_buffers_on_the_gpu_give_the_same_batches(stacked: bool) -> None:
    stored, count = (STORED, ENVIRONMENTS) if stacked else (Stored((5,), torch.float32, 1, (3,), torch.float32), 1)
    drawn: list[tuple[Tensor, ...]] = []
    for buffer in (
        ReplayBuffer(stored, CAPACITY, count),
        ReplayBuffer(stored, CAPACITY, count, "cuda", "cuda"),
        ReplayBuffer(stored, CAPACITY, count, "cuda", "cpu"),
        DeviceReplay(stored, CAPACITY, count, "cuda", most=64),
    ):
        if stacked:
            naive = Naive(buffer, seed=3)
            for _ in range(70):
                naive.step()
        else:
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
def test_a_buffer_that_does_not_fit_stays_in_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then batches come from there, and acting and updates are graphs by themselves."""
    from tests.experiments.atari import agent

    settings = ("dqn.epsilon=[0.999999,0.999999]",)
    with monkeypatch.context() as patch:
        patch.setattr(rl_training, "place", lambda *_: "cpu")
        in_ram = agent.training(tmp_path, *settings, runtime=runtime("graphs"))
    on_device = agent.training(tmp_path, *settings, runtime=runtime("graphs"))
    assert in_ram.on_device is None
    assert not in_ram.buffer.frames.is_cuda
    for _ in range(30):
        for one in (in_ram, on_device):
            one.take_step()
    assert in_ram.learner.totals[-1] == on_device.learner.totals[-1] == 56
    for a, b in zip(in_ram.network.parameters(), on_device.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@needs_cuda
def test_whole_runs(command: Command, tmp_path: Path) -> None:
    for method in ("fire,plasticity_injection,redo,cbp,snr", "l2_init,parseval"):
        settings = ["method.coefficient=0.01"] if "l2_init" in method else []
        status, printed = command("-m", f"method={method}", *settings, "device=cuda", "checkpoint_seconds=0.1")
        assert status == 0, printed
    assert len(run_dirs(tmp_path / "outputs")) == 7
    for run in run_dirs(tmp_path / "outputs"):
        assert numbers(run)[-1]["train/loss"] > 0
