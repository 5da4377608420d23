"""What each method costs in vision: a training step beside a plain one, and a boundary.

A step is timed over 50 steps of the phase in which the method acts, with the authors' settings. On a GPU the steps are
CUDA graphs, as in a run. Units that CBP or ReDo would reset later than in the turns that are timed cost nothing here. A
boundary is the reset with its report, the weights restored before each; DASH passes over the data of the phase that
begins. Extra memory is the peak beyond the model: on a GPU as the allocator says, on a CPU that of the tensors alive at
one time. The paper's Table 1 has 0.06 s and 55 MB for FIRE, 69 s and 2,834 MB for DASH, on a GPU that it does not name.
"""

import itertools
from contextlib import ExitStack
from functools import partial
from unittest.mock import patch

import torch

import fire
from experiments.common.config import build_method, compose_domain
from experiments.common.runtime import resolve_runtime
from experiments.vision import data
from experiments.vision.config import VisionConfig
from experiments.vision.train import VisionTraining
from scripts.benchmark.cases import Case, Loop, Row, repeated
from scripts.benchmark.peak_memory import peak_of_new_storage
from scripts.benchmark.vision import SCALES, images

STEPS = 50
NOT_HERE = ("plasticity_injection",)  # of reinforcement learning
TABLE = {
    "ms": ("milliseconds", "{:,.2f}", 1),
    "this / none": ("over_first", "{:.2f}", 1),
    "extra memory, MB": ("peak_bytes", "{:,.1f}", 1e-6),
}


def cases(device: str, synthetic: bool) -> list[Case]:
    """A step with each method that acts during training, and a boundary of each that acts there."""
    kinds = {name: kind for name, kind in sorted(fire.METHODS.items()) if name not in NOT_HERE}
    during = ["none", *(name for name, kind in kinds.items() if issubclass(kind, fire.TrainingMethod))]
    at_boundary = ["none", *(name for name in kinds if name not in during)]
    return [
        Case("training step", {name: partial(steps, name, device, synthetic) for name in during}, "steps"),
        Case("boundary", {name: partial(boundary, name, device, synthetic) for name in at_boundary}, "boundaries"),
    ]


def training_of(method: str, device: str, synthetic: bool) -> VisionTraining:
    """Vision's warm start with a method, untrained, at the boundary."""
    words = [*SCALES[device], f"device={device}", f"method={method}"]
    cfg = compose_domain("vision", VisionConfig, words)
    with patch.object(data, "load", return_value=images(cfg, synthetic)):
        training = VisionTraining(cfg, resolve_runtime(cfg, compile_on_cuda="graphs"), build_method(cfg))
    training.phase = 1
    return training


def steps(method: str, device: str, synthetic: bool, _: ExitStack) -> Loop:
    """Training steps in which the method acts."""
    training = training_of(method, device, synthetic)
    training.begin_during(1)
    training.after_reset()
    training.model.train()
    size = training.cfg.budget.batch_size
    batches = itertools.cycle(training.phase_images(1)[: 20 * size].split(size))

    def step() -> None:
        training.learner.update(next(batches), training.cfg.optimizer.learning_rate)
        training.during.after_step(training.learner.optimizer)

    return milliseconds(repeated(step, STEPS, STEPS), STEPS)


def boundary(method: str, device: str, synthetic: bool, _: ExitStack) -> Loop:
    """The method's change of the network."""
    training = training_of(method, device, synthetic)
    before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}

    def restore() -> None:
        training.model.load_state_dict(before)

    def run() -> object:
        data, loss = training.upcoming() if training.method.needs_data else (None, None)
        return training.method.reset(training.network, training.initial, training.scope, data, loss).sfe

    def columns(row: Row) -> Row:
        restore()
        if device != "cuda":
            return {"peak_bytes": peak_of_new_storage(run)}
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return {"peak_bytes": torch.cuda.max_memory_allocated() - held}

    return milliseconds(Loop(run, prepare=restore, columns=columns), 1)


def milliseconds(loop: Loop, calls: int) -> Loop:
    """The loop with a column of milliseconds a call, and their range."""

    def columns(row: Row) -> Row:
        names = {"seconds": "milliseconds", "seconds_min": "milliseconds_min", "seconds_max": "milliseconds_max"}
        return {new: row[old] / calls * 1e3 for old, new in names.items()} | loop.columns(row)

    return Loop(loop.run, loop.work, loop.prepare, columns)
