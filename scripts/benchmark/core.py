"""`fire_` against a plain loop over matrices and kernel positions, on the weights of the paper's networks."""

import multiprocessing
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import fire
from experiments.vision import models
from scripts.benchmark.timing import alternate, matrix_rate, ratio, seconds

STEPS = 10
LOOP = "plain loop"
SOLVERS: dict[str, dict[str, Any]] = {
    "newton_schulz": {"solver": "newton_schulz", "steps": STEPS},
    "polar_express": {"solver": "polar_express", "tol": 1e-6},
    "svd": {"solver": "svd"},
}
# The oracle takes minutes on a CPU for matrices this large, so it runs once there.
LARGE = 50_000_000


def linears(*shapes: tuple[int, int], copies: int = 1) -> nn.Module:
    """Linear layers of the given (out, in) as PyTorch initialises them: what `fire_` sees of a network."""
    return nn.ModuleList(nn.Linear(i, o, bias=False) for _ in range(copies) for o, i in shapes)


def gpt() -> nn.Module:
    """GPT-0.1B: 12 blocks with query, key and value apart, and the tied head."""
    d = 768
    return nn.ModuleList([linears(*[(d, d)] * 4, (4 * d, d), (d, 4 * d), copies=12), linears((50304, d))])


CASES: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18, width 64": lambda: models.build("resnet18", 64, 10, seed=0),
    "ResNet-18, width 16": lambda: models.build("resnet18", 16, 10, seed=0),
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
    ours = {name: partial(fire.fire_, model, **settings) for name, settings in SOLVERS.items()}
    return {LOOP: partial(plain_loop, model), **ours}


def run(device: str, repeats: int) -> pd.DataFrame:
    """A row for every case and way of projecting it."""
    rate = matrix_rate(device)
    print(f"best float32 matrix product here: {rate / 1e9:,.0f} GFLOP/s", flush=True)
    rows = []
    for case, make in CASES.items():
        model = make().to(device)
        initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        restore = partial(model.load_state_dict, initial)
        compared = contestants(model)
        large = device == "cpu" and sum(p.numel() for p in model.parameters()) > LARGE
        oracle = {"svd": compared.pop("svd")} if large else {}
        times = alternate(compared, repeats, device, restore)
        for name, function in {**compared, **oracle}.items():
            restore()
            if name in oracle:
                times[name] = [seconds(function, device)]
            else:
                function()
            median = statistics.median(times[name])
            print(f"{case}, {name}: {median * 1e3:,.1f} ms", flush=True)
            rows.append(
                {
                    "case": case,
                    "solver": name,
                    "seconds": median,
                    "loop_over_this": ratio(times[LOOP], times[name]) if name in compared else None,
                    "repeats": len(times[name]),
                    "dfi": fire.metrics.isometry(model)["dfi"],
                    "extra_bytes": None if name in oracle else extra_bytes(case, name, device),
                    "largest_group_bytes": largest_group(model),
                    "floor_seconds": loop_operations(model) / rate,
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


def extra_bytes(case: str, name: str, device: str) -> int:
    """Memory that projecting takes at its peak beyond the model."""
    if device == "cuda":
        return _extra_on_cuda(case, name)
    # A process of its own: an allocator that has served larger requests before would hide this one.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_extra_on_cpu, (case, name))


def _extra_on_cuda(case: str, name: str) -> int:
    model = CASES[case]().to("cuda")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contestants(model)[name]()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _extra_on_cpu(case: str, name: str) -> int:
    contestants(linears((8, 8)))[name]()  # what loading the solvers takes is not theirs
    model = CASES[case]()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux)
    before = _status("VmRSS")
    contestants(model)[name]()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def table(results: pd.DataFrame) -> str:
    """Markdown: a row a case, times in milliseconds with the loop's time over them."""

    def cell(row: pd.Series) -> str:
        faster = "" if pd.isna(row.loop_over_this) else f" ({row.loop_over_this:.2f}x)"
        memory = "" if pd.isna(row.extra_bytes) else f", {row.extra_bytes / row.largest_group_bytes:.1f}"
        return f"{row.seconds * 1e3:,.0f}{faster}, DfI {row.dfi:.1g}{memory}"

    results = results.assign(cell=results.apply(cell, axis=1))
    wide = results.pivot(index="case", columns="solver", values="cell").loc[list(CASES), [LOOP, *SOLVERS]]
    floor = results.groupby("case").floor_seconds.first() * 1e3
    wide.insert(0, "floor", [f"{floor[case]:,.0f}" for case in wide.index])
    return wide.reset_index().to_markdown(index=False)
