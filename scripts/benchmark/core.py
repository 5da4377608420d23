"""`fire_` against a plain loop over matrices and kernel positions, on the weights of the paper's networks."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

import fire
from experiments.vision import models
from fire.reference import reference_fire_
from scripts.benchmark.cases import Case, Loop, Row

STEPS = 10
LOOP = "plain loop"
SOLVERS: dict[str, dict[str, Any]] = {"newton_schulz": {"steps": STEPS}, "polar_express": {"tol": 1e-6}}
TABLE = {
    "ms": ("seconds", "{:,.1f}", 1e3),
    "loop / this": ("loop_over_this", "{:.2f}", 1),
    "DfI after": ("dfi", "{:.1e}", 1),
    "extra memory, MB": ("peak_bytes", "{:,.0f}", 1e-6),
}


def linears(*shapes: tuple[int, int], copies: int = 1) -> nn.Module:
    """Linear layers of the given (out, in) as PyTorch initialises them: what `fire_` sees of a network."""
    return nn.ModuleList(nn.Linear(i, o, bias=False) for _ in range(copies) for o, i in shapes)


CASES: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18, width 64": lambda: models.build("resnet18", 10, (3, 32, 32), 64, seed=0),
    "ResNet-18, width 16": lambda: models.build("resnet18", 10, (3, 32, 32), 16, seed=0),
    "ViT-Tiny, q and k": lambda: linears((192, 192), copies=24),
    "SimBa critics": lambda: linears((512, 70), *[(2048, 512), (512, 2048)] * 2, (1, 512), copies=2),
    # 12 blocks with query, key and value apart, and the tied head.
    "GPT-0.1B": lambda: linears(*[*[(768, 768)] * 4, (3072, 768), (768, 3072)] * 12, (50304, 768)),
}


def cases(device: str, synthetic: bool) -> list[Case]:
    """Each network with the ways of projecting it."""
    return [Case(name, {way: partial(project, name, way, device) for way in (LOOP, *SOLVERS)}) for name in CASES]


def project(case: str, way: str, device: str, _: ExitStack) -> Loop:
    """One way of projecting a network, each time from the same weights."""
    torch.manual_seed(0)
    model = CASES[case]().to(device)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def restore() -> None:
        model.load_state_dict(initial)

    def run() -> object:
        if way == LOOP:
            return reference_fire_(model, STEPS)
        return fire.fire_(model, solver=way, **SOLVERS[way]).dfi_after  # read, so that all its work is waited for

    def columns(row: Row) -> Row:
        found = {"loop_over_this": 1 / row["over_first"], "dfi": fire.metrics.isometry(model)["dfi"]}
        if device == "cuda":
            restore()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            found["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        return found

    return Loop(run, prepare=restore, columns=columns)
