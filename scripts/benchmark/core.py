"""`fire_` against a plain loop over matrices and kernel positions, on the weights of the paper's networks."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import fire
from experiments.vision import models
from scripts.benchmark.memory import extra_bytes
from scripts.benchmark.plan import Case, Options
from scripts.benchmark.timing import Limit, alternate, between, known, matrix_rate, ratio, seconds, spread

STEPS = 10
LOOP = "plain loop"
SOLVERS: dict[str, dict[str, Any]] = {
    "newton_schulz": {"solver": "newton_schulz", "steps": STEPS},
    "polar_express": {"solver": "polar_express", "tol": 1e-6},
    "svd": {"solver": "svd"},
}
ORACLE = "svd"
# Seconds of a turn, and of the oracle. CPU: 2 cores, as in results/benchmark. CUDA: a turn as on an H200 at commit
# 103a8a6; the oracle there is a guess.
EXPECTED: dict[str, dict[str, tuple[float, float]]] = {
    "cpu": {
        "ResNet-18, width 64": (2.8, 1.9), "ResNet-18, width 16": (0.2, 0.2), "ViT-Tiny, q and k": (0.2, 0.2),
        "SimBa critics": (1.6, 0.9), "GPT-0.1B": (34, 20),
    },
    "cuda": {
        "ResNet-18, width 64": (0.3, 8), "ResNet-18, width 16": (0.2, 5), "ViT-Tiny, q and k": (0.1, 3),
        "SimBa critics": (0.1, 3), "GPT-0.1B": (0.6, 20),
    },
}  # fmt: skip
UNKNOWN = (1.0, 1.0)


def linears(*shapes: tuple[int, int], copies: int = 1) -> nn.Module:
    """Linear layers of the given (out, in) as PyTorch initialises them: what `fire_` sees of a network."""
    return nn.ModuleList(nn.Linear(i, o, bias=False) for _ in range(copies) for o, i in shapes)


def gpt() -> nn.Module:
    """GPT-0.1B: 12 blocks with query, key and value apart, and the tied head."""
    d = 768
    return nn.ModuleList([linears(*[(d, d)] * 4, (4 * d, d), (d, 4 * d), copies=12), linears((50304, d))])


CASES: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18, width 64": lambda: models.build("resnet18", 10, (3, 32, 32), 64, seed=0),
    "ResNet-18, width 16": lambda: models.build("resnet18", 10, (3, 32, 32), 16, seed=0),
    "ViT-Tiny, q and k": lambda: linears((192, 192), copies=24),
    "SimBa critics": lambda: linears((512, 70), *[(2048, 512), (512, 2048)] * 2, (1, 512), copies=2),
    "GPT-0.1B": gpt,
}


def newton_schulz(W: Tensor) -> Tensor:
    """The iteration as it is usually written."""
    wide = W.shape[0] < W.shape[1]
    X = W.T if wide else W
    X = X / X.norm()
    for _ in range(STEPS):
        A = X.T @ X
        X = 1.5 * X - 0.5 * X @ A
    return X.T if wide else X


@torch.no_grad()
def plain_loop(model: nn.Module) -> None:
    """FIRE as it is usually written: one matrix after the other."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            out, fan_in = module.weight.shape
            module.weight.copy_(newton_schulz(module.weight) * (out / fan_in) ** 0.5)
        elif isinstance(module, nn.Conv2d):
            out, fan_in, height, width = module.weight.shape
            for i in range(height):
                for j in range(width):
                    projected = newton_schulz(module.weight[:, :, i, j])
                    module.weight[:, :, i, j] = projected * (out / fan_in) ** 0.5 / (height * width)


def loop_operations(model: nn.Module) -> float:
    """Floating-point operations of the loop's matrix products."""
    matrices, _ = fire.weight_matrices(model)
    total = 0.0
    for matrix in matrices:
        n, m = sorted(matrix.view.shape[-2:])
        total += matrix.view[..., 0, 0].numel() * STEPS * 4 * m * n * n
    return total


def contestants(model: nn.Module) -> dict[str, Callable[[], object]]:
    """What is compared, by name."""
    return {LOOP: partial(plain_loop, model)} | {name: partial(ours, model, name) for name in SOLVERS}


def ours(model: nn.Module, solver: str) -> tuple[float, float, float]:
    """`fire_`, with its report read: a call that has not been waited for would not have been timed."""
    report = fire.fire_(model, **SOLVERS[solver])
    return report.sfe, report.dfi_before, report.dfi_after


def cases(options: Options) -> list[Case]:
    """Each network with the ways of projecting it; the oracle apart, because it is there for its DfI and runs once."""
    rate = cache(partial(best_product, options.device))
    turns = ((LOOP, *(name for name in SOLVERS if name != ORACLE)), (ORACLE,))
    expected = EXPECTED[options.device]
    return [
        Case(
            name, loops, LOOP, partial(_measure, options.device, name, rate),
            0 if loops == (ORACLE,) else 2 + expected.get(name, UNKNOWN)[0],
            expected.get(name, UNKNOWN)[loops == (ORACLE,)],
            extra=loops == (ORACLE,),
        )
        for name in CASES
        for loops in turns
    ]  # fmt: skip


def best_product(device: str) -> float:
    """The machine's `matrix_rate`, told."""
    rate = matrix_rate(device)
    print(f"best float32 matrix product here: {rate / 1e9:,.0f} GFLOP/s", flush=True)
    return rate


def _measure(device: str, case: str, rate: Callable[[], float], loops: Sequence[str], limit: Limit) -> pd.DataFrame:
    model = CASES[case]().to(device)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    restore = partial(model.load_state_dict, initial)
    compared = {name: function for name, function in contestants(model).items() if name in loops}
    if ORACLE in compared:
        times = {ORACLE: [seconds(compared[ORACLE], device)]}
        print(f"{case}: {ORACLE}, once: {times[ORACLE][0]:.3f} s", flush=True)
    else:
        times = alternate(compared, limit, device, restore)
    rows = []
    for name, function in compared.items():
        if name != ORACLE:  # whose result is still there
            restore()
            function()
        rows.append(
            {
                "case": case,
                "solver": name,
                **spread(times[name]),
                "loop_over_this": ratio(times[LOOP], times[name]) if LOOP in times else None,
                "dfi": fire.metrics.isometry(model)["dfi"],
                "extra_bytes": None if name == ORACLE else extra_bytes(function, device),
                "largest_group_bytes": largest_group(model),
                "floor_seconds": loop_operations(model) / rate(),
            }
        )
    return pd.DataFrame(rows)


def largest_group(model: nn.Module) -> int:
    """Bytes in float32 of the most matrices of one shape."""
    groups: dict[tuple[int, ...], int] = {}
    for matrix in fire.weight_matrices(model)[0]:
        shape = tuple(sorted(matrix.view.shape[-2:]))
        groups[shape] = groups.get(shape, 0) + 4 * matrix.view.numel()
    return max(groups.values())


def table(results: pd.DataFrame) -> str:
    """Markdown: a row for each network and way of projecting it."""
    milliseconds = results.assign(**{key: results[key] * 1e3 for key in ("seconds", "seconds_min", "seconds_max")})
    shown = pd.DataFrame(
        {
            "network": results.case,
            "": results.solver,
            "ms": known(milliseconds.seconds, "{:,.1f}"),
            **between(milliseconds, "seconds", "{:,.1f}"),
            "loop / this": known(results.loop_over_this, "{:.2f}"),
            "floor of the loop, ms": known(results.floor_seconds * 1e3, "{:,.1f}"),
            "DfI after": known(results.dfi, "{:.1e}"),
            "extra memory, MB": known(results.extra_bytes / 1e6, "{:,.0f}"),
            "largest group, MB": known(results.largest_group_bytes / 1e6, "{:,.0f}"),
        }
    )
    once = ["network", "floor of the loop, ms", "largest group, MB"]
    shown.loc[results.case.duplicated(), once] = ""
    return shown.to_markdown(index=False, disable_numparse=True)
