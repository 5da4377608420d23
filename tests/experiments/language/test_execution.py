"""How the network is executed on a GPU, as far as that can be tested without one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from experiments.common.config import build_method, compose_domain
from experiments.common.runtime import Runtime
from experiments.language.config import LanguageConfig
from experiments.language.distributed import ProcessGroup
from experiments.language.domain import load_corpora
from experiments.language.model import GPT, preferred_attention
from experiments.language.train import LanguageTraining
from tests.conftest import Command, numbers, run_dirs


@pytest.mark.parametrize(
    ("device", "capability", "length", "first"),
    [
        ("cuda", (9, 0), 1024, True),
        ("cuda", (9, 0), 1000, False),
        ("cuda", (8, 0), 1024, False),
        ("cpu", None, 1024, False),
    ],
)
def test_cudnn_attention_comes_first_on_hopper(
    device: str, capability: tuple[int, int], length: int, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with preferred_attention(device, length):
        order = _cur_sdpa_kernel_backends(with_priority=True)
    expected = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    assert order == (expected if first else before)
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


def test_training_and_validation_compile_one_graph_each(
    language_made: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole batches of validation windows go through the compiled network, the rest through the eager one."""
    arguments = ("method=fire", "budget.eval_windows=18", "budget.iterations=[10,5]")
    assert language_made(*arguments, f"outputs_dir={tmp_path / 'eager'}")[0] == 0
    called: list[tuple[bool, bool, int]] = []  # compiled, with gradients, sequences
    inside = [False]
    forward = GPT.forward

    def watched(self: GPT, tokens: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and not inside[0]:
            called.append((False, torch.is_grad_enabled(), len(tokens)))
        return forward(self, tokens)

    def compiled(self: Runtime, model: nn.Module) -> Any:
        inner = torch.compile(model, backend="eager")  # quick; what counts is how often it is traced

        def call(tokens: Tensor) -> Tensor:
            called.append((True, torch.is_grad_enabled(), len(tokens)))
            inside[0] = True
            loss = inner(tokens)
            inside[0] = False
            return loss

        return call

    monkeypatch.setattr(GPT, "forward", watched)
    monkeypatch.setattr(Runtime, "compiled", compiled)
    torch._dynamo.reset()
    counters.clear()
    status, printed = language_made(*arguments, "compile=true", f"outputs_dir={tmp_path / 'compiled'}")
    assert status == 0, printed
    assert counters["stats"]["unique_graphs"] == 2
    assert set(called) == {(True, True, 4), (True, False, 4), (False, False, 2)}
    validations = sum(2 if "val/loss_second" in row else "val/loss" in row for row in numbers_of(tmp_path / "compiled"))
    assert called.count((True, False, 4)) == 4 * validations
    assert called.count((False, False, 2)) == validations
    eager, other = ([row.get("val/loss") for row in numbers_of(tmp_path / name)] for name in ("eager", "compiled"))
    assert [value is None for value in eager] == [value is None for value in other]
    assert [value for value in other if value] == pytest.approx([value for value in eager if value], rel=1e-6)


def test_compiled_code_measures_units_by_hooks_that_came_later(
    language_made: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ReDo begins in phase 1, when the network has been compiled without its hooks."""
    arguments = ("method=redo", "method.tau=0.7", "method.period=3")
    found = []
    for compile in ("false", "true"):
        status, printed = language_made(*arguments, f"compile={compile}", f"outputs_dir={tmp_path / compile}")
        assert status == 0, printed
        rows = numbers_of(tmp_path / compile)
        found.append([[row[key] for row in rows if key in row] for key in ("method/units_reset", "train/loss")])
        monkeypatch.setattr(Runtime, "compiled", lambda self, model: torch.compile(model, backend="eager"))  # quick
    # Both train by the same operations, so they reset the same units.
    eager, compiled = found
    assert compiled == eager
    assert sum(eager[0]) > 0


def test_a_skipped_step_is_none_for_the_method(made_text: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Where loss scaling leaves a step of the optimiser out, the method does not act after it."""
    folder, words = made_text
    settings = ("scale=smoke", "method=redo", "method.first_phase=0", f"data_dir={folder}", f"outputs_dir={tmp_path}")
    cfg = compose_domain("language", LanguageConfig, [*words, *settings])
    runtime = Runtime("cpu", "fp16", "false", 1)
    training = LanguageTraining(cfg, runtime, build_method(cfg), *load_corpora(cfg), ProcessGroup("cpu"))
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    for scale, steps in ((3e38, 0), (1.0, 1)):
        training.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        training.train_iteration()
        assert training.during.state_dict()["steps"] == steps
        changed = any(not torch.equal(value, before[name]) for name, value in training.model.state_dict().items())
        assert changed == bool(steps)


@pytest.mark.parametrize("optimizer", ["reset", "keep"])
def test_loss_scaling_is_new_in_phase_1(optimizer: str, made_text: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, words = made_text
    settings = ("scale=smoke", f"optimizer_at_boundary={optimizer}", f"data_dir={folder}", f"outputs_dir={tmp_path}")
    cfg = compose_domain("language", LanguageConfig, [*words, *settings])
    runtime = Runtime("cpu", "fp16", "false", 1)
    training = LanguageTraining(cfg, runtime, build_method(cfg), *load_corpora(cfg), ProcessGroup("cpu"))
    first = training.scaler.state_dict()
    training.train_iteration()
    training.scaler.update(4.0)
    assert training.scaler.get_scale() == training.state_dict()["scaler"]["scale"] == 4
    training.phase = 1
    training.cross_boundary(lambda row: None)
    assert training.scaler.state_dict() == first
    assert first["scale"] == 2**16  # PyTorch's first value, which the authors' code leaves as it is
    training.train_iteration()
    moments = next(iter(training.optimizer.state.values()))
    assert int(moments["step"]) == (2 if optimizer == "keep" else 1)


@pytest.mark.parametrize(
    ("backend", "dtype"), [("eager", torch.float32), ("aot_eager_decomp_partition", torch.bfloat16)]
)
def test_compiled_the_scores_are_kept_once_in_half_precision(backend: str, dtype: torch.dtype) -> None:
    """They are the largest thing a training step keeps. The second backend cuts the network into forward and backward
    as torch.compile does by default; the first, the network as it is written, keeps them in float32."""
    torch.manual_seed(0)
    network = GPT(layers=2, heads=2, width=64, block=128, vocabulary=1024)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    torch._dynamo.reset()
    called = torch.compile(network, backend=backend)
    tokens = torch.randint(1024, (4, 129), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        called(tokens).backward()
    large = {(tensor.data_ptr(), tensor.dtype) for tensor in kept if tensor.numel() >= 4 * 128 * 1024}
    assert [kind for _, kind in large] == [dtype]


def numbers_of(outputs: Path) -> list[dict[str, Any]]:
    (directory,) = run_dirs(outputs)
    return numbers(directory)
