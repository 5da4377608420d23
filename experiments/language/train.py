"""Continual pretraining: the training loop.

Reproduces Figure 3 of the paper, section 4.2: GPT-0.1B overfits WikiText-103, then trains on OpenWebText and some
WikiText; validation losses there after 18,500 iterations, branching at 30,000: none 3.065, shrink and perturb 3.028,
full reset 3.057, FIRE 3.019 (3 seeds, scale=paper).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fire
from experiments.common import plasticity
from experiments.common.errors import Interrupted, UserError
from experiments.common.experiment import Experiment, with_penalty
from experiments.common.memory import check_network
from experiments.common.metric_log import Row
from experiments.common.progress import Progress
from experiments.common.runtime import Runtime
from experiments.common.seeding import seed_everything
from experiments.common.workspace import Workspace
from experiments.language import best, model
from experiments.language.best import BEST, Best
from experiments.language.corpora import Corpus, Mixture
from experiments.language.distributed import ProcessGroup
from experiments.language.model import peak_rate, preferred_attention

PROBE_TOKENS = 4096  # of the first corpus's validation text, that the plasticity metrics look at
EVAL_TOKENS = 16_384  # in one uncompiled forward pass


class LanguageTraining(Experiment):
    """The state of one run and the loop over its two phases.

    The position (phase, iteration) together with the seed determines every batch to come, so a checkpoint can be taken
    between any two iterations. All processes of `group` train; only the main process uses the workspace.
    """

    x_axis = "iteration"
    no_data = "it passes over all data to come before the training, which for a corpus takes as long as the training"
    no_optimizer = ""

    def __init__(
        self, cfg: DictConfig, runtime: Runtime, method: fire.Method, first: Corpus, second: Corpus, group: ProcessGroup
    ) -> None:
        self.group, budget, self.alone = group, cfg.budget, group.world_size == 1
        self.mixtures = [Mixture(first, other, cfg.data.replay, budget.block) for other in (None, second)]
        windows = [corpus.windows(budget.block, budget.eval_windows) for corpus in (first, second)]
        self.windows = [each.to(runtime.device) for each in windows]
        seed_everything(cfg.seed)
        sequences = (min(budget.micro_batch, budget.sequences), budget.block + 1)
        group.on_every_process(
            lambda: check_network(
                lambda: model.construct(cfg), lambda net: net(torch.empty(sequences, dtype=torch.long)), runtime
            )
        )
        self.model = model.build(cfg)
        super().__init__(cfg, runtime, method, self.model)
        self.model.to(runtime.device)
        self.compiled = runtime.compiled(self.model)
        self.called: Any = DistributedDataParallel(self.compiled) if group.world_size > 1 else self.compiled
        self.scaler = model.new_scaler(runtime)
        self.begin_during(0)
        self.new_optimizer()
        self.iteration, self.origin = 0, 0  # of this phase, and where it began
        self.rate = 0.0  # AdamW's learning rate in the last iteration
        self.best = Best()
        self.totals = self.new_totals()
        self.peak = peak_rate(runtime)
        self.branch, self.rewinds = cfg.checkpoint, cfg.checkpoint == BEST
        # After which iteration of phase 0 each periodic checkpoint is kept.
        self.periodic = {name: best.kept_at(name, budget.iterations[0]) for name in best.PERIODIC}
        kept = [at for at in self.periodic.values() if self.rewinds or at <= self.periodic[self.branch]]
        size = 3 * sum(p.numel() * p.element_size() for p in self.model.parameters())  # weights and AdamW's moments
        self.disk_bytes = (len(kept) + 1 + 6) * size

    def new_optimizer(self) -> None:
        """An optimiser with empty moments: AdamW, or what the method trains with."""
        self.optimizer = self.optimizer_for(model.new_optimizer(self.model, self.cfg))
        rate = self.cfg.budget.learning_rate
        # How many times AdamW's the learning rate of each group is.
        self.rate_factors = [group["lr"] / rate for group in self.optimizer.param_groups]

    def new_totals(self) -> Tensor:
        """Sums over the iterations since the last row: loss, norm of the gradient, skipped steps, iterations; kept on
        the device, so that no iteration waits for them."""
        self.clock, self.timed_tokens = time.perf_counter(), 0
        return torch.zeros(4, dtype=torch.float64, device=self.runtime.device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "during": self.during_state(),
            "position": [self.phase, self.iteration, self.origin],
            "best": self.best.state(),
            "totals": self.totals,
        }

    def final_weights(self) -> dict[str, Any]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.group.announce("load_state_dict", state)
        self.load_during(state["during"])
        self.new_optimizer()
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the checkpoint is of another network: {str(error).splitlines()[0]}") from error
        self.scaler.load_state_dict(state["scaler"])
        self.phase, self.iteration, self.origin = state["position"]
        self.best.load(state["best"])
        self.totals = self.new_totals().copy_(state["totals"])

    def position(self) -> int:
        return self.origin + self.iteration

    def train(self, workspace: Workspace, until_phase: int) -> None:
        """Train phase 0 until the checkpoint to branch from is kept, or, from there, phase 1 to its end."""
        self.group.announce("train", SimpleNamespace(path="the main process's directory"), until_phase)
        if until_phase > 1 and self.phase == 0:
            self.phase, self.origin, self.iteration = 1, self.iteration, 0
            self.cross_boundary(lambda row: self.group.on_main_process(lambda: workspace.log.append(row)))
            self.totals = self.new_totals()
        if self.phase == 0:
            self.group.on_main_process(lambda: self.best.reconcile(workspace.path))
        length = self.cfg.budget.iterations[self.phase]
        end = self.periodic.get(self.branch, length) if self.phase == 0 else length
        tokens, shown = self.cfg.budget.sequences * self.cfg.budget.block, self.group.is_main_process
        with Progress(f"phase {self.phase}", end * tokens, self.iteration * tokens, "tokens", shown) as progress:
            while self.iteration < end and not (self.phase == 0 and self.rewinds and self.best.settled):
                self.train_iteration()
                progress.advance(tokens)
                self.finish_iteration(workspace, progress)
        if self.phase == 0:
            self.group.on_main_process(lambda: self.best.close(workspace.path))

    def after_reset(self) -> None:
        """The same weights in all processes, and a new optimiser, unless the run keeps it. Loss scaling is new in any
        case: the authors start phase 1 in another process, from a checkpoint without it."""
        self.group.broadcast_([*self.model.parameters(), *self.model.buffers()])
        if self.cfg.optimizer_at_boundary == "reset":
            self.new_optimizer()
        self.scaler = model.new_scaler(self.runtime)

    def train_iteration(self) -> None:
        """One step of the optimiser on one batch, this process's share of it in `micro_batch` sequences at a time."""
        cfg, budget = self.cfg, self.cfg.budget
        self.rate = model.learning_rate(self.iteration, budget.iterations[self.phase], cfg)
        for group, factor in zip(self.optimizer.param_groups, self.rate_factors, strict=True):
            group["lr"] = self.rate * factor
        batch = self.mixtures[self.phase].batch(cfg.seed, self.phase, self.iteration, budget.sequences)
        mine = self.on_device(batch).split(budget.micro_batch)[self.group.rank :: self.group.world_size]
        total = torch.zeros((), device=self.runtime.device)
        for number, sequences in enumerate(mine):
            # Gradients are averaged over the processes once, in the last backward pass.
            waits = self.group.world_size > 1 and number + 1 < len(mine)
            with self.called.no_sync() if waits else nullcontext():
                with self.runtime.autocast, preferred_attention(self.runtime.device, budget.block):
                    loss = self.called(sequences)
                self.scaler.scale(with_penalty(loss, self.during) / len(mine)).backward()
            total += loss.detach() / len(mine)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), cfg.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = ~torch.isfinite(norm)  # loss scaling has left this step out
        if self.method.acts_in(self.phase) and not (self.scaler.is_enabled() and bool(skipped)):
            if self.during.is_due():  # all processes act alike on the same measurements
                for measured in self.during.measured():
                    self.group.mean_(measured)
            self.during.after_step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        norm = torch.where(skipped, 0.0, norm) if self.scaler.is_enabled() else norm
        self.totals += torch.stack([total, norm, skipped.float(), torch.ones_like(total)])
        self.timed_tokens += budget.sequences * budget.block
        self.iteration += 1

    def on_device(self, batch: Tensor) -> Tensor:
        """A batch as int64 on the training device, without waiting for it."""
        if self.runtime.device == "cuda":
            batch = batch.pin_memory().to("cuda", non_blocking=True)
        return batch.long()

    def finish_iteration(self, workspace: Workspace, progress: Progress) -> None:
        """Validate, log and keep checkpoints where that is due after this iteration."""
        budget, phase, at = self.cfg.budget, self.phase, self.iteration
        last = at == budget.iterations[phase]
        keep = [name for name, when in self.periodic.items() if when == at] if phase == 0 else []
        validates = last or bool(keep) or at % budget.eval_every[phase] == 0
        if validates or at % budget.log_every == 0:
            row = self.training_row(workspace)
            if validates:
                row |= self.evaluate()
            if last or keep:
                row |= self.plasticity()
            self.group.on_main_process(lambda: workspace.log.append(row))
            names = {"train": "train/loss", "val": "val/loss", "mfu": "speed/mfu"}
            progress.show(f"iteration {at}", **{short: row[name] for short, name in names.items() if name in row})
            self.totals = self.new_totals()
            if validates and phase == 0 and self.best.improves(row["val/loss"], at) and self.group.is_main_process:
                self.best.held = workspace.snapshot(self.state_dict())
        settles = phase == 0 and self.best.settles(at, last, self.cfg.patience * budget.iterations[0])
        if keep or settles or self.group.on_main_process(lambda: workspace.save_due()):
            self.save(workspace, keep, settles)

    def save(self, workspace: Workspace, keep: list[str], settles: bool) -> None:
        """Checkpoint, and stop here if a signal has asked for it.

        Args:
            keep: names to keep it under.
            settles: the best so far of phase 0 is now its best.
        """
        self.finite_totals(workspace)
        started = time.perf_counter()
        self.best.settled = self.best.settled or settles
        self.group.on_main_process(lambda: self.best.write(workspace, self.state_dict(), keep, self.iteration))
        self.clock += time.perf_counter() - started  # which does not count as training
        if (signal := self.group.on_main_process(lambda: workspace.signal)) is not None:
            raise Interrupted(signal)

    def finite_totals(self, workspace: Workspace) -> list[float]:
        """The totals, summed over all processes; waits for the device.

        Raises:
            UserError: the loss, or without loss scaling the gradient, is not finite; such a state is never saved.
        """
        totals = self.totals.clone()
        self.group.sum_(totals)
        if not torch.isfinite(totals).all():
            raise UserError(
                f"the loss or gradient is not finite in phase {self.phase}, by iteration {self.iteration}; the last "
                f"good checkpoint, if any, is in {workspace.path}"
            )
        return totals.tolist()

    def training_row(self, workspace: Workspace) -> Row:
        """What the iterations since the last row have been like."""
        loss, norm, skipped, iterations = self.finite_totals(workspace)
        rate = self.timed_tokens / (time.perf_counter() - self.clock)
        row: Row = {
            "phase": self.phase,
            "iteration": self.position(),
            "train/loss": loss / iterations,
            "train/learning_rate": self.rate,
            "plasticity/grad_norm": norm / max(iterations - skipped, 1),
            "speed/tokens_per_second": rate,
            **self.during.metrics(),
        }
        if self.scaler.is_enabled():
            row["train/skipped_steps"] = skipped / self.group.world_size
        if self.peak is not None:
            row["speed/mfu"] = self.model.operations_per_token() * rate / (self.peak * self.group.world_size)
        return row

    def evaluate(self) -> dict[str, float]:
        """Validation loss on the corpora of the phase, apart and in the proportions of its batches."""
        first = self.validation_loss(self.windows[0])
        if self.phase == 0:
            return {"val/loss": first, "val/loss_first": first}
        second, replay = self.validation_loss(self.windows[1]), self.cfg.data.replay
        return {"val/loss": replay * first + (1 - replay) * second, "val/loss_first": first, "val/loss_second": second}

    @torch.no_grad()
    def validation_loss(self, windows: Tensor) -> float:
        """Mean loss of a token in windows, (count, block + 1), which the processes share out.

        A compiled network takes as many windows at once as in training, because it is compiled again for every other
        shape; those that are left over go through the network itself.
        """
        size, block = self.cfg.budget.micro_batch, self.cfg.budget.block
        whole = len(windows) // size * size if self.runtime.compile == "true" else 0
        rest = max(1, EVAL_TOKENS // block)
        parts = [(self.compiled, windows[at : at + size]) for at in range(0, whole, size)]
        parts += [(self.model, windows[at : at + rest]) for at in range(whole, len(windows), rest)]
        total = torch.zeros((), dtype=torch.float64, device=windows.device)
        for call, part in parts[self.group.rank :: self.group.world_size]:
            with self.runtime.autocast, preferred_attention(self.runtime.device, block):
                total += call(part.long()).double() * len(part)
        self.group.sum_(total)
        return float(total) / len(windows)

    @torch.no_grad()
    def plasticity(self) -> dict[str, float | int]:
        """Plasticity of the model on a fixed probe of the first corpus's validation text."""
        probe = self.windows[0][: max(1, PROBE_TOKENS // self.cfg.budget.block), :-1].long()
        with fire.metrics.record_activations(self.model) as activations:
            features = self.model.features(probe)
        return plasticity.of_network(self.model, self.scope, features.flatten(0, 1), activations)

    def sharpness_parts(self) -> tuple[nn.Module, Callable[[Any], Tensor], Sequence[Any]]:
        """A fixed sample of the data of the phase that begins."""
        sample = self.on_device(self.mixtures[1].batch(self.cfg.seed, 1, 0, self.cfg.sharpness, stream="sharpness"))
        return self.model, self.model, sample.split(self.cfg.budget.micro_batch)

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """Final validation losses, and the mean over the validations of phase 1."""
        after = [row for row in rows if row["phase"] == 1 and "val/loss" in row and "train/loss" in row]
        final = after[-1]
        return {
            "final": final["val/loss"],
            "final_first": final["val/loss_first"],
            "final_second": final["val/loss_second"],
            "mean_of_last_phase": sum(row["val/loss"] for row in after) / len(after),
            "result": f"validation loss {final['val/loss']:.4f}",
        }
