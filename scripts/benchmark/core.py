"""`fire_` against a plain loop over matrices and kernel positions, on the weights of the paper's networks."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import fire
from experiments.vision import models
from scripts.benchmark.memory import extra_bytes
from scripts.benchmark.timing import alternate, matrix_rate, ratio, seconds

STEPS = 10
LOOP = "plain loop"
SOLVERS: dict[str, dict[str, Any]] = {
    "newton_schulz": {"solver": "newton_schulz", "steps": STEPS},
    "polar_express": {"solver": "polar_express", "tol": 1e-6},
    "svd": {"solver": "svd"},
}
# On a CPU the oracle runs once for matrices this large: it is there for its DfI.
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
        print(f"{case} ...", flush=True)
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
            dfi = fire.metrics.isometry(model)["dfi"]
            rows.append(
                {
                    "case": case,
                    "solver": name,
                    "seconds": median,
                    "loop_over_this": ratio(times[LOOP], times[name]) if name in compared else None,
                    "repeats": len(times[name]),
                    "dfi": dfi,
                    "extra_bytes": None if name in oracle else extra_bytes(function, device),
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


def table(results: pd.DataFrame) -> str:
    """Markdown: a row for each network and way of projecting it."""
    megabytes = (results.extra_bytes / 1e6).map("{:,.0f}".format).where(results.extra_bytes.notna(), "")
    shown = pd.DataFrame(
        {
            "network": results.case,
            "": results.solver,
            "ms": (results.seconds * 1e3).map("{:,.0f}".format),
            "loop / this": results.loop_over_this.map("{:.2f}".format).where(results.loop_over_this.notna(), ""),
            "floor of the loop, ms": (results.floor_seconds * 1e3).map("{:,.0f}".format),
            "DfI after": results.dfi.map("{:.1e}".format),
            "extra memory, MB": megabytes,
            "largest group, MB": (results.largest_group_bytes / 1e6).map("{:,.0f}".format),
        }
    )
    once = ["network", "floor of the loop, ms", "largest group, MB"]
    shown.loc[results.case.duplicated(), once] = ""
    return shown.to_markdown(index=False, disable_numparse=True)
