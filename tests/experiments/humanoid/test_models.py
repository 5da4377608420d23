"""The networks: what the paper describes, two critics as one, and what resets touch."""

import math

import pytest
import torch
from torch import nn

import fire
from experiments.common.config import build_scope, compose_domain
from experiments.humanoid import models
from experiments.humanoid.config import HumanoidConfig

OBSERVATION, ACTION = 51, 19


def agent(scale: str = "smoke", seed: int = 0) -> models.Agent:
    return models.build(
        OBSERVATION, ACTION, compose_domain("humanoid", HumanoidConfig, [f"scale={scale}"]).budget, seed
    )


class OneCritic(nn.Module):
    """A critic by itself, written down as the paper draws it."""

    def __init__(self, critics: models.Critics, member: int) -> None:
        super().__init__()
        self.state = {name: tensor[member] for name, tensor in critics.state_dict().items()}
        self.blocks = sum(name.endswith("up.weight") for name in self.state)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        x = self.linear("encoder.0", torch.cat((observations, actions), 1))
        for block in range(1, self.blocks + 1):
            inside = self.linear(f"encoder.{block}.up", self.norm(f"encoder.{block}.norm", x)).clamp(min=0)
            x = x + self.linear(f"encoder.{block}.down", inside)
        return self.linear("head", self.norm(f"encoder.{self.blocks + 1}", x))[:, 0]


def test_two_critics_as_one_are_two_critics() -> None:
    network = agent("laptop").double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    observations, actions = torch.randn(7, OBSERVATION).double(), torch.randn(7, ACTION).double()
    both = network.critic(observations, actions)
    for member in range(2):
        alone = OneCritic(network.critic, member)(observations, actions)
        torch.testing.assert_close(both[member], alone, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(both[0], both[1])


def test_networks_of_the_paper() -> None:
    network = agent("paper")
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters() if name.endswith("weight") and p.ndim > 1}
    matrices = {name: shape for name, shape in shapes.items() if shape[-2] > 1}
    assert matrices == {
        "actor.encoder.0.weight": (128, 51), "actor.encoder.1.up.weight": (512, 128),
        "actor.encoder.1.down.weight": (128, 512), "actor.mean.weight": (19, 128), "actor.log_std.weight": (19, 128),
        "critic.encoder.0.weight": (2, 70, 512), "critic.encoder.1.up.weight": (2, 512, 2048),
        "critic.encoder.1.down.weight": (2, 2048, 512), "critic.encoder.2.up.weight": (2, 512, 2048),
        "critic.encoder.2.down.weight": (2, 2048, 512), "critic.head.weight": (2, 512, 1),
    }  # fmt: skip


def test_initial_weights() -> None:
    """Orthogonal in encoders and heads, He with a normal distribution cut off at two deviations in the blocks."""
    network = agent("paper", seed=3)
    for name in ("actor.encoder.0", "actor.mean", "actor.log_std", "critic.encoder.0", "critic.head"):
        weight = network.get_submodule(name).weight.detach()
        for matrix in weight.view(-1, *weight.shape[-2:]):
            small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            torch.testing.assert_close(small @ small.T, torch.eye(len(small)), atol=1e-5, rtol=0)
    for name, fan_in in (("critic.encoder.1.up", 512), ("critic.encoder.2.down", 2048), ("actor.encoder.1.up", 128)):
        weight, std = network.get_submodule(name).weight.detach(), math.sqrt(2 / fan_in)
        assert float(weight.std()) == pytest.approx(std, rel=0.02)
        assert float(weight.abs().max()) == pytest.approx(2 * std / 0.8796, rel=0.02)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
    again, other = agent("paper", seed=3), agent("paper", seed=4)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert not torch.equal(network.actor.mean.weight, other.actor.mean.weight)
    critics = network.critic.encoder[0].weight
    assert not torch.equal(critics[0], critics[1])


def test_standard_deviation_stays_in_its_range() -> None:
    network = agent()
    with torch.no_grad():
        network.actor.log_std.weight.mul_(1e3)
        log_std = network.actor(torch.randn(64, OBSERVATION))[1]
    assert float(log_std.min()) == pytest.approx(-10, abs=1e-4)
    assert float(log_std.max()) == pytest.approx(2, abs=1e-4)
    with torch.no_grad():
        network.actor.log_std.weight.zero_()
    assert network.actor(torch.randn(1, OBSERVATION))[1].tolist()[0] == pytest.approx([-4] * ACTION)


def test_fire_projects_every_dense_kernel_and_nothing_else() -> None:
    cfg = compose_domain("humanoid", HumanoidConfig, ["scale=laptop"])
    network = agent("laptop")
    initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = fire.build("fire", solver="svd").reset(network, initial, build_scope(cfg.model.scope))
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    linear = {name for name, m in network.named_modules() if isinstance(m, nn.Linear | models.StackedLinear)}
    assert changed == {f"{name}.weight" for name in linear}
    assert report.dfi_after < 1e-6 < report.dfi_before
    for name in ("critic.encoder.1.up", "critic.head", "actor.mean"):
        module = network.get_submodule(name)
        weight = module.weight.detach().mT if isinstance(module, models.StackedLinear) else module.weight.detach()
        out, fan_in = weight.shape[-2:]
        values = torch.linalg.svdvals(weight)
        torch.testing.assert_close(values, torch.full_like(values, math.sqrt(out / fan_in)), rtol=1e-4, atol=0)


def test_injection_changes_no_output() -> None:
    cfg = compose_domain("humanoid", HumanoidConfig, ["scale=laptop"])
    network = agent("laptop")
    observations, actions = torch.randn(9, OBSERVATION), torch.randn(9, ACTION)
    outputs = (*network.actor(observations), network.critic(observations, actions))
    initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fire.build("plasticity_injection").reset(network, initial, build_scope(cfg.model.scope))
    for before, after in zip(
        outputs, (*network.actor(observations), network.critic(observations, actions)), strict=True
    ):
        assert torch.equal(before, after)
    assert cfg.model.scope.inject == ["actor.mean", "actor.log_std", "critic.head"]
    for head in cfg.model.scope.inject:
        assert isinstance(network.get_submodule(head), fire.InjectedHead)
