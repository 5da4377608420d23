"""Continual pretraining: the training loop.

Reproduces Figure 3 of the paper, section 4.2: GPT-0.1B overfits WikiText-103, then goes on with OpenWebText and some
WikiText; validation losses there after 18,500 iterations, branching at 30,000: none 3.065, shrink and perturb 3.028,
full reset 3.057, FIRE 3.019 (3 seeds, scale=paper). What a run is, and when, is in `protocol`.
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.common import boundary, config
from experiments.common.distributed import Team, together
from experiments.common.errors import Interrupted, StopSignals, UserError
from experiments.common.job import carry_out
from experiments.common.metric_log import Row
from experiments.common.progress import Progress
from experiments.common.seeding import seed_everything
from experiments.common.workspace import Workspace
from experiments.language import estimate, protocol
from experiments.language.best import Best
from experiments.language.corpora import Corpus, Mixture
from experiments.language.hardware import peak_rate, preferred_attention

logger = logging.getLogger("fire")

PROBE_TOKENS = 4096  # of the first corpus's validation text, that the plasticity metrics look at
EVAL_TOKENS = 16_384  # in one uncompiled forward pass of a validation


def run(cfg: DictConfig, stop: StopSignals) -> dict[str, Any]:
    """One run from its composed configuration: validate everything, then train what is missing."""
    protocol.check(cfg)
    method = config.build_method(cfg)
    runtime = config.resolve_runtime(cfg)
    team = Team(runtime.device)
    protocol.check_split(cfg, team.size)
    first, second = team.every(lambda: protocol.load_corpora(cfg))
    job = protocol.describe(cfg, runtime, first, second, team.size)
    protocol.announce(cfg, runtime, team.size, first)

    def prepare() -> LanguageTraining:
        if cfg.scale == "paper" and team.leads:
            logger.info("%s", estimate.describe_cost(cfg, runtime, team.size))
        return LanguageTraining(cfg, runtime, method, first, second, team)

    ended = together(team, prepare, lambda prepare_all: carry_out(job, prepare_all, stop), stop)
    return {"run": job.name, **ended}


class LanguageTraining:
    """The state of one run and the loop over its two phases.

    The position (phase, iteration) together with the seed determines every batch to come, so a checkpoint can be taken
    between any two iterations.
    """

    x_axis = "iteration"
    phases = 2

    def __init__(
        self, cfg: DictConfig, runtime: config.Runtime, method: fire.Method, first: Corpus, second: Corpus, team: Team
    ) -> None:
        self.cfg, self.runtime, self.method, self.team = cfg, runtime, method, team
        self.scope = config.build_scope(cfg.model.scope)
        budget = cfg.budget
        self.mixtures = [
            Mixture(corpus, other, cfg.data.replay, budget.block) for corpus, other in ((first, None), (first, second))
        ]
        self.windows = [
            corpus.windows(budget.block, budget.eval_windows).to(runtime.device) for corpus in (first, second)
        ]
        seed_everything(cfg.seed)
        network = protocol.build_model(cfg)
        boundary.check_scope(method, network, self.scope)
        self.initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        self.model = network.to(runtime.device)
        self.compiled = runtime.compiled(self.model)
        self.called = team.parallel(self.model, self.compiled)
        self.attention = partial(preferred_attention, runtime.device, budget.block)
        self.scaler = torch.amp.GradScaler(runtime.device, enabled=runtime.precision == "fp16")
        self.optimizer = self.new_optimizer()
        self.phase, self.iteration = 0, 0
        self.origin = 0  # iterations before this phase
        self.best = Best()
        self.totals = self.new_totals()
        self.peak = peak_rate(runtime)
        self.branch, self.rewinds = cfg.checkpoint, cfg.checkpoint == protocol.BEST
        kept = [at for at in self.periodic().values() if self.rewinds or at <= self.periodic()[self.branch]]
        size = 3 * sum(p.numel() * p.element_size() for p in network.parameters())  # weights and AdamW's moments
        self.disk_bytes = (len(kept) + 1 + 6) * size

    def periodic(self) -> dict[str, int]:
        """After which iteration of phase 0 each periodic checkpoint is kept."""
        return {name: protocol.kept_at(name, self.cfg.budget.iterations[0]) for name in protocol.PERIODIC}

    def new_optimizer(self) -> torch.optim.Optimizer:
        """AdamW with empty moments; matrices decay, vectors do not."""
        parameters, decay = list(self.model.parameters()), self.cfg.optimizer.weight_decay
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        rate, betas = self.cfg.budget.learning_rate, tuple(self.cfg.optimizer.betas)
        return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)

    def new_totals(self) -> dict[str, Tensor]:
        """Sums over the iterations since the last row, kept on the device so that no iteration waits for them."""
        zero = partial(torch.zeros, (), dtype=torch.float64, device=self.runtime.device)
        self.clock, self.timed_tokens = time.perf_counter(), 0
        return {"loss": zero(), "grad_norm": zero(), "skipped": zero(), "iterations": zero()}

    def state_dict(self) -> dict[str, Any]:
        """All a checkpoint needs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "position": [self.phase, self.iteration, self.origin],
            "best": self.best.state(),
            "totals": self.totals,
        }

    def final_weights(self) -> dict[str, Any]:
        """Those of the model."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the checkpoint is of another network: {str(error).splitlines()[0]}") from error
        self.scaler.load_state_dict(state["scaler"])
        self.phase, self.iteration, self.origin = state["position"]
        self.best.load(state["best"])
        self.totals = self.new_totals()
        self.totals |= {name: total.to(self.runtime.device) for name, total in state["totals"].items()}

    def train(self, workspace: Workspace, until_phase: int) -> None:
        """Train phase 0 until the checkpoint to branch from is kept, or, from there, phase 1 to its end."""
        if until_phase > 1 and self.phase == 0:
            self.cross_boundary(workspace)
        if self.phase == 0:
            self.team.lead(lambda: self.best.reconcile(workspace.path))
        length = self.cfg.budget.iterations[self.phase]
        end = self.periodic().get(self.branch, length) if self.phase == 0 else length
        tokens = self.cfg.budget.sequences * self.cfg.budget.block
        done = self.iteration * tokens
        with Progress(f"phase {self.phase}", end * tokens, done, "tokens", shown=self.team.leads) as progress:
            while self.iteration < end and not (self.phase == 0 and self.rewinds and self.best.settled):
                self.train_iteration()
                progress.advance(tokens)
                self.finish_iteration(workspace, progress)
        if self.phase == 0:
            self.team.lead(lambda: self.best.close(workspace.path))

    def train_iteration(self) -> None:
        """One step of the optimiser on one batch, this process's share of it in `micro_batch` sequences at a time."""
        cfg, budget = self.cfg, self.cfg.budget
        rate = protocol.learning_rate(self.iteration, budget.iterations[self.phase], cfg)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.mixtures[self.phase].batch(cfg.seed, self.phase, self.iteration, budget.sequences)
        mine = self.on_device(batch).split(budget.micro_batch)[self.team.rank :: self.team.size]
        loss = torch.zeros((), device=self.runtime.device)
        for number, sequences in enumerate(mine):
            # Gradients are averaged over the processes once, in the last backward pass.
            waits = self.team.size > 1 and number + 1 < len(mine)
            with self.called.no_sync() if waits else nullcontext():
                with self.runtime.autocast, self.attention():
                    part = self.called(sequences) / len(mine)
                self.scaler.scale(part).backward()
            loss += part.detach()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), cfg.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        skipped = ~torch.isfinite(norm)  # loss scaling has left this step out
        self.totals["loss"] += loss
        self.totals["grad_norm"] += torch.where(skipped, 0.0, norm) if self.scaler.is_enabled() else norm
        self.totals["skipped"] += skipped
        self.totals["iterations"] += 1
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
        keep = [name for name, when in self.periodic().items() if when == at] if phase == 0 else []
        validates = last or bool(keep) or at % budget.eval_every[phase] == 0
        if validates or at % budget.log_every == 0:
            row = self.training_row(workspace)
            if validates:
                row |= self.evaluate()
            if last or keep:
                row |= self.plasticity()
            self.team.lead(lambda: workspace.log.append(row))
            progress.show(f"iteration {at}", **shown(row))
            self.totals = self.new_totals()
            if validates and phase == 0 and self.best.improves(row["val/loss"], at) and self.team.leads:
                self.best.hold(workspace.snapshot(self.state_dict()))
        settles = phase == 0 and self.best.settles(at, last, self.cfg.patience * budget.iterations[0])
        if keep or settles or self.team.agree(workspace.save_due()):
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
        if self.phase == 0:
            self.team.lead(lambda: self.best.write(workspace, self.state_dict(), keep, self.iteration))
        else:
            self.team.lead(lambda: workspace.save(self.state_dict(), keep))
        self.clock += time.perf_counter() - started  # which does not count as training
        if (signal := self.team.agree(workspace.signal)) is not None:
            raise Interrupted(signal)

    def finite_totals(self, workspace: Workspace) -> dict[str, float]:
        """Means over the iterations since the last row, in all processes.

        Raises:
            UserError: the loss, or without loss scaling the gradient, is not finite; such a state is never saved.
        """
        totals = self.team.sum(torch.stack(list(self.totals.values()))).tolist()
        loss, norm, skipped, iterations = totals
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise UserError(
                f"the loss or gradient is not finite in phase {self.phase}, by iteration {self.iteration}; the last "
                f"good checkpoint, if any, is in {workspace.path}"
            )
        taken = max(iterations - skipped, 1)
        return {"loss": loss / max(iterations, 1), "grad_norm": norm / taken, "skipped": skipped / self.team.size}

    def training_row(self, workspace: Workspace) -> Row:
        """What the iterations since the last row have been like."""
        means = self.finite_totals(workspace)  # waits for the device
        rate = self.timed_tokens / (time.perf_counter() - self.clock)
        row: Row = {
            "phase": self.phase,
            "iteration": self.origin + self.iteration,
            "train/loss": means["loss"],
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "plasticity/grad_norm": means["grad_norm"],
            "speed/tokens_per_second": rate,
        }
        if self.scaler.is_enabled():
            row["train/skipped_steps"] = means["skipped"]
        if self.peak is not None:
            row["speed/mfu"] = self.model.operations_per_token() * rate / (self.peak * self.team.size)
        return row

    def cross_boundary(self, workspace: Workspace) -> None:
        """Go over to phase 1: reset the model and, as the domain does for all methods, the optimiser."""
        self.phase, self.origin, self.iteration = 1, self.iteration, 0
        row: Row = {"phase": 1, "iteration": self.origin}
        if before := self.sharpness():
            row["reset/sharpness_before"] = before["plasticity/sharpness"]
        row |= boundary.cross(self.method, self.model, self.initial, self.scope)
        self.team.copy_from_leader([*self.model.parameters(), *self.model.buffers()])
        if self.cfg.optimizer_at_boundary == "reset":
            self.optimizer = self.new_optimizer()
        row |= self.evaluate() | self.plasticity() | self.sharpness()
        self.team.lead(lambda: workspace.log.append(row))
        self.totals = self.new_totals()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Validation loss on the corpora of the phase, apart and in the proportions of its batches."""
        first = self.validation_loss(self.windows[0])
        if self.phase == 0:
            return {"val/loss": first, "val/loss_first": first}
        second, replay = self.validation_loss(self.windows[1]), self.cfg.data.replay
        return {"val/loss": replay * first + (1 - replay) * second, "val/loss_first": first, "val/loss_second": second}

    def validation_loss(self, windows: Tensor) -> float:
        """Mean loss of a token in fixed windows, (count, block + 1), shared out among the processes."""
        total = torch.zeros((), dtype=torch.float64, device=self.runtime.device)
        for call, part in self.validation_parts(windows)[self.team.rank :: self.team.size]:
            with self.runtime.autocast, self.attention():
                total += call(part.long()).double() * len(part)
        return float(self.team.sum(total)) / len(windows)

    def validation_parts(self, windows: Tensor) -> list[tuple[Callable[..., Tensor], Tensor]]:
        """Windows cut into forward passes, each with what is called. A compiled network gets as many at once as in
        training, because it is compiled again for every other shape; what is left over goes through the eager one."""
        size, whole = self.cfg.budget.micro_batch, 0
        if self.runtime.compile == "true":
            whole = len(windows) // size * size
        parts = [(self.compiled, windows[at : at + size]) for at in range(0, whole, size)]
        rest = max(1, EVAL_TOKENS // self.cfg.budget.block)
        return parts + [(self.model, windows[at : at + rest]) for at in range(whole, len(windows), rest)]

    @torch.no_grad()
    def plasticity(self) -> dict[str, float | int]:
        """Plasticity of the model on a fixed probe of the first corpus's validation text."""
        probe = self.windows[0][: max(1, PROBE_TOKENS // self.cfg.budget.block), :-1].long()
        with fire.metrics.record_activations(self.model) as activations:
            features = self.model.features(probe)
        return boundary.plasticity(self.model, self.scope, features.flatten(0, 1), activations)

    def sharpness(self) -> dict[str, float]:
        """Sharpness on a fixed sample of the data of the phase that begins; nothing where it is not asked for."""
        cfg, budget = self.cfg, self.cfg.budget
        if cfg.sharpness == 0:
            return {}
        sample = self.on_device(self.mixtures[1].batch(cfg.seed, 1, 0, cfg.sharpness, stream="sharpness"))
        parts = sample.split(budget.micro_batch)
        # The last part may be smaller; every sequence counts the same.
        losses = [partial(self.weighted_loss, part, len(part) * len(parts) / len(sample)) for part in parts]
        return boundary.sharpness(self.model, losses)

    def weighted_loss(self, sequences: Tensor, weight: float) -> Tensor:
        """`weight` times the mean loss of a batch, without autocast."""
        return weight * self.model(sequences)

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


def shown(row: Row) -> dict[str, float]:
    """What of a row the progress line tells."""
    names = {"train": "train/loss", "val": "val/loss", "mfu": "speed/mfu"}
    return {short: row[name] for short, name in names.items() if name in row}
