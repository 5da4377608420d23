"""An optimiser that forgets what was reset goes on as a new one does."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fire

Make = Callable[[list[Tensor]], torch.optim.Optimizer]


class ScheduleFreeSGD(torch.optim.Optimizer):
    """With the states of facebookresearch/schedule_free's SGD: `z` beside the averaged weights."""

    def __init__(self, params: list[Tensor], lr: float = 0.1, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                z.sub_(p.grad, alpha=group["lr"])
                p.lerp_(z, 1 - group["momentum"])


OPTIMIZERS: dict[str, Make] = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "amsgrad, foreach": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True, foreach=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, 1e-2),
    "radam": lambda p: torch.optim.RAdam(p, 1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, 1e-2),
    "sgd": lambda p: torch.optim.SGD(p, 1e-2),
    "momentum": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, nesterov=True),
    "dampening": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, dampening=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "schedule-free": ScheduleFreeSGD,
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["muon"] = lambda p: torch.optim.Muon([x for x in p if x.ndim == 2], 1e-2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_goes_on_as_a_new_one(name: str) -> None:
    make = OPTIMIZERS[name]
    model = network()
    initial = copy.deepcopy(model.state_dict())
    optimizer = make(list(model.parameters()))
    train(model, optimizer, 5)
    report = fire.FullReset().reset(model, initial)
    places = {id(v) for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)}
    matrices_only = name == "muon"
    assert fire.reset_state(optimizer, report) == (2 if matrices_only else 4)
    now = {id(v) for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)}
    assert now == places if name != "dampening" else not now  # in place
    train(model, optimizer, 5)
    fresh = network()
    train(fresh, make(list(fresh.parameters())), 5)
    for ours, new in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, new)


def test_only_what_was_changed_is_forgotten() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer, 3)
    kept = copy.deepcopy(optimizer.state[model[2].weight])
    assert fire.reset_state(optimizer, fire.fire_(model, include=["0"])) == 1
    assert not optimizer.state[model[0].weight]["exp_avg"].any()
    assert optimizer.state[model[0].weight]["step"] == 0
    assert optimizer.state[model[0].bias]["exp_avg"].any()
    assert all(torch.equal(kept[key], value) for key, value in optimizer.state[model[2].weight].items())
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_unknown_states_are_refused_before_anything_is_forgotten() -> None:
    model = network()
    optimizer = torch.optim.Adagrad(model.parameters())
    train(model, optimizer, 3)
    before = copy.deepcopy(optimizer.state_dict())
    report = fire.fire_(model)
    with pytest.raises(ValueError, match="Adagrad keeps 'sum', whose first value is not known; make a new optimiser"):
        fire.reset_state(optimizer, report)
    assert str(optimizer.state_dict()) == str(before)
    with pytest.raises(ValueError, match="SGD has none of the parameters that fire has changed"):
        fire.reset_state(torch.optim.SGD(network().parameters()), report)
