"""Continual vision: the training loop.

Reproduces Figure 2 (a: benchmark=warm_start, b: benchmark=continual) of the paper, section 4.1, on CIFAR-10 with
ResNet-18; final test accuracies there: warm start none .778, shrink and perturb .804, full reset .847, FIRE .829;
continual .799, .828, .847, .850 (3 seeds, scale=paper).

The learning rate follows the paper's text, a linear warm-up over the first 10 % of each phase's steps; the authors'
code counts that in epochs and, in the long phase 0 of the warm start, enters the warm-up again near its end.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.common import plasticity
from experiments.common.config import data_folder
from experiments.common.errors import UserError
from experiments.common.experiment import Experiment
from experiments.common.memory import check_network
from experiments.common.metric_log import Row
from experiments.common.progress import Progress
from experiments.common.runtime import Runtime
from experiments.common.seeding import generator, seed_everything
from experiments.common.workspace import Workspace
from experiments.vision import data, models
from experiments.vision.datasets import DATA_SETS
from experiments.vision.learner import Learner

PROBE_IMAGES = 512  # fixed training images that the plasticity metrics look at


class VisionTraining(Experiment):
    """The state of one run and the loop over its phases.

    The position (phase, epoch, batch) together with the seed determines every batch to come, so a checkpoint can be
    taken between any two steps.
    """

    x_axis = "epoch"
    no_data = no_optimizer = ""

    def __init__(self, cfg: DictConfig, runtime: Runtime, method: fire.Method) -> None:
        self.data_set = DATA_SETS[cfg.data.name]
        train, test = data.load(self.data_set, data_folder(cfg), *self.data_set.used(cfg.budget), cfg.seed)
        self.train_set, self.test_set = train.to(runtime.device), test.to(runtime.device)
        self.phases = len(cfg.benchmark.fractions)
        self.channels_last = runtime.device == "cuda"
        seed_everything(cfg.seed)
        sizes, shape = (self.data_set.classes, self.data_set.shape, cfg.budget.width), self.data_set.shape
        batch = min(cfg.budget.batch_size, len(self.train_set.labels))
        check_network(
            lambda: models.MODELS[cfg.model.name](*sizes), lambda net: net(torch.empty(batch, *shape)), runtime
        )
        model = models.build(cfg.model.name, *sizes, cfg.seed)
        super().__init__(cfg, runtime, method, model)
        if len(self.phase_images(0)) < 2:
            raise UserError(f"benchmark.fractions={list(cfg.benchmark.fractions)} leave phase 0 fewer than 2 images")
        try:
            models.activations(model.eval(), torch.zeros(1, *self.data_set.shape))
        except ValueError as error:
            raise UserError(f"model.name={cfg.model.name}: {error}") from error
        model.to(runtime.device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        self.model = model
        self.begin_during(0)
        self.learner = Learner(model, self.train_set, self.test_set, cfg, runtime)
        self.learner.begin_phase(self.during, self.optimizer_for)
        self.epoch, self.batch = 0, 0
        # Weights and Adam's moments; two checkpoints kept and one being written, in the run and in the shared phase.
        self.disk_bytes = 6 * 3 * sum(t.numel() * t.element_size() for t in self.initial.values())

    def state_dict(self) -> dict[str, Any]:
        position = [self.phase, self.epoch, self.batch]
        return {**self.learner.state_dict(), "during": self.during_state(), "position": position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.load_during(state["during"])
        self.learner.begin_phase(self.during, self.optimizer_for)
        self.learner.load_state_dict(state)
        self.phase, self.epoch, self.batch = state["position"]

    def position(self) -> int:
        """Epochs trained."""
        return sum(self.cfg.budget.epochs[: self.phase]) + self.epoch

    def train(self, workspace: Workspace, until_phase: int) -> None:
        """Train from the current position to the end of phase `until_phase - 1`."""
        for phase in range(self.phase, until_phase):
            if phase > 0 and self.epoch == 0 and self.batch == 0:
                self.cross_boundary(workspace.log.append)
            images, epochs = self.phase_images(phase), self.cfg.budget.epochs[phase]
            done = self.epoch * len(images) + self.batch * self.cfg.budget.batch_size
            with Progress(f"phase {phase}", epochs * len(images), done, "images") as progress:
                while self.epoch < epochs:
                    self.train_epoch(workspace, images, epochs, progress)
            self.phase, self.epoch = phase + 1, 0

    def phase_images(self, phase: int) -> Tensor:
        """Indices of the training images of a phase, on the device."""
        order, fraction = self.cfg.benchmark.order, self.cfg.benchmark.fractions[phase]
        return data.phase_images(order, fraction, self.train_set.labels, self.data_set.classes, self.cfg.seed)

    def after_reset(self) -> None:
        """A new optimiser, unless the run keeps it."""
        new = self.cfg.optimizer_at_boundary == "reset"
        self.learner.begin_phase(self.during, self.optimizer_for if new else None)

    def train_epoch(self, workspace: Workspace, images: Tensor, epochs: int, progress: Progress) -> None:
        """The rest of one epoch over the training images with these indices, and its row in the log."""
        cfg, size, count = self.cfg, self.cfg.budget.batch_size, len(images)
        order = torch.randperm(count, generator=generator(cfg.seed, "order", self.phase, self.epoch))
        order = images[order.to(self.runtime.device)]
        steps_per_epoch = math.ceil(count / size)
        warmup = cfg.optimizer.warmup_fraction * epochs * steps_per_epoch
        started, first = time.perf_counter(), self.batch
        self.model.train()
        for indices in order[first * size :].split(size):
            step = self.epoch * steps_per_epoch + self.batch
            self.learner.update(indices, cfg.optimizer.learning_rate * min(1.0, (step + 1) / max(warmup, 1)))
            self.during.after_step(self.learner.optimizer)
            self.batch += 1
            progress.advance(len(indices))
            if workspace.save_due() and self.batch < steps_per_epoch:
                self.save(workspace)
        totals = self.finite_totals(workspace)  # waits for the device
        rate = (count - first * size) / (time.perf_counter() - started)
        self.finish_epoch(workspace, totals | {"images": count}, rate, epochs, progress)

    def finish_epoch(
        self, workspace: Workspace, totals: dict[str, float], rate: float, epochs: int, progress: Progress
    ) -> None:
        """Log the epoch, with a test where one is due, and move the position to the next."""
        last = self.epoch + 1 == epochs
        row: Row = {
            "phase": self.phase,
            "epoch": self.position() + 1,
            "train/loss": totals["loss"] / totals["images"],
            "train/accuracy": totals["correct"] / totals["images"],
            "plasticity/grad_norm": totals["grad_norm"] / totals["steps"],
            "speed/images_per_second": rate,
            **self.during.metrics(),
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

    def evaluate(self) -> dict[str, float]:
        """Accuracy and loss on the test images at a boundary. With batch normalisation, whose running statistics are
        still those of the old weights, also the accuracy with those of the new ones on the data of the phase before;
        the next training starts with the old ones."""
        found = self.learner.test()
        parts = self.phase_images(self.phase - 1).split(self.cfg.budget.batch_size)
        with plasticity.training_statistics(self.model):
            batches = (self.train_set.batch(part, self.channels_last) for part in parts if len(part) > 1)
            if fire.refresh_batch_norm(self.model, batches):
                found["test/accuracy_refreshed"] = self.learner.test()["test/accuracy"]
        return found

    @torch.no_grad()
    def plasticity(self) -> dict[str, float | int]:
        """Plasticity of the model on a fixed probe of training images."""
        images, _ = self.train_set.batch(slice(0, PROBE_IMAGES), self.channels_last)
        with plasticity.training_statistics(self.model):
            features, activations = models.activations(self.model, images)
        return plasticity.of_network(self.model, self.scope, features, activations)

    def sharpness_parts(self) -> tuple[nn.Module, Callable[[Any], Tensor], Sequence[Any]]:
        """Some training images of the phase that begins."""
        cfg, images = self.cfg, self.phase_images(self.phase)
        chosen = torch.randperm(len(images), generator=generator(cfg.seed, "sharpness", self.phase))[: cfg.sharpness]
        parts = images[chosen.to(images.device)].split(cfg.budget.batch_size)
        batches = [self.train_set.batch(part, self.channels_last) for part in parts]
        return self.model, self.loss, batches

    def upcoming(self) -> tuple[Iterable[Any], Callable[[Any], Tensor]]:
        """The training images of the phase that begins, in an order of its own."""
        images = self.phase_images(self.phase)
        order = torch.randperm(len(images), generator=generator(self.cfg.seed, "method", self.phase))
        parts = images[order.to(images.device)].split(self.cfg.budget.batch_size)
        # Batch normalisation knows no statistics of a single image.
        batches = (self.train_set.batch(part, self.channels_last) for part in parts if len(part) > 1)
        return batches, self.loss

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss of normalised images and their labels."""
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """Final test accuracy, and its mean over the tests of the last phase."""
        tests = [row for row in rows if "test/accuracy" in row and "train/loss" in row]
        last = [row["test/accuracy"] for row in tests if row["phase"] == self.phases - 1]
        final = tests[-1]["test/accuracy"]
        return {"final": final, "mean_of_last_phase": sum(last) / len(last), "result": f"test accuracy {final:.4f}"}
