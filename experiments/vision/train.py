"""Continual vision: the training loop.

Reproduces Figure 2 (a: benchmark=warm_start, b: benchmark=continual) of the paper, section 4.1, on CIFAR-10 with
ResNet-18; final test accuracies there: warm start none .778, shrink and perturb .804, full reset .847, FIRE .829;
continual .799, .828, .847, .850 (3 seeds, scale=paper).

The learning rate follows the paper's text, a linear warm-up over the first 10 % of each phase's steps; the authors'
code counts that in epochs and, in the long phase 0 of the warm start, enters the warm-up again near its end.
"""

import logging
import math
import time
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

import fire
from experiments.common import boundary, config
from experiments.common.errors import StopSignals, UserError
from experiments.common.job import END, Job, carry_out
from experiments.common.metric_log import Row
from experiments.common.progress import Progress
from experiments.common.seeding import generator, seed_everything
from experiments.common.workspace import Workspace
from experiments.vision import data, estimate, models
from experiments.vision.learner import Learner

logger = logging.getLogger("fire")

# To be raised by whoever changes what a phase computes: it enters the identity of runs and of the shared phase.
PHASE_VERSION = 2
PHASE_0_IGNORES = ("method", "optimizer_at_boundary", "sharpness")
PROBE_IMAGES = 512  # fixed training images that the plasticity metrics look at


def run(cfg: DictConfig, stop: StopSignals) -> dict[str, Any]:
    """One run from its composed configuration: validate everything, then train what is missing."""
    check(cfg)
    method = config.build_method(cfg)
    runtime = config.resolve_runtime(cfg, compile_on_cuda="graphs")
    job = describe(cfg, runtime)
    announce(cfg, runtime)

    def prepare() -> VisionTraining:
        if cfg.scale == "paper":
            logger.info("%s", estimate.describe_cost(cfg, runtime))
        images = data.load(
            cfg.benchmark.dataset, config.data_folder(cfg), cfg.budget.train_images, cfg.budget.test_images, cfg.seed
        )
        return VisionTraining(cfg, runtime, method, *images)

    return {"run": job.name, **carry_out(job, prepare, stop)}


def check(cfg: DictConfig) -> None:
    """Raise UserError for values that cannot be trained with."""
    config.check_choices(cfg)
    budget, phases = cfg.budget, len(cfg.benchmark.fractions)
    if cfg.benchmark.dataset not in data.DATASETS:
        raise UserError(f"benchmark.dataset={cfg.benchmark.dataset} is unknown; valid: {', '.join(data.DATASETS)}")
    if cfg.model.name not in models.MODELS:
        raise UserError(f"model.name={cfg.model.name} is unknown; valid: {', '.join(models.MODELS)}")
    for key, highest in (("train_images", 50_000), ("test_images", 10_000), ("width", 4096), ("batch_size", 50_000)):
        if not 1 <= budget[key] <= highest:
            raise UserError(f"budget.{key}={budget[key]} must lie in [1, {highest}]")
    for key in ("epochs", "test_every"):
        if len(budget[key]) != phases or min(budget[key]) < 1:
            raise UserError(f"budget.{key}={list(budget[key])} must be {phases} positive numbers, one for each phase")
    fractions = list(cfg.benchmark.fractions)
    if fractions != sorted(fractions) or not 0 < fractions[0] <= fractions[-1] <= 1:
        raise UserError(f"benchmark.fractions={fractions} must rise within (0, 1]")
    if cfg.precision == "fp16":
        raise UserError("precision=fp16 needs loss scaling, which this domain has not; use bf16")
    for key in ("learning_rate", "clip_norm"):
        if not cfg.optimizer[key] > 0:
            raise UserError(f"optimizer.{key}={cfg.optimizer[key]} must be positive")
    if not 0 <= cfg.optimizer.warmup_fraction <= 1:
        raise UserError(f"optimizer.warmup_fraction={cfg.optimizer.warmup_fraction} must lie in [0, 1]")
    if round(cfg.benchmark.fractions[0] * budget.train_images) < 2:
        raise UserError(f"budget.train_images={budget.train_images} leaves fewer than 2 images for phase 0")


def describe(cfg: DictConfig, runtime: config.Runtime) -> Job:
    """Name and identity of a run, and what of it phase 0 depends on."""
    identity = config.identity_values(cfg, runtime, PHASE_VERSION)
    shared = {key: value for key, value in identity.items() if key not in PHASE_0_IGNORES}
    shared["model"] = cfg.model.name
    shared["benchmark"] = {"dataset": cfg.benchmark.dataset, "fraction": cfg.benchmark.fractions[0]}
    shared["budget"] = {**identity["budget"], "epochs": cfg.budget.epochs[0], "test_every": cfg.budget.test_every[0]}
    group, name = f"{cfg.benchmark.name}-{cfg.scale}", f"{cfg.method.name}-s{cfg.seed}"
    return Job("vision", group, name, cfg, identity, shared)


def announce(cfg: DictConfig, runtime: config.Runtime) -> None:
    """The first line: what runs, at which scale, and how to run the paper's."""
    budget = cfg.budget
    logger.info(
        "vision %s, %s seed=%d, scale=%s: %s images, %s width %d, %s epochs, %s on %s.%s",
        cfg.benchmark.name, config.method_words(cfg), cfg.seed, cfg.scale, f"{budget.train_images:,}", cfg.model.name,
        budget.width, "+".join(map(str, budget.epochs)), runtime.precision, runtime.device,
        "" if cfg.scale == "paper" else " The paper's protocol: python -m experiments.vision "
        f"benchmark={cfg.benchmark.name} {config.method_words(cfg)} scale=paper",
    )  # fmt: skip


class VisionTraining:
    """The state of one run and the loop over its phases.

    The position (phase, epoch, batch) together with the seed determines every batch to come, so a checkpoint can be
    taken between any two steps.
    """

    x_axis = "epoch"
    branch, rewinds = END, False

    def __init__(
        self, cfg: DictConfig, runtime: config.Runtime, method: fire.Method, train: data.Images, test: data.Images
    ) -> None:
        self.cfg, self.runtime, self.method = cfg, runtime, method
        self.scope = config.build_scope(cfg.model.scope)
        self.train_set, self.test_set = (
            data.Images(part.images.to(runtime.device), part.labels.to(runtime.device)) for part in (train, test)
        )
        self.phases = len(cfg.benchmark.fractions)
        self.channels_last = runtime.device == "cuda"
        seed_everything(cfg.seed)
        model = models.build(cfg.model.name, cfg.budget.width, data.CLASSES[cfg.benchmark.dataset], cfg.seed)
        boundary.check_scope(method, model, self.scope)
        with torch.no_grad(), fire.metrics.record_activations(model.eval()) as activations:
            model(torch.zeros(1, 3, 32, 32))
        if not activations:
            raise UserError(f"model.name={cfg.model.name} has no module such as nn.ReLU for the plasticity metrics")
        # The weights resets go back to: a function of the seed, so no checkpoint carries them.
        self.initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.model = model.to(runtime.device)
        if self.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.learner = Learner(self.model, self.train_set, self.test_set, cfg, runtime)
        self.phase, self.epoch, self.batch = 0, 0, 0
        # Weights and Adam's moments; two checkpoints kept and one being written, in the run and in the shared phase.
        self.disk_bytes = 6 * 3 * sum(t.numel() * t.element_size() for t in self.initial.values())

    def state_dict(self) -> dict[str, Any]:
        """All a checkpoint needs."""
        return {**self.learner.state_dict(), "position": [self.phase, self.epoch, self.batch]}

    def final_weights(self) -> None:
        """None: the weights of a run like these are quickly trained again."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.learner.load_state_dict(state)
        self.phase, self.epoch, self.batch = state["position"]

    def epochs_before(self, phase: int) -> int:
        """Epochs trained when `phase` begins."""
        return sum(self.cfg.budget.epochs[:phase])

    def train(self, workspace: Workspace, until_phase: int) -> None:
        """Train from the current position to the end of phase `until_phase - 1`."""
        for phase in range(self.phase, until_phase):
            if phase > 0 and self.epoch == 0 and self.batch == 0:
                self.cross_boundary(workspace)
            count = round(self.cfg.benchmark.fractions[phase] * len(self.train_set))
            epochs = self.cfg.budget.epochs[phase]
            done = self.epoch * count + self.batch * self.cfg.budget.batch_size
            with Progress(f"phase {phase}", epochs * count, done, "images") as progress:
                while self.epoch < epochs:
                    self.train_epoch(workspace, count, epochs, progress)
            self.phase, self.epoch = phase + 1, 0

    def cross_boundary(self, workspace: Workspace) -> None:
        """Reset the model and, as the domain does for all methods, the optimiser."""
        row: Row = {"phase": self.phase, "epoch": self.epochs_before(self.phase)}
        if before := self.sharpness():
            row["reset/sharpness_before"] = before["plasticity/sharpness"]
        row |= boundary.cross(self.method, self.model, self.initial, self.scope)
        self.learner.begin_phase(new_optimizer=self.cfg.optimizer_at_boundary == "reset")
        row |= self.learner.test() | self.plasticity() | self.sharpness()
        workspace.log.append(row)

    def train_epoch(self, workspace: Workspace, count: int, epochs: int, progress: Progress) -> None:
        """The rest of one epoch over the first `count` training images, and its row in the log."""
        cfg, size = self.cfg, self.cfg.budget.batch_size
        order = torch.randperm(count, generator=generator(cfg.seed, "order", self.phase, self.epoch))
        order = order.to(self.runtime.device)
        steps_per_epoch = math.ceil(count / size)
        warmup = cfg.optimizer.warmup_fraction * epochs * steps_per_epoch
        started, first = time.perf_counter(), self.batch
        self.model.train()
        for indices in order[first * size :].split(size):
            step = self.epoch * steps_per_epoch + self.batch
            self.learner.update(indices, cfg.optimizer.learning_rate * min(1.0, (step + 1) / max(warmup, 1)))
            self.batch += 1
            progress.advance(len(indices))
            if workspace.save_due() and self.batch < steps_per_epoch:
                self.save(workspace)
        totals = self.finite_totals(workspace)  # waits for the device
        rate = (count - first * size) / (time.perf_counter() - started)
        self.finish_epoch(workspace, count, epochs, totals, rate, progress)

    def finish_epoch(
        self,
        workspace: Workspace,
        count: int,
        epochs: int,
        totals: dict[str, float],
        rate: float,
        progress: Progress,
    ) -> None:
        """Log the epoch, with a test where one is due, and move the position to the next."""
        last = self.epoch + 1 == epochs
        row: Row = {
            "phase": self.phase,
            "epoch": self.epochs_before(self.phase) + self.epoch + 1,
            "train/loss": totals["loss"] / count,
            "train/accuracy": totals["correct"] / count,
            "plasticity/grad_norm": totals["grad_norm"] / totals["steps"],
            "speed/images_per_second": rate,
        }
        if last or (self.epoch + 1) % self.cfg.budget.test_every[self.phase] == 0:
            row |= self.learner.test()
        if last:
            row |= self.plasticity()
        workspace.log.append(row)
        shown = {"train": row["train/accuracy"]} | ({"test": row["test/accuracy"]} if "test/accuracy" in row else {})
        progress.show(f"epoch {self.epoch + 1}/{epochs}", **shown)
        self.epoch, self.batch = self.epoch + 1, 0
        self.learner.clear_totals()
        if workspace.save_due() and not last:
            self.save(workspace)

    def save(self, workspace: Workspace) -> None:
        """Checkpoint, and stop here if a signal has asked for it."""
        self.finite_totals(workspace)
        workspace.save(self.state_dict())
        workspace.stop_if_asked()

    def finite_totals(self, workspace: Workspace) -> dict[str, float]:
        """The epoch's sums as numbers.

        Raises:
            UserError: the loss or the gradient has stopped being finite; such a state is never saved.
        """
        totals = self.learner.read_totals()
        if not all(math.isfinite(total) for total in totals.values()):
            raise UserError(
                f"the loss or gradient is not finite in phase {self.phase}, epoch {self.epoch + 1}, by batch "
                f"{self.batch}; the last good checkpoint, if any, is in {workspace.path}"
            )
        return totals

    @torch.no_grad()
    def plasticity(self) -> dict[str, float | int]:
        """Plasticity of the model on a fixed probe of training images."""
        images, _ = self.train_set.batch(slice(0, PROBE_IMAGES), self.channels_last)
        with boundary.training_statistics(self.model), fire.metrics.record_activations(self.model) as activations:
            self.model(images)
        return boundary.plasticity(self.model, self.scope, activations[-1].values, activations)

    def sharpness(self) -> dict[str, float]:
        """Sharpness on a fixed sample of the data of the phase that begins; nothing where it is not asked for."""
        cfg = self.cfg
        if cfg.sharpness == 0:
            return {}
        count = round(cfg.benchmark.fractions[self.phase] * len(self.train_set))
        chosen = torch.randperm(count, generator=generator(cfg.seed, "sharpness", self.phase))[: cfg.sharpness]
        batches = list(self.train_set.batches(chosen, cfg.budget.batch_size, 0, self.channels_last))
        # The last batch may be smaller; every image counts the same.
        losses = [partial(self.loss, x, y, len(y) * len(batches) / len(chosen)) for x, y in batches]
        return boundary.sharpness(self.model, losses)

    def loss(self, images: Tensor, labels: Tensor, weight: float) -> Tensor:
        """`weight` times the mean loss of a batch, without autocast."""
        return weight * F.cross_entropy(self.model(images), labels)

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """Final test accuracy, and its mean over the tests of the last phase."""
        tests = [row["test/accuracy"] for row in rows if "test/accuracy" in row and "train/loss" in row]
        last = [
            r["test/accuracy"]
            for r in rows
            if r["phase"] == self.phases - 1 and "test/accuracy" in r and "train/loss" in r
        ]
        final = tests[-1]
        return {"final": final, "mean_of_last_phase": sum(last) / len(last), "result": f"test accuracy {final:.4f}"}
