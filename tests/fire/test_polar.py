"""Polar factors: against the published procedure's outputs, SciPy, and what the words mean."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

import fire
from fire.gram import full_precision
from fire.polar_express import polar_express_table
from tests.conftest import slow

GOLDEN = np.load(Path(__file__).with_name("fire_golden.npz"))
# The shapes of the paper's networks: ResNet-18's slices, SAC's and GPT's layers (GPT's head is in the slow test).
SHAPES = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 256), (512, 512), (512, 256), (2048, 512), (768, 768)]


def deviation(Q: torch.Tensor) -> float:
    """Largest RMS |sigma^2 - 1| in a batch, by SVD in float64."""
    sigma = torch.linalg.svdvals(Q.double())
    return float((sigma.square() - 1).square().mean(-1).sqrt().max())


def with_spectrum(sigma: torch.Tensor, rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A float32 matrix (rows, len(sigma)) of these singular values, and its exact polar factor in float64."""
    n = len(sigma)
    U, _ = torch.linalg.qr(torch.randn(rows, n, dtype=torch.float64, generator=generator))
    V, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    return (U * sigma @ V.T).float(), U @ V.T


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("key", [k for k in GOLDEN if k.startswith("newton_schulz") and k.endswith("input")])
def test_newton_schulz_is_the_published_procedure(key: str, device: str) -> None:
    steps = int(key.split("steps")[1].split("/")[0])
    expected = torch.from_numpy(GOLDEN[key.replace("input", "output")])
    factor = fire.polar(torch.from_numpy(GOLDEN[key]).to(device), steps=steps)
    assert torch.allclose(factor.cpu(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [slow(shape) if max(shape) > 512 else shape for shape in SHAPES])
def test_polar_express_is_isometric_on_the_papers_shapes(
    shape: tuple[int, int], device: str, rng: torch.Generator
) -> None:
    W = torch.randn(4, *shape, generator=rng).to(device)
    for batch in W.split([1, 3]):
        assert deviation(fire.polar(batch, solver="polar_express", tol=1e-6)) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_polar_express_in_large_batches(shape: tuple[int, int], device: str, rng: torch.Generator) -> None:
    W = torch.randn(20, *shape, generator=rng).to(device)
    assert deviation(fire.polar(W, solver="polar_express", tol=1e-6)) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3072, 768), (50304, 768)])
def test_gpt_shapes(shape: tuple[int, int], device: str, rng: torch.Generator) -> None:
    W = torch.randn(shape, generator=rng).to(device)
    assert deviation(fire.polar(W, solver="polar_express")) <= 1e-6
    # Newton-Schulz acts on singular values, and these are known from the Gram matrix where it is so tall.
    sigma = torch.linalg.eigvalsh(W.double().mT @ W.double()).sqrt() / W.double().norm()
    for _ in range(5):
        sigma = 1.5 * sigma - 0.5 * sigma**3
    factor = fire.polar(W, steps=5).double()
    assert torch.allclose(torch.linalg.eigvalsh(factor.mT @ factor).sqrt(), sigma, rtol=0, atol=1e-5)


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e6])
@pytest.mark.parametrize("kind", ["logarithmic", "half", "one small", "one large", "linear"])
def test_polar_express_on_ill_conditioned_spectra(
    kind: str, condition: float, device: str, rng: torch.Generator
) -> None:
    n = 96
    low = 1 / condition
    sigma = {
        "logarithmic": torch.logspace(0, float(np.log10(low)), n, dtype=torch.float64),
        "half": torch.cat([torch.ones(n // 2), torch.full((n // 2,), low)]).double(),
        "one small": torch.cat([torch.ones(n - 1), torch.tensor([low])]).double(),
        "one large": torch.cat([torch.ones(1), torch.full((n - 1,), low)]).double(),
        "linear": torch.linspace(1, low, n, dtype=torch.float64),
    }[kind]
    for rows in (n, 4 * n):
        W, exact = with_spectrum(sigma, rows, rng)
        Q = fire.polar(W.to(device), solver="polar_express").cpu()
        assert deviation(Q) <= 1e-6
        # float32 input determines the factor to about eps * condition and no better.
        assert float((Q - exact).norm() / n**0.5) <= max(1e-5, 2e-7 * condition)


def test_svd_agrees_with_scipy(rng: torch.Generator) -> None:
    W = torch.randn(40, 24, dtype=torch.float64, generator=rng)
    expected, _ = scipy.linalg.polar(W.numpy())
    assert np.allclose(fire.polar(W, solver="svd").numpy(), expected, atol=1e-12)
    assert np.allclose(fire.polar(W, solver="polar_express", tol=1e-12).numpy(), expected, atol=1e-10)
    assert np.allclose(fire.polar(W, solver="newton_schulz", steps=40).numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("solver", ["newton_schulz", "polar_express", "svd"])
def test_laws_of_the_polar_factor(solver: str, rng: torch.Generator) -> None:
    def factor(W: torch.Tensor) -> torch.Tensor:
        return fire.polar(W, solver=solver, steps=12, tol=1e-10)

    W = torch.randn(30, 20, dtype=torch.float64, generator=rng)
    U, _ = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64, generator=rng))
    V, _ = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=rng))
    Q = factor(W)
    assert torch.allclose(factor(U @ W @ V), U @ Q @ V, atol=1e-9)  # orthogonal equivariance
    assert torch.allclose(factor(W.T), Q.T, atol=1e-12)
    assert torch.allclose(factor(3.7 * W), Q, atol=1e-9)
    assert torch.allclose(factor(-W), -Q, atol=1e-12)
    batch = torch.randn(2, 3, 30, 20, dtype=torch.float64, generator=rng)
    looped = torch.stack([torch.stack([factor(w) for w in row]) for row in batch])
    assert torch.allclose(factor(batch), looped, atol=1e-9)


def test_nearest_of_all_isometries(rng: torch.Generator) -> None:
    W = torch.randn(12, 8, dtype=torch.float64, generator=rng)
    best = fire.metrics.sfe(W, fire.polar(W, solver="svd"))
    for _ in range(50):
        other, _ = torch.linalg.qr(torch.randn(12, 8, dtype=torch.float64, generator=rng))
        assert fire.metrics.sfe(W, other) > best


@pytest.mark.parametrize("solver", ["newton_schulz", "polar_express", "svd"])
@pytest.mark.parametrize("rank", [1, 5, 19])
def test_rank_deficient_matrix_becomes_a_partial_isometry(
    solver: str, rank: int, device: str, rng: torch.Generator
) -> None:
    low = torch.randn(30, rank, generator=rng) @ torch.randn(rank, 20, generator=rng)
    Q = fire.polar(low.to(device), solver=solver, steps=60).cpu()
    sigma = torch.linalg.svdvals(Q.double())
    assert torch.allclose(sigma[:rank], torch.ones(rank, dtype=torch.float64), atol=1e-5)
    assert float(sigma[rank:].max()) < 1e-5  # no invented directions, however many steps
    assert torch.allclose(Q, fire.polar(low, solver="svd"), atol=2e-3)


@pytest.mark.parametrize("steps", [5, 10, 16, 17, 30])
@pytest.mark.parametrize("condition", [1e2, 1e4])
def test_newton_schulz_on_tall_ill_conditioned_matrices(
    steps: int, condition: float, device: str, rng: torch.Generator
) -> None:
    for sigma in (torch.logspace(0, -float(np.log10(condition)), 64), torch.tensor([1.0] * 8 + [1 / condition] * 56)):
        W, _ = with_spectrum(sigma.double(), 512, rng)
        U, value, Vh = torch.linalg.svd(W.double(), full_matrices=False)
        value = value / value.norm()
        for _ in range(steps):
            value = 1.5 * value - 0.5 * value**3
        # float32 determines the smallest directions to about eps * condition and no better.
        factor = fire.polar(W.to(device), steps=steps).cpu()
        assert float((factor - (U * value) @ Vh).abs().max()) < max(1e-5, 3e-8 * condition)


@pytest.mark.parametrize("solver", ["newton_schulz", "polar_express", "svd"])
@pytest.mark.parametrize("size", [1e-170, 1e160])
def test_entries_near_the_ends_of_float64(solver: str, size: float, rng: torch.Generator) -> None:
    W = torch.randn(30, 20, dtype=torch.float64, generator=rng)
    low = W[:, :4] @ W[:4, :]
    for matrix in (W, low):
        expected = fire.polar(matrix, solver=solver, steps=60)
        assert torch.allclose(fire.polar(size * matrix, solver=solver, steps=60), expected, atol=1e-9)


def test_zero_matrix_and_zero_column(rng: torch.Generator) -> None:
    W = torch.randn(3, 6, 4, generator=rng)
    W[1] = 0
    W[2, :, 0] = 0
    for solver in ("newton_schulz", "polar_express", "svd"):
        Q = fire.polar(W, solver=solver, steps=40)
        assert torch.equal(Q[1], torch.zeros(6, 4))
        assert torch.equal(Q[2, :, 0].abs() < 1e-6, torch.ones(6, dtype=torch.bool))
        assert deviation(Q[0]) < 1e-5
        assert deviation(Q[2, :, 1:]) < 1e-5


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30, 1e38])
def test_entries_near_the_ends_of_float32(size: float, rng: torch.Generator) -> None:
    W = torch.randn(8, 5, generator=rng).clamp(-2, 2)
    Q = fire.polar(W * size if size < 1 else W * (size / 2), steps=30)
    assert torch.allclose(Q, fire.polar(W, steps=30), atol=1e-4)


def test_half_precision_is_computed_in_float32(rng: torch.Generator) -> None:
    W = torch.randn(64, 64, generator=rng).bfloat16()
    Q = fire.polar(W)
    assert Q.dtype == torch.bfloat16
    assert torch.equal(Q, fire.polar(W.float()).bfloat16())


def test_callers_precision_settings_have_no_effect_and_survive(rng: torch.Generator) -> None:
    W = torch.randn(128, 128, generator=rng)
    expected = fire.polar(W)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(fire.polar(W), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    with full_precision("cpu"):
        assert (W @ W).dtype == torch.float32


def test_polar_express_table_is_the_published_one() -> None:
    # Amsel et al. 2025, for singular values in [1e-3, 1], before the safety factor; they use a cushion of 0.02407.
    published = [
        (8.28721, -23.59589, 17.30039), (4.10706, -2.94785, 0.54484), (3.94869, -2.90890, 0.55182),
        (3.31842, -2.48849, 0.51005), (2.30065, -1.66890, 0.41881), (1.89130, -1.26800, 0.37680),
    ]  # fmt: skip
    for ours, theirs in zip(polar_express_table(1e-3, 1.0, 1e-6), published, strict=False):
        unsafe = (ours[0] * 1.01, ours[1] * 1.01**3, ours[2] * 1.01**5)
        assert unsafe == pytest.approx(theirs, rel=2e-3)
