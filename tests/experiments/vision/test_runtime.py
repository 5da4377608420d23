"""The switches for speed: they may change rounding, not what is computed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import numbers, run_dirs

Vision = Callable[..., tuple[int, str]]


def losses(outputs: Path) -> list[float]:
    (directory,) = run_dirs(outputs)
    return [row["train/loss"] for row in numbers(directory) if "train/loss" in row]


@pytest.mark.slow
def test_compiled_equals_eager(vision: Vision, tmp_path: Path) -> None:
    curves = []
    for compiled in ("false", "true"):
        status, printed = vision(f"compile={compiled}", f"outputs_dir={tmp_path / compiled}")
        assert status == 0, printed
        curves.append(losses(tmp_path / compiled))
    assert curves[1] == pytest.approx(curves[0], rel=1e-2)  # rounding grows from step to step


def test_bfloat16_is_close_and_keeps_float32_weights(vision: Vision, tmp_path: Path) -> None:
    curves = []
    for precision in ("fp32", "bf16"):
        status, printed = vision(f"precision={precision}", f"outputs_dir={tmp_path / precision}")
        assert status == 0, printed
        curves.append(losses(tmp_path / precision))
    assert curves[1] != curves[0]
    assert curves[1] == pytest.approx(curves[0], rel=0.1)
    (path,) = (tmp_path / "bf16" / "phases").rglob("checkpoint-*.pt")
    weights = torch.load(path, weights_only=True)["state"]["model"]
    assert weights["head.2.weight"].dtype == torch.float32
