"""The language experiment on a GPU: the same curves within rounding, whichever way the network is executed."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

import fire
from experiments.common import checkpoint
from experiments.common.metric_log import read_rows
from experiments.language import model
from experiments.language.domain import load_corpora
from experiments.language.model import preferred_attention
from tests.conftest import Command, needs_cuda, numbers, run_dirs

Rows = list[dict[str, Any]]


def rows(language: Command, outputs: Path, *arguments: str) -> Rows:
    """The log of a run, on the GPU unless said otherwise."""
    given = [] if any(argument.startswith("device=") for argument in arguments) else ["device=cuda"]
    status, printed = language(f"outputs_dir={outputs}", *given, *arguments)
    assert status == 0, printed
    (directory,) = run_dirs(outputs)
    return numbers(directory)


def losses(log: Rows) -> list[float]:
    """Of training and validation, in order."""
    return [row[key] for row in log for key in ("train/loss", "val/loss") if key in row]


@needs_cuda
@pytest.mark.parametrize("method", [m for m in fire.METHODS if m not in ("plasticity_injection", "dash", "cbp", "snr")])
def test_equals_the_cpu_within_rounding(method: str, language_made: Command, tmp_path: Path) -> None:
    given = {"shrink_perturb": 0.5, "l2_init": 0.5, "parseval": 1e-3}
    coefficient = [f"method.coefficient={given[method]}"] if method in given else []
    on_gpu = rows(language_made, tmp_path / "gpu", f"method={method}", "compile=false", *coefficient)
    on_cpu = rows(language_made, tmp_path / "cpu", f"method={method}", "device=cpu", *coefficient)
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), rel=0.02)


# Of 18 windows 16 are validated by the compiled network. Hopper's attention takes blocks of 128; here with heads of 64.
HOPPER = "budget.block=128 budget.width=128"


@needs_cuda
@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ("compile=true", ""),
        ("compile=true precision=bf16", HOPPER),
        ("compile=graphs", "budget.micro_batch=8"),
        ("compile=false precision=tf32", ""),
        ("compile=false precision=bf16", HOPPER),
        ("compile=false precision=fp16", ""),
    ],
)
def test_ways_to_execute_agree(settings: str, shape: str, language_made: Command, tmp_path: Path) -> None:
    common = ["method=fire", "budget.eval_windows=18", *shape.split()]
    eager = rows(language_made, tmp_path / "eager", "compile=false", *common)
    other = rows(language_made, tmp_path / "other", *settings.split(), *common)
    assert losses(other) == pytest.approx(losses(eager), rel=0.1 if "16" in settings else 0.03)
    if "16" in settings:
        (directory,) = run_dirs(tmp_path / "other")
        trained = [row for row in read_rows(directory / "metrics.jsonl") if "train/loss" in row]
        known = any(name in torch.cuda.get_device_name() for name in ("A100", "H100", "H200"))
        assert all(("speed/mfu" in row) >= known for row in trained)


@needs_cuda
@pytest.mark.parametrize("settings", ["compile=true", "compile=graphs budget.micro_batch=8", "precision=fp16"])
def test_units_are_measured_however_the_network_is_executed(
    settings: str, language_made: Command, tmp_path: Path
) -> None:
    arguments = ["method=redo", "method.tau=0.7", "method.period=3", *settings.split()[1:]]
    eager = rows(language_made, tmp_path / "eager", "compile=false", *arguments)
    compiled = [] if "compile" in settings else ["compile=false"]
    other = rows(language_made, tmp_path / "other", settings.split()[0], *compiled, *arguments)
    counts = [[row["method/units_reset"] for row in log if "method/units_reset" in row] for log in (eager, other)]
    assert sum(counts[0]) > 100
    assert counts[1] == pytest.approx(counts[0], abs=30)  # units near the threshold fall on either side of it


@needs_cuda
def test_loss_scaling_is_saved_and_goes_on(language_made: Command, tmp_path: Path) -> None:
    arguments = ("precision=fp16", "compile=false")
    whole = rows(language_made, tmp_path / "whole", *arguments)
    status, printed = language_made("device=cuda", f"outputs_dir={tmp_path / 'parts'}", "until=phase0", *arguments)
    assert status == 0, printed
    (path,) = (tmp_path / "parts").rglob("kept-60k-*.pt")
    assert torch.load(path, weights_only=True)["state"]["scaler"]["scale"] > 1
    assert losses(rows(language_made, tmp_path / "parts", *arguments)) == pytest.approx(losses(whole), rel=0.03)


@needs_cuda
def test_the_best_is_that_of_its_moment(language_made: Command, tmp_path: Path) -> None:
    """Training goes on in the very memory that the best was copied from; the copy is written later."""
    # Checkpoints are kept every fourth iteration, so the best after another one waits in memory.
    arguments = ("method=none", "checkpoint=best", "budget.eval_every=[1,1]", "checkpoint_seconds=1000")
    status, printed = language_made("device=cuda", "until=phase0", "compile=false", *arguments)
    assert status == 0, printed
    (phase,) = (tmp_path / "outputs" / "phases").iterdir()
    content = checkpoint.read(checkpoint.kept(phase)["best"])
    assert content is not None
    cfg: Any = OmegaConf.load(phase / "config.yaml")
    network = model.build(cfg)
    network.load_state_dict(content["state"]["model"])
    first, _ = load_corpora(cfg)
    windows = first.windows(cfg.budget.block, cfg.budget.eval_windows).long().cuda()
    validated = {row["iteration"]: row["val/loss"] for row in numbers(phase)}
    lowest, at, settled = content["state"]["best"]
    assert not settled
    assert lowest == validated[at] == min(validated.values())
    with torch.no_grad():
        assert float(network.cuda()(windows)) == pytest.approx(lowest, rel=1e-4)


@needs_cuda
def test_attention_is_exact_and_on_hopper_cudnns() -> None:
    """Values and gradients in bfloat16 against float64, at the paper's shape."""
    torch.manual_seed(0)
    shape = (4, 12, 1024, 64)
    reference = [torch.randn(shape, dtype=torch.float64, device="cuda").requires_grad_() for _ in range(3)]
    half = [value.detach().bfloat16().requires_grad_() for value in reference]
    upstream = torch.randn(shape, dtype=torch.float64, device="cuda")

    def attend(parts: list[Tensor]) -> Tensor:
        with preferred_attention("cuda", shape[2]):
            mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        mixed.backward(upstream.to(mixed.dtype))
        return mixed

    expected, found = attend(reference), attend(half)
    if torch.cuda.get_device_capability()[0] == 9:
        assert "Cudnn" in found.grad_fn.name()  # type: ignore[union-attr]
    pairs = [(found, expected), *((one.grad, other.grad) for one, other in zip(half, reference, strict=True))]
    for one, other in pairs:
        assert (one.double() - other).norm() < 0.02 * other.norm()
