"""A step of training and the test pass, eager, compiled or as CUDA graphs.

With compile=graphs the host does three things a step: it copies the indices of the batch, sets the learning rate and
replays one graph. The graph gathers and normalises the images and does forward, backward, clipping, Adam and sums.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.common.cuda_graphs import UpdateGraphs
from experiments.common.experiment import with_penalty
from experiments.common.runtime import Runtime
from experiments.vision.data import Images

EVAL_BATCH = {"cpu": 250, "cuda": 2000}  # 250 images fit a CPU's cache, 2000 fill a GPU
TOTALS = ("loss", "correct", "grad_norm", "steps")  # sums over the steps of one epoch
Network = Callable[[Tensor], Tensor]
OptimizerFor = Callable[[torch.optim.Optimizer], torch.optim.Optimizer]


def objective(network: Network, images: Images, indices: Tensor, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Mean loss of the images with these indices, (batch,), and how many of them are classified correctly."""
    batch, labels = images.batch(indices, channels_last=runtime.device == "cuda")
    with runtime.autocast:
        logits = network(batch)
    loss = F.cross_entropy(logits.float(), labels)
    return loss, (logits.detach().argmax(1) == labels).sum()


class Learner:
    """The network, its optimiser and the sums of the epoch.

    Attributes:
        model: the network.
        optimizer: Adam, or what the method trains with.
        totals: the epoch's sums, scalars in float64, kept on the device so that no step waits for them.
    """

    def __init__(self, model: nn.Module, train_set: Images, test_set: Images, cfg: DictConfig, runtime: Runtime):
        self.model, self.train_set, self.test_set, self.runtime = model, train_set, test_set, runtime
        self._settings, self._size = cfg.optimizer, cfg.budget.batch_size
        self._captured = runtime.compile == "graphs"
        self._network: Network = runtime.compiled(model) if runtime.compile == "true" else model
        # Compiled for one shape, without torch.compile's CUDA graphs: the whole step is captured here.
        self._objective = torch.compile(objective, dynamic=False) if self._captured else objective
        self.totals, self._tested = (
            {name: torch.zeros((), dtype=torch.float64, device=runtime.device) for name in names}
            for names in (TOTALS, ("correct", "loss"))
        )
        self._graphs, self._test_graphs = UpdateGraphs(), UpdateGraphs()
        self.begin_phase(fire.During(), lambda adam: adam)

    def begin_phase(self, during: fire.During, optimizer_for: OptimizerFor | None = None) -> None:
        """Prepare for a phase.

        Args:
            during: what the method does during training.
            optimizer_for: the new optimiser, given a new Adam; None: the optimiser stays, with its moments.
        """
        self._during = during
        if optimizer_for is not None:
            rate, parameters = self._settings.learning_rate, self.model.parameters()
            self.optimizer = optimizer_for(torch.optim.Adam(parameters, rate, fused=True, capturable=self._captured))
            # How many times Adam's the learning rate of each group is.
            self._factors = [group["lr"] / rate for group in self.optimizer.param_groups]
            self._rates_in_tensors()
        # Also where the optimiser is kept: no other phase has the size of this one's last batch, or uses its graph.
        self._graphs.forget()

    def _rates_in_tensors(self) -> None:
        """A graph repeats the Python numbers it was captured with; a tensor is read at every replay."""
        if self._captured:
            for group in self.optimizer.param_groups:
                group.update(lr=torch.zeros((), device=self.runtime.device), capturable=True)

    def read_totals(self) -> dict[str, float]:
        """The epoch's sums so far; waits for the device."""
        return dict(zip(TOTALS, torch.stack(list(self.totals.values())).tolist(), strict=True))

    def clear_totals(self) -> None:
        """Set the sums to zero, for a new epoch."""
        for total in self.totals.values():
            total.zero_()

    def update(self, indices: Tensor, rate: float) -> None:
        """One step on the training images with these indices, (batch,) on the device, at a learning rate; does not wait
        for the device."""
        for group, factor in zip(self.optimizer.param_groups, self._factors, strict=True):
            if self._captured:
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor
        if self._captured:
            self._graphs.run(self._update, [indices], self._changed, [self.optimizer])
        else:
            self._update([indices])

    def _changed(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers(), *self.totals.values(), *self._during.measured()]

    def _update(self, given: Sequence[Tensor]) -> None:
        (indices,) = given
        # The smaller last batch is one step of an epoch; compiling for its shape would take another 10 to 20 s.
        full = len(indices) == self._size
        network, compute = (self._network, self._objective) if full else (self.model, objective)
        loss, correct = compute(network, self.train_set, indices, self.runtime)
        self.optimizer.zero_grad(set_to_none=True)
        with_penalty(loss, self._during).backward()
        # Adam's grad_scale would save little: its kernel then writes the scaled gradients back, too.
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.clip_norm)
        self.optimizer.step()
        self.totals["loss"] += loss.detach() * len(indices)
        self.totals["correct"] += correct
        self.totals["grad_norm"] += norm
        self.totals["steps"] += 1

    @torch.no_grad()
    def test(self) -> dict[str, float]:
        """Accuracy and loss on the test images; waits for the device once."""
        self.model.eval()
        for total in self._tested.values():
            total.zero_()
        everything = torch.arange(len(self.test_set), device=self.runtime.device)
        for indices in everything.split(EVAL_BATCH[self.runtime.device]):
            if self._captured:
                self._test_graphs.run(self._test, [indices], lambda: list(self._tested.values()), [])
            else:
                self._test([indices])
        correct, loss = torch.stack(list(self._tested.values())).tolist()
        return {"test/accuracy": correct / len(self.test_set), "test/loss": loss / len(self.test_set)}

    def _test(self, given: Sequence[Tensor]) -> None:
        # Captured but not compiled: compiling takes 10 to 20 s, more than about 120 tests of a run would win back.
        # In tests channels_last is 20 % faster on the CPU as well; in training it is not.
        images, labels = self.test_set.batch(given[0], channels_last=True)
        with self.runtime.autocast:
            logits = self.model(images)
        self._tested["correct"] += (logits.argmax(1) == labels).sum()
        self._tested["loss"] += F.cross_entropy(logits.float(), labels, reduction="sum")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = float(group["lr"])  # a tensor where steps are captured
        return {"model": self.model.state_dict(), "optimizer": optimizer, "totals": self.totals}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._rates_in_tensors()
        for name, total in self.totals.items():
            total.copy_(state["totals"][name])
        self._graphs.forget()
