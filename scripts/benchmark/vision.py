"""The vision experiment against a standard torchvision loop, and four methods with and without the shared phase.

Both loops train the same network on the same images with the same batch size and precision. The standard one is what
one writes first: `torchvision.datasets.CIFAR10` with ToTensor and Normalize, a DataLoader with worker processes, Adam,
`loss.item()` for the log, and a test loop of the same kind.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig

from experiments.common import config
from experiments.common.errors import StopSignals, UserError
from experiments.common.progress import Progress
from experiments.common.workspace import Workspace
from experiments.vision import data
from experiments.vision.config import VisionConfig
from experiments.vision.datasets import DATA_SETS
from experiments.vision.train import VisionTraining, describe
from scripts.benchmark.plan import Case, Options
from scripts.benchmark.timing import Limit, alternate, between, known, ratio, spread

SCALES = {"cpu": ["scale=laptop"], "cuda": ["scale=paper", "precision=bf16"]}
# Phase 0 and 1 in the paper's proportions: as many images in each, and a fifth as many test images as training images.
PROPORTIONS = {"train_images": 1000, "test_images": 200, "epochs": "[100,10]", "test_every": "[1,1]"}
METHODS = "none,shrink_perturb,full_reset,fire"
SWEEPS = {"shared phase": "true", "four separate runs": "false"}  # and their `phase_cache`
CORES = os.cpu_count() or 1
WORKERS = {"cpu": sorted({0, 2, min(8, CORES)}), "cuda": [min(8, CORES)]}
# Seconds until the first turn, and of a turn; of both sweeps. CUDA: as on an H200, with 20 s of compiling; the sweeps a
# guess.
EXPECTED = {"cpu": (60.0, 53.0), "cuda": (30.0, 5.3)}
SWEEP_SECONDS = {"cpu": 195.0, "cuda": 60.0}


@contextmanager
def ours(cfg: DictConfig, runtime: config.Runtime, train: data.Images, test: data.Images) -> Iterator[Callable]:
    """A function that trains one epoch as `python -m experiments.vision` does, with its test or without."""
    training = VisionTraining(cfg, runtime, config.build_method(cfg), train, test)
    job = describe(cfg, runtime)
    with StopSignals() as stop, Workspace(Path(cfg.outputs_dir), job.identity, cfg, stop=stop) as workspace:
        workspace.resume()
        with Progress("epoch", sys.maxsize, 0, "images") as progress:

            def epoch(tested: bool) -> None:
                cfg.budget.test_every = [1 if tested else sys.maxsize] * 2
                training.train_epoch(workspace, training.phase_images(1), sys.maxsize, progress)

            yield epoch


def cases(options: Options) -> list[Case]:
    """An epoch of both loops, and the share of its cost that the shared phase leaves to a sweep."""
    scratch = options.stack.enter_context(tempfile.TemporaryDirectory())
    overrides = [*SCALES[options.device], f"device={options.device}", f"outputs_dir={scratch}/run"]
    cfg = config.compose_domain("vision", VisionConfig, overrides)
    cfg.optimizer.warmup_fraction = 0.0  # of a number of epochs that is not known here
    setting = f"width {cfg.budget.width}, batch {cfg.budget.batch_size}, {cfg.precision}"
    setting += ", synthetic images" if options.synthetic else ""
    loops = ("ours", *(_standard(workers) for workers in WORKERS[options.device]))
    epoch = partial(_loops, cfg, setting, options.synthetic)
    found = [Case(f"an epoch, {setting}", loops, "ours", epoch, *EXPECTED[options.device])]
    if options.synthetic:
        print("vision: the sweep of four methods needs CIFAR-10, so --synthetic leaves it out", flush=True)
        return found
    sweep = partial(_sweeps, options.device, Path(scratch))
    seconds = SWEEP_SECONDS[options.device]
    return [*found, Case("sweep of four methods", tuple(SWEEPS), "shared phase", sweep, 0.0, seconds, extra=True)]


def _standard(workers: int) -> str:
    return f"standard, {workers} workers"


def images(cfg: DictConfig, synthetic: bool) -> tuple[data.Images, data.Images]:
    """For training and for tests; random ones if `synthetic`, which are as much work."""
    data_set = DATA_SETS[cfg.data.name]
    counts = data_set.used(cfg.budget)
    if synthetic:
        rng = torch.Generator().manual_seed(0)
        shapes = [(count, *data_set.shape) for count in counts]
        pixels = [torch.randint(256, shape, dtype=torch.uint8, generator=rng) for shape in shapes]
        labels = [torch.randint(data_set.classes, (count,), generator=rng) for count in counts]
        train, test = (data.Images(*part, data_set.mean, data_set.std) for part in zip(pixels, labels, strict=True))
        return train, test
    try:
        return data.load(data_set, config.data_folder(cfg), *counts, seed=0)
    except UserError as error:
        raise UserError(f"{error}; with --synthetic random images take its place") from error


def _loops(cfg: DictConfig, setting: str, synthetic: bool, loops: Sequence[str], limit: Limit) -> pd.DataFrame:
    runtime, (train, test) = config.resolve_runtime(cfg, compile_on_cuda="graphs"), images(cfg, synthetic)
    standard = _standard_loops(cfg, runtime, train, test, loops)
    with ours(cfg, runtime, train, test) as epoch:
        contestants: dict[str, Callable[[], object]] = {}
        for name, loop in standard.items():
            contestants |= {f"{name}, training": loop.train, f"{name}, test": loop.test}
        contestants |= {"ours, training": partial(epoch, False), "ours, whole epoch": partial(epoch, True)}
        times = alternate(contestants, limit, runtime.device)
    names = [*standard, "ours"]
    trained = {name: times[f"{name}, training"] for name in names}
    whole = {"ours": times["ours, whole epoch"]}
    for name in standard:
        whole[name] = [a + b for a, b in zip(trained[name], times[f"{name}, test"], strict=True)]
    rows: list[dict[str, Any]] = [
        {
            "case": f"{part}, {setting}",
            "loop": name,
            **spread(values[name]),
            "images_per_second": cfg.budget.train_images / statistics.median(values[name]),
            "over_ours": ratio(values[name], values["ours"]),
        }
        for part, values in (("training", trained), ("whole epoch", whole))
        for name in names
    ]
    return pd.DataFrame(rows)


def _standard_loops(
    cfg: DictConfig, runtime: config.Runtime, train: data.Images, test: data.Images, loops: Sequence[str]
) -> dict[str, Any]:
    asked = {_standard(workers): workers for workers in WORKERS[runtime.device] if _standard(workers) in loops}
    if asked and find_spec("torchvision") is None:
        print("vision: torchvision is not installed, so the standard loop is left out", flush=True)
        return {}
    if not asked:
        return {}
    from scripts.benchmark.standard_loop import StandardLoop

    return {name: StandardLoop(cfg, runtime, train, test, workers) for name, workers in asked.items()}


def _sweeps(device: str, scratch: Path, loops: Sequence[str], limit: Limit) -> pd.DataFrame:
    """Four methods from one phase 0 against four runs that each train their own, once each."""
    overrides = [f"budget.{key}={value}" for key, value in PROPORTIONS.items()]
    elapsed = {}
    for name in loops:
        command = [
            sys.executable, "-m", "experiments.vision", "-m", f"method={METHODS}", f"device={device}",
            f"phase_cache={SWEEPS[name]}", "compile=false", "wandb.mode=disabled",
            f"outputs_dir={scratch / SWEEPS[name]}", *overrides,
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        elapsed[name] = time.perf_counter() - started
        print(f"{limit.case}: {name}: {elapsed[name]:.1f} s", flush=True)
    return pd.DataFrame(
        {
            "case": "sweep of four methods, paper's proportions",
            "loop": name,
            **spread([value]),
            "over_ours": value / elapsed["shared phase"],
        }
        for name, value in elapsed.items()
    ).assign(images_per_second=None)


def table(results: pd.DataFrame) -> str:
    """Markdown: a row for each loop."""
    shown = pd.DataFrame(
        {
            "": results.case.where(~results.case.duplicated(), ""),
            "loop": results.loop,
            "seconds": known(results.seconds, "{:.2f}"),
            **between(results, "seconds", "{:.2f}"),
            "training images / s": known(results.images_per_second, "{:,.0f}"),
            "this / ours": known(results.over_ours, "{:.2f}"),
        }
    )
    return shown.to_markdown(index=False, disable_numparse=True)
