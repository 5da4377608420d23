"""Operations and waits on a GPU, counted on the CPU, and what happens on one where a factorisation fails."""

import copy
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import fire
from experiments.vision import models
from fire import gram, matrices, methods, polar_express, projection, report
from fire.reference import reference_fire_
from scripts.benchmark.core import linears
from scripts.benchmark.peak_memory import peak_of_new_storage
from tests.fire.test_methods import perturbed
from tests.fire.test_polar import deviation
from tests.tape import Tape, launches, storage

pytestmark = pytest.mark.usefixtures("worked_as_on_gpu")


# `fire.polar` is the function.
FETCHING = (sys.modules["fire.polar"], polar_express, projection)


def small_gpt() -> nn.Module:
    """The matrices of GPT-0.1B an eighth as wide."""
    d = 96
    return nn.ModuleList([linears(*[(d, d)] * 4, (4 * d, d), (d, 4 * d), copies=12), linears((6288, d))])


def counted(monkeypatch: pytest.MonkeyPatch, model: nn.Module, **settings: Any) -> tuple[Counter[str], int]:
    """Operations that `fire_` launches on a GPU, and how often it waits for one, once its tables are made."""
    tape, waits = Tape(allow_waits=True), 0
    fire.fire_(copy.deepcopy(model), **settings)

    def on_cpu(tensors: list[Tensor]) -> list[Tensor]:
        nonlocal waits
        waits += bool(tensors)
        return fetch(tensors)

    fetch, record, finished = gram.on_cpu, projection._record, fire.Recorder.report
    for module in FETCHING:
        monkeypatch.setattr(module, "on_cpu", on_cpu)
    # From there on everything has come to the CPU.
    monkeypatch.setattr(projection, "_record", lambda *known: untaped(lambda: record(*known)))
    monkeypatch.setattr(report, "on_cpu", fetch)
    monkeypatch.setattr(fire.Recorder, "report", lambda recorder: untaped(lambda: finished(recorder)))
    with tape:
        fire.fire_(model, **settings)
    return tape.launches, waits


def untaped(function: Callable[[], Any]) -> Any:
    """Call a function whose operations are neither counted nor faked."""
    with torch.utils._python_dispatch._disable_current_modes():
        return function()


# Today's numbers, rounded up; they may only fall. `fire_` waits once more, to know that all weights are finite.
@pytest.mark.parametrize(
    ("network", "settings", "most", "waits"),
    [
        ("ResNet-18", {"steps": 10}, 386, 1),
        ("ResNet-18", {"solver": "polar_express"}, 607, 3),
        ("GPT", {"steps": 10}, 193, 1),
        ("GPT", {"solver": "polar_express"}, 266, 3),
    ],
)
def test_operations_launched(
    network: str, settings: dict, most: int, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(gram, "_LARGE", 0 if network == "GPT" else 1 << 27)  # as for the true widths
    model = small_gpt() if network == "GPT" else models.build("resnet18", 10, (3, 32, 32), 16, seed=0)
    launched, waited = counted(monkeypatch, model, **settings)
    assert sum(launched.values()) <= most, launched.most_common()
    assert waited <= waits


def test_the_plain_loop_launches_twenty_times_as_many() -> None:
    model = models.build("resnet18", 10, (3, 32, 32), 16, seed=0)
    assert sum(launches(lambda: reference_fire_(model)).values()) == 8688


@pytest.mark.parametrize("reported", [True, False])
def test_a_factorisation_that_leaves_nan_means_that_nothing_is_known(
    reported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a batched Cholesky factorisation that fails may leave NaN, and may say so or not."""
    factorise, failures = torch.linalg.cholesky_ex, 0

    def failing(A: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal failures
        factor, info = factorise(A)
        failures += int((info > 0).sum())
        factor[info > 0] = float("nan")
        if failures == 0:  # the first time one that is in order, too
            factor[0], info[0], failures = float("nan"), int(reported), 1
        return factor, info if reported else torch.zeros_like(info)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", failing)
    rng = torch.Generator().manual_seed(0)
    W = torch.randn(3, 64, 64, generator=rng)
    W[1] = W[1, :, :40] @ W[1, :40]  # of rank 40
    W[2, 0] = W[2, 1] + 1e-2 * W[2, 0]  # ill-conditioned
    for settings in ({"solver": "polar_express"}, {"steps": 40}):
        Q = fire.polar(W, **settings)
        assert torch.isfinite(Q).all()
        assert deviation(Q[[0, 2]]) <= 1e-6
        sigma = torch.linalg.svdvals(Q[1].double())
        assert torch.allclose(sigma[:40], torch.ones(40, dtype=torch.float64), atol=1e-5)
        assert float(sigma[40:].max()) < 1e-5
    assert failures > 1


def test_bounds_from_nan_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    factorise = torch.linalg.cholesky_ex
    G = torch.eye(4).repeat(3, 1, 1)

    def failing(A: Tensor) -> tuple[Tensor, Tensor]:
        factor, info = factorise(A)
        factor[1], factor[2, 3, 0] = float("nan"), float("inf")
        return factor, info

    monkeypatch.setattr(torch.linalg, "cholesky_ex", failing)
    lows = polar_express._smallest(G, 1.0)
    assert lows[0] > 0.4
    assert lows[1:].tolist() == [0, 0]


def test_what_has_not_converged_at_first_is_computed_with_care() -> None:
    """A null space and singular values below those assumed, among matrices that are well-conditioned."""
    rng = torch.Generator().manual_seed(0)
    n = 48
    W = torch.randn(6, n, n, generator=rng)
    U, _, Vh = torch.linalg.svd(W.double())
    for i, low in ((1, 1e-5), (2, 1e-6), (3, 3e-7), (4, 0.0)):
        sigma = torch.ones(n, dtype=torch.float64)
        sigma[-1] = low
        W[i] = ((U[i] * sigma) @ Vh[i]).float()
    report = fire.fire_(stacked(W), solver="polar_express")
    exact = fire.polar(W.double(), solver="svd")
    Q = fire.polar(W, solver="polar_express")
    assert deviation(Q[:3]) <= 1e-6
    for i, condition in enumerate((1e3, 1e5, 1e6)):
        assert float((Q[i] - exact[i]).norm() / n**0.5) <= max(1e-5, 2e-7 * condition)
    assert float(Q[4].double().svd().S[-1]) < 1e-5  # no direction invented
    assert report.rank_deficient == ("weight",)
    assert report.matrices[0].rank_deficient in (1, 2)  # 3e-7 may pass for either


def stacked(W: Tensor) -> nn.Module:
    """A module that holds a stack of matrices."""
    module = nn.Module()
    module.out_features, module.in_features = W.shape[-2:]  # type: ignore[assignment]
    module.weight = nn.Parameter(W.clone())
    return module


@pytest.mark.parametrize("settings", [{"steps": 10}, {"steps": 20}, {"solver": "polar_express"}], ids=str)
@pytest.mark.parametrize("count", [24, 1])
def test_memory(settings: dict, count: int) -> None:
    """Matrices, one more of each and their Gram matrices: three times as much where they are square."""
    torch.manual_seed(0)  # a matrix that happens to be nearly singular takes more
    model = linears((256, 256), copies=count)
    group = 4 * count * 256**2
    most = 6.1 if (settings, count) == ({"steps": 20}, 1) else 3.1  # a single matrix in float64
    assert group < peak_of_new_storage(lambda: fire.fire_(model, **settings)) < most * group


def test_a_stack_beyond_the_memory_a_gpu_may_take_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = (linears((64, 64), (64, 32), copies=12) for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    expected = fire.fire_(whole, solver="polar_express")
    monkeypatch.setattr(gram, "GPU_MEMORY", 4 * 5 * 4 * 64**2)
    monkeypatch.setattr(projection, "GPU_MEMORY", 4 * 5 * 4 * 64**2)
    report = fire.fire_(parts, solver="polar_express")
    assert report.sfe == pytest.approx(expected.sfe, rel=1e-5)
    assert report.dfi_before == pytest.approx(expected.dfi_before, rel=1e-6)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tol", [1e-6, 0.01, 0.2])
def test_a_null_direction_is_reported_at_any_tolerance(tol: float) -> None:
    W = torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(0))
    W[0, 0] = W[0, 1]
    assert fire.fire_(stacked(W), solver="polar_express", tol=tol).rank_deficient == ("weight",)


@pytest.mark.parametrize(("norm", "interpolation"), [("own", 1.0), ("fire", 0.3), ("own", 0.7)])
def test_other_targets_are_the_cpus(norm: str, interpolation: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, cpus = (models.build("resnet18", 10, (3, 32, 32), 8, seed=0) for _ in range(2))
    report = fire.fire_(ours, norm=norm, interpolation=interpolation)
    monkeypatch.setattr(gram, "GPUS", ["cuda"])
    expected = fire.fire_(cpus, norm=norm, interpolation=interpolation)
    for a, b in zip(report.matrices, expected.matrices, strict=True):
        assert (a.sfe, a.dfi_before, a.dfi_after) == pytest.approx((b.sfe, b.dfi_before, b.dfi_after), rel=1e-4)
    for a, b in zip(ours.state_dict().values(), cpus.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_model_of_several_dtypes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).double())
    initial = copy.deepcopy(model.state_dict())
    assert fire.FullReset().reset(perturbed(model), initial).sfe_normalised == pytest.approx(1)


@pytest.mark.parametrize(
    "method",
    [
        fire.Fire(),
        fire.Fire(steps=20),
        fire.Fire(solver="polar_express"),
        fire.Fire(norm="own", interpolation=0.5),
        fire.Rescale(),
        fire.ShrinkPerturb(coefficient=0.5),
        fire.FullReset(),
    ],
    ids=str,
)
def test_no_operation_mixes_devices(method: fire.Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that have a shape and a GPU as their device, but no content; initial weights lie on the CPU."""

    def on_cpu(tensors: list[Tensor]) -> list[Tensor]:
        assert {tensor.device.type for tensor in tensors} <= {"cuda"}
        return untaped(lambda: [torch.zeros(tensor.shape, dtype=torch.float64) for tensor in tensors])

    def last(tensors: list[Tensor]) -> list[Tensor]:
        """Those of the projection are on the CPU by now."""
        return [on_cpu([each])[0] if isinstance(each, FakeTensor) else each for each in tensors]

    record, finished = projection._record, fire.Recorder.report
    for module in FETCHING:
        monkeypatch.setattr(module, "on_cpu", on_cpu)
    monkeypatch.setattr(report, "on_cpu", last)
    monkeypatch.setattr(projection, "_record", lambda *known: untaped(lambda: record(*known)))
    monkeypatch.setattr(fire.Recorder, "report", lambda recorder: untaped(lambda: finished(recorder)))
    monkeypatch.setattr(projection, "_check_finite", lambda matrices: None)
    for module in (matrices, methods, report):  # what has no content has no address
        monkeypatch.setattr(module, "storage_key", lambda tensor: (storage(tensor), tensor.device, tuple(tensor.shape)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    for low in (polar_express._ASSUMED, polar_express._ASSUMED_LONG):
        polar_express.polar_express_table(low, 1.0, 1e-6)  # made of numbers, and kept
    with FakeTensorMode():
        with torch.device("cuda:0"):
            model = models.ResNet18(10, (3, 32, 32), 8)
        initial = {name: torch.empty_like(tensor, device="cpu") for name, tensor in model.state_dict().items()}
        changed = method.reset(model, initial)
        with torch.device("cuda:1"):  # a model over two devices
            both = nn.Sequential(nn.Linear(4, 8, device="cuda:0"), nn.Linear(8, 4))
        initial = {name: torch.empty_like(tensor, device="cpu") for name, tensor in both.state_dict().items()}
        assert len(method.reset(both, initial).matrices) == 2
    assert len(changed.matrices) == 22
