"""Theorems 1 to 4 of the paper: values and bounds against definitions and closed forms in float64, and the command."""

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from experiments.common.errors import UserError
from scripts.theorems import bounds
from scripts.theorems.__main__ import Check
from scripts.theorems.trained import ends, load, phase_of
from tests.conftest import REPOSITORY, run_dirs

Vision = Callable[..., tuple[int, str]]


def drawn(seed: int, *shapes: tuple[int, int]) -> list[Tensor]:
    """Gaussian matrices."""
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]


def orthogonal(seed: int, size: int) -> Tensor:
    return torch.linalg.qr(drawn(seed, (size, size))[0])[0]


def near_isometry(seed: int, size: int, error: float) -> Tensor:
    """A matrix with eps = `error`."""
    squares = torch.linspace(-1, 1, size, dtype=torch.float64)
    squares = 1 + error * squares / squares.norm()
    return orthogonal(seed, size) @ torch.diag(squares.sqrt()) @ orthogonal(seed + 1, size).T


def test_eps_and_layers() -> None:
    assert bounds.eps(2 * torch.eye(3, dtype=torch.float64)) == pytest.approx(math.sqrt(3 * 9))
    assert bounds.eps(near_isometry(0, 5, 0.3)) == pytest.approx(0.3)
    Z, first, second = drawn(1, (4, 3), (3, 5), (5, 2))
    hidden, logits = bounds.layers(Z, [first, second])
    for i, j in np.ndindex(4, 5):
        assert float(hidden[i, j]) == pytest.approx(max(0.0, sum(float(Z[i, k] * first[k, j]) for k in range(3))))
    assert torch.allclose(logits, hidden @ second)
    pattern = torch.tensor([1.0, 0, 1, 0, 1], dtype=torch.float64)
    assert torch.allclose(bounds.layers(Z, [first, second], [pattern])[1], Z @ first @ torch.diag(pattern) @ second)


def test_theorem_1_in_a_case_known_in_full() -> None:
    """Two inputs, W = I and W~ = diag(1, 2): C = I / 2 and C~ = diag(1, 4) / 5."""
    eye, after = torch.eye(2, dtype=torch.float64), torch.diag(torch.tensor([1.0, 2], dtype=torch.float64))
    assert bounds.drift(eye, after) == pytest.approx(0.3**2 + 0.3**2)
    # ||Z||^2 = 2, m^2 = 2, one layer: B cancels, SFE = 1.
    assert bounds.drift_bound(eye, eye, after, [eye], [after]) == pytest.approx(16)
    # A second layer that does not change, I: B = 2, 1, and the sum of 1 / B^2 is 5 / 4.
    assert bounds.drift_bound(eye, eye, after, [eye, eye], [after, eye]) == pytest.approx(16 * 4 * 5 / 4)
    assert bounds.drift(torch.diag(eye[0]), torch.diag(eye[1])) == pytest.approx(2)  # the most there is


@pytest.mark.parametrize("seed", range(5))
def test_theorem_1_of_random_networks(seed: int) -> None:
    """From nearly equal weights, where the bound says something, to unrelated ones."""
    Z, *before = drawn(seed, (20, 6), (6, 8), (8, 5), (5, 4))
    for size in (1e-4, 1e-2, 1):
        moves = drawn(seed + 100, (6, 8), (8, 5), (5, 4))
        after = [W + size * move for W, move in zip(before, moves, strict=True)]
        H, H_after = bounds.layers(Z, before)[-1], bounds.layers(Z, after)[-1]
        assert bounds.drift(H, H_after) <= bounds.drift_bound(Z, H, H_after, before, after)
        assert size > 1e-4 or bounds.drift_bound(Z, H, H_after, before, after) < 2


def cross_entropy(Z: Tensor, labels: Tensor, patterns: Sequence[Tensor] | None) -> Callable:
    return lambda weights: nn.functional.cross_entropy(bounds.layers(Z, weights, patterns)[-1], labels)


def dense_norm(loss: Callable, weights: list[Tensor]) -> float:
    """The largest absolute eigenvalue of the whole Hessian, entry by entry."""
    blocks = torch.autograd.functional.hessian(lambda *parts: loss(parts), tuple(weights))
    rows = [torch.cat([b.reshape(W.numel(), -1) for b in row], 1) for row, W in zip(blocks, weights, strict=True)]
    return float(torch.linalg.eigvalsh(torch.cat(rows)).abs().max())


def test_theorem_2s_bound_is_the_papers() -> None:
    """Three layers, with eps = 0, sqrt(27) and 0.5."""
    weights = [orthogonal(3, 3), 2 * torch.eye(3, dtype=torch.float64), near_isometry(5, 3, 0.5)]
    a, b, c = 1, 1 + math.sqrt(27), 1.5
    expected = 0.5 * (b * c + a * c + a * b) + 2 * 3 * (c + b + a)
    assert bounds.curvature_bound(weights, beta=0.5, gamma=3) == pytest.approx(expected)
    assert bounds.curvature_bound(weights[:2], beta=0.5, gamma=3) == pytest.approx(0.5 * (a + b) + 6)


@pytest.mark.parametrize("seed", range(2))
def test_theorem_2_of_random_networks(seed: int) -> None:
    """The norm against the whole Hessian, and the bound with one pattern for all samples."""
    Z, *weights = drawn(seed, (40, 4), (4, 5), (5, 3), (3, 3))
    Z, labels = bounds.whitened(Z), torch.arange(40) % 3
    assert torch.allclose(Z.T @ Z / 40, torch.eye(4, dtype=torch.float64))
    one = [torch.tensor(units, dtype=torch.float64) for units in ([1.0, 1, 0, 1, 1], [1.0, 0, 1])]
    for factor in (0.1, 0.5, 2):
        scaled = [factor * W for W in weights]
        for patterns in (None, one):
            loss = cross_entropy(Z, labels, patterns)
            norm = bounds.hessian_norm(loss, scaled)
            assert norm == pytest.approx(dense_norm(loss, scaled), rel=1e-5)
            assert patterns is None or norm <= bounds.curvature_bound(scaled, 0.5, math.sqrt(2))
    assert bounds.hessian_norm(cross_entropy(Z, labels, [0 * pattern for pattern in one]), weights) == 0


def test_theorem_2_does_not_hold_with_a_pattern_for_each_sample() -> None:
    """W_1 = W_2 = I, so eps = 0, and targets that are met. The loss 0.01 (sqrt(1 + ||r||^2 / 0.01) - 1) of a residual r
    has a Hessian of at most 1 and a gradient of at most 0.1: the bound is 2 + 0.2. But active units have a mean, so the
    second moment of n of them has an eigenvalue above (n - 1) / (2 pi)."""
    n = 48
    Z, weights = bounds.whitened(drawn(0, (600, n))[0]), [torch.eye(n, dtype=torch.float64)] * 2
    targets = bounds.layers(Z, weights)[-1]

    def loss(weights: Sequence[Tensor], patterns: Sequence[Tensor] | None = None) -> Tensor:
        residual = bounds.layers(Z, weights, patterns)[-1] - targets
        return 0.01 * ((1 + residual.square().sum(1) / 0.01).sqrt() - 1).mean()

    bound = bounds.curvature_bound(weights, beta=1, gamma=0.1)
    assert bound == pytest.approx(2.2)
    assert bounds.hessian_norm(loss, weights) > (n - 1) / (2 * math.pi) > 3 * bound


def test_theorem_3_in_a_case_known_in_full() -> None:
    """An isometry keeps the singular values of its inputs."""
    sigma = torch.tensor([4.0, 2, 1, 1], dtype=torch.float64)
    Z, W = orthogonal(0, 4) @ torch.diag(sigma), orthogonal(1, 4)
    for delta in (0.3, 0.1):
        assert bounds.srank_bound(Z, W, delta) == math.ceil((1 - delta) * 4 / (delta * 4 + 1 - delta))
    loose = near_isometry(2, 4, 0.6)
    assert bounds.srank_bound(Z, loose, 0.3) == math.ceil(0.7 * 4 / (0.3 * math.sqrt(1.6 / 0.4) * 4 + 0.7))
    assert bounds.srank_bound(bounds.whitened(Z), W, 0.01) == 4
    assert bounds.srank_bound(torch.ones(3, 1, dtype=torch.float64) @ Z[:1], W, 0.3) == 0  # of rank 1
    assert bounds.srank_bound(Z, near_isometry(2, 4, 1.01), 0.3) is None


@pytest.mark.parametrize("seed", range(5))
def test_theorem_3_of_random_layers(seed: int) -> None:
    """Of inputs that are far from white, and of fewer neurons than inputs."""
    (Z,) = drawn(seed, (50, 12))
    Z = Z * torch.logspace(0, -1, 12, dtype=torch.float64)
    for error in (0, 0.5, 0.9):
        W = near_isometry(seed, 12, error)
        for part in (W, W[:, :7]):
            for delta in (0.01, 0.1, 0.3):
                sigma = torch.linalg.svdvals(Z @ part)
                count = next(k for k in range(1, 13) if sigma[:k].sum() >= (1 - delta) * sigma.sum())
                bound = bounds.srank_bound(Z, part, delta)
                assert bound is not None
                assert 0 < bound <= count


def test_theorem_4() -> None:
    """Scores of Gaussian inputs against drawn ones, and within the bounds."""
    W = near_isometry(0, 6, 0.8)
    exact, ratio = bounds.gaussian_scores(W), bounds.ratio_bound(W)
    assert ratio == pytest.approx(3)
    found = bounds.scores(torch.relu(drawn(1, (400_000, 6))[0] @ W))
    assert torch.allclose(found, exact, rtol=0.02)
    assert 1 / ratio <= float(exact.min()) < float(exact.max()) <= ratio
    assert bounds.gaussian_scores(torch.diag(torch.tensor([1.0, 2, 3]))).tolist() == pytest.approx([0.5, 1, 1.5])
    assert bounds.ratio_bound(torch.eye(2, dtype=torch.float64)) == 1
    assert bounds.ratio_bound(near_isometry(0, 6, 1.01)) is None


def test_inputs_that_do_not_span_all_directions() -> None:
    """Their second moment becomes the projection onto those that they do."""
    Z = drawn(0, (30, 4))[0]
    Z = torch.cat([Z, torch.zeros(30, 2, dtype=torch.float64)], 1)
    white = bounds.whitened(Z)
    assert torch.allclose(white.T @ white / 30, torch.diag(torch.tensor([1.0, 1, 1, 1, 0, 0], dtype=torch.float64)))


@pytest.mark.parametrize(
    ("value", "bound", "settings", "verdict"),
    [
        (1, 2, {}, "holds"), (3, 2, {}, "violated"),
        (1, 3, {"always": 2}, "holds, but says nothing: it is never above 2"),
        (5, 4, {"lower": True, "always": 1}, "holds"), (3, 4, {"lower": True, "always": 1}, "violated"),
        (5, 1, {"lower": True, "always": 1}, "holds, but says nothing: it is never below 1"),
        (3, 2, {"assumed": False}, "fails, outside the assumptions"), (1, math.nan, {}, "no bound: ε is 1 or more"),
        (1, 2, {"assumed": False}, "holds, outside the assumptions"),
    ],
)  # fmt: skip
def test_verdicts(value: float, bound: float, settings: dict, verdict: str) -> None:
    assert Check(1, "", "", "", value, bound, **settings).verdict == verdict


def test_networks_with_another_end_are_refused() -> None:
    head = [nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)]
    assert ends(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(*head))) == ("1.0", "1.2")
    with pytest.raises(UserError, match="Sequential does not end in Linear, ReLU, Linear"):
        ends(nn.Sequential(*head, nn.ReLU()))


def test_the_command(vision: Vision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, its shared phase 0, and the newest phase are one network."""
    assert vision("method=fire")[0] == 0
    (run,), (phase,) = run_dirs(tmp_path / "outputs"), (tmp_path / "outputs/phases").iterdir()
    monkeypatch.chdir(tmp_path)
    assert phase_of(run) == phase_of(phase) == phase_of(None).absolute() == phase
    result = subprocess.run(
        [sys.executable, "-m", "scripts.theorems", str(run), "--out", str(tmp_path / "out/theorems.md")],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    page, lines = (tmp_path / "out/theorems.md").read_text("utf-8"), pd.read_csv(tmp_path / "out/theorems.csv")
    assert result.stdout.startswith(page)
    assert f"such phase, here outputs/phases/{phase.name}." in page
    assert set(lines.theorem) == {1, 2, 3, 4}
    # The first weight of the checkpoint, before FIRE, against its own DfI.
    state = torch.load(next(phase.glob("kept-end-*.pt")))["state"]["model"]
    W = state["head.0.weight"].double()
    error = math.sqrt(float((W @ W.T - torch.eye(len(W))).square().sum()))
    assert f"hidden layer (eq. 2): {error:.2f} before FIRE;" in page
    norms = W.norm(dim=1)
    own = lines.query("theorem == 4 and network == 'before FIRE' and inputs == 'N(0, I)'").set_index("quantity").value
    assert own["largest score"] == pytest.approx(float(norms.max() / norms.mean()))
    for file in phase.glob("kept-end-*"):
        file.unlink()
    with pytest.raises(UserError, match="has no checkpoint end"):
        load(phase)
    with pytest.raises(UserError, match="no phase 0 of vision in outputs/phases"):
        phase_of(None)
    phase.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="has no shared phase 0: there is no"):
        phase_of(run)


def test_the_page_in_results_is_that_of_its_numbers() -> None:
    """Each verdict follows from value and bound, and no theorem is violated where it applies."""
    page, lines = (
        (REPOSITORY / "results/theorems.md").read_text("utf-8"),
        pd.read_csv(REPOSITORY / "results/theorems.csv"),
    )
    for line in lines.to_dict("records"):
        verdict = line.pop("verdict")
        assert Check(**line).verdict == verdict != "violated"
        assert f" {verdict} " in page
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| theorem")]
    assert len(rows) == len(lines)
    assert f"{len(lines)} lines. " in page
