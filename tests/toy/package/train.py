"""Sines: the training loop."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import fire
from experiments.common import plasticity
from experiments.common.experiment import Experiment, with_penalty
from experiments.common.metric_log import Row
from experiments.common.runtime import Runtime
from experiments.common.workspace import Workspace


class ToyTraining(Experiment):
    """A network that fits sin(3 x), then sin(5 x)."""

    x_axis = "step"

    def __init__(self, cfg: DictConfig, runtime: Runtime, method: fire.Method) -> None:
        torch.manual_seed(cfg.seed)
        width = cfg.budget.width
        network = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        super().__init__(cfg, runtime, method, network)
        network.to(runtime.device)
        self.begin_during(0)
        self.optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        self.step = 0
        self.x = torch.linspace(-1, 1, 64, device=runtime.device)[:, None]
        self.disk_bytes = 1_000_000

    def position(self) -> int:
        """Steps taken."""
        return sum(self.cfg.budget.steps[: self.phase]) + self.step

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return {
            "model": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
            "during": self.during_state(), "position": [self.phase, self.step],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue."""
        self.load_during(state["during"])
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.phase, self.step = state["position"]

    def train(self, workspace: Workspace, until_phase: int) -> None:
        """Fit."""
        for phase in range(self.phase, until_phase):
            if phase > 0 and self.step == 0:
                self.cross_boundary(workspace.log.append)
            while self.step < self.cfg.budget.steps[phase]:
                loss = self.loss(self.x)
                self.optimizer.zero_grad()
                with_penalty(loss, self.during).backward()
                self.optimizer.step()
                self.during.after_step(self.optimizer)
                self.step += 1
                if self.step % 10 == 0:
                    row = {"phase": phase, "step": self.position(), "train/loss": loss.item(), **self.during.metrics()}
                    workspace.log.append(row | self.evaluate())
                if workspace.save_due():
                    workspace.save(self.state_dict())
                    workspace.stop_if_asked()
            self.phase, self.step = phase + 1, 0

    def loss(self, x: Tensor) -> Tensor:
        """Mean squared error."""
        return (self.network(x) - torch.sin((3, 5)[min(self.phase, 1)] * x)).square().mean()

    def after_reset(self) -> None:
        """A new optimiser."""
        if self.cfg.optimizer_at_boundary == "reset":
            self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-2)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss."""
        return {"test/loss": self.loss(self.x).item()}

    @torch.no_grad()
    def plasticity(self) -> dict[str, float | int]:
        """Of the network."""
        with fire.metrics.record_activations(self.network) as activations:
            self.network(self.x)
        return plasticity.of_network(self.network, self.scope, activations[-1].values, activations)

    def sharpness_parts(self) -> tuple[nn.Module, Callable[[Any], Tensor], Sequence[Any]]:
        """All points."""
        return self.network, self.loss, [self.x]

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """The last loss."""
        return {"final": rows[-1]["test/loss"], "result": f"loss {rows[-1]['test/loss']:.4f}"}
