"""Methods that act while a network trains: against plain formulas, captured, compiled, and across checkpoints."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fire
from tests.fire.test_methods import initial_of, perturbed
from tests.tape import Tape, launches

PAIR = {"activation": {"incoming": "first", "outgoing": ["second"]}}


class MLP(nn.Module):
    """One hidden layer of 6 units, on (batch, 5) or tokens (batch, tokens, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.activation, self.second = nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))


class ConvNet(nn.Module):
    """Two convolutions with batch norm; a Linear reads the second's 6 channels of 2 x 2 each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU()
        self.flatten, self.head = nn.Flatten(), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu1(self.bn1(self.conv1(x)))
        return self.head(self.flatten(self.relu2(self.bn2(self.conv2(hidden)))))


CONVS = {
    "relu1": {"incoming": "conv1", "norm": "bn1", "outgoing": ["conv2"]},
    "relu2": {"incoming": "conv2", "norm": "bn2", "outgoing": ["head"]},
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict, tuple[int, ...]]] = {
    "mlp": (MLP, PAIR, (16, 5)),
    "tokens": (MLP, PAIR, (4, 7, 5)),
    "conv": (ConvNet, CONVS, (8, 2, 5, 5)),
}


def network(kind: str) -> tuple[nn.Module, dict[str, Tensor], fire.Scope, Tensor]:
    """A network away from its initial weights, those, its scope and a batch; in float64."""
    make, units, shape = NETWORKS[kind]
    torch.manual_seed(0)
    model = make().double()
    initial = initial_of(model)
    return perturbed(model), initial, fire.Scope(units=units), torch.randn(shape, dtype=torch.float64)


def trained(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimiser."""
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", NETWORKS)
def test_l2_init_is_the_plain_formula(kind: str) -> None:
    model, initial, scope, _ = network(kind)
    during = fire.build("l2_init", coefficient=0.3).during(model, initial, scope)
    plain = 0.15 * sum((p - initial[name]).square().sum() for name, p in model.named_parameters())
    expected = torch.autograd.grad(plain, list(model.parameters()))
    penalty = during.penalty()
    assert penalty is not None
    assert penalty.item() == pytest.approx(plain.item(), rel=1e-12)
    assert during.metrics() == {"method/penalty": pytest.approx(plain.item(), rel=1e-12)}
    for gradient, right in zip(torch.autograd.grad(2 * penalty, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(gradient, 2 * right, rtol=1e-12, atol=0)
    parameter = next(model.parameters())  # its Hessian is the coefficient times I
    (slope,) = torch.autograd.grad(during.penalty(), [parameter], create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), [parameter])
    torch.testing.assert_close(curvature, torch.full_like(parameter, 0.3))


def test_l2_init_counts_tied_weights_once_and_frozen_ones_never() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False))
    model[1].weight = model[0].weight
    initial = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    during = fire.L2Init(2.0).during(nn.Sequential(model)[0], initial, fire.Scope())
    parameters = (model[0].weight, model[0].bias, model[1].bias)
    assert during.penalty().item() == pytest.approx(sum(p.square().sum() for p in parameters).item(), rel=1e-6)


def test_l2_init_takes_few_operations() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(20)))
    during = fire.L2Init(0.1).during(model, initial_of(perturbed(copy.deepcopy(model))), fire.Scope())
    counted = launches(lambda: torch.autograd.grad(during.penalty(), list(model.parameters())))
    assert sum(count for name, count in counted.items() if "foreach" in name) == 4, counted
    assert sum(counted.values()) < 20  # of 40 parameters


def test_l2_init_captured() -> None:
    """The captured penalty and its gradient are of the weights at the replay."""
    model, initial, scope, _ = network("mlp")
    during = fire.L2Init(0.3).during(model, initial, scope)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with Tape() as tape:
        during.penalty().backward()
    perturbed(model)
    for p in model.parameters():
        p.grad.zero_()
    tape.replay()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, 0.3 * (p.detach() - initial[name]))


@pytest.mark.parametrize("method", ["redo", "cbp", "snr"])
def test_compiled(method: str) -> None:
    """Hooks and penalty in compiled code do what they do outside of it."""
    model, initial, scope, x = network("mlp")
    plain = copy.deepcopy(model)
    resets, plain_resets = (fire.build(method).during(m, initial, scope) for m in (model, plain))
    l2, plain_l2 = (fire.L2Init(0.3).during(m, initial, scope) for m in (model, plain))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss = torch.compile(lambda x: model(x).square().mean() + l2.penalty(), backend="aot_eager", fullgraph=True)
    for batch in (x, 2 * x):
        compiled(batch).sum()
        plain(batch)
        for measured, right in zip(resets.measured(), plain_resets.measured(), strict=True):
            torch.testing.assert_close(measured, right)
        model.zero_grad()
        plain.zero_grad()
        loss(batch).backward()
        (plain(batch).square().mean() + plain_l2.penalty()).backward()
        for p, right in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, right.grad)


@pytest.mark.parametrize("method", [fire.ReDo(period=1), fire.ContinualBackprop(), fire.SelfNormalizedResets(period=1)])
def test_hooks_that_compiled_code_does_not_know_are_an_error(method: fire.Method) -> None:
    torch.compiler.reset()
    model, initial, scope, x = network("mlp")
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    during = method.during(compiled, initial, scope)
    compiled(x)
    with pytest.raises(RuntimeError, match="nothing has measured the units of activation"):
        during.after_step()
    torch.compiler.reset()
    compiled(x)
    during.after_step()
    assert during.measured()[0].gt(0).any()


def slow_reset(
    state: dict[str, Tensor], written: dict[str, Tensor], initial: dict[str, Tensor], around: dict, units: list[int],
    size: int, generator: torch.Generator,
) -> None:  # fmt: skip
    """Reset `units` of a layer of `size` in a network's state, one by one; mark in `written` which entries change."""
    for key in [key for key in state if key.startswith(f"{around['incoming']}.")]:
        entries = initial[key].flatten()
        places = torch.randint(len(entries), (len(units), *state[key].shape[1:]), generator=generator)
        for i, place in zip(units, places, strict=True):
            state[key][i] = entries[place]
            written[key][i] = True
    norm = around.get("norm")
    for key in [key for key in state if norm and key.startswith(f"{norm}.") and state[key].ndim]:
        for i in units:
            state[key][i], written[key][i] = initial[key][i], True
    for reader in around["outgoing"]:
        key = f"{reader}.weight"
        columns = state[key].shape[1] // size
        for i in units:
            state[key][:, i * columns : (i + 1) * columns] = 0
            written[key][:, i * columns : (i + 1) * columns] = True


def units_first(model: nn.Module, output: Tensor) -> Tensor:
    """An activation as (units, ...)."""
    return output.movedim(-1 if isinstance(model, MLP) else 1, 0)


def slow_redo(
    model: nn.Module, initial: dict[str, Tensor], units: dict, outputs: dict[str, Tensor], tau: float, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """What ReDo leaves of a network's state, unit by unit; for each tensor, which entries it has written; and how many
    units it has reset."""
    state = initial_of(model)
    written = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in state.items()}
    generator, count = torch.Generator().manual_seed(seed), 0
    for name, around in units.items():
        scores = [float(unit.abs().mean()) for unit in units_first(model, outputs[name])]
        dormant = [i for i, score in enumerate(scores) if score <= tau * sum(scores) / len(scores)]
        count += len(dormant)
        slow_reset(state, written, initial, around, dormant, len(scores), generator)
    return state, written, count


@pytest.mark.parametrize("kind", NETWORKS)
def test_redo_is_the_plain_algorithm(kind: str) -> None:
    model, initial, scope, x = network(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
    during = fire.build("redo", tau=0.8, period=2).during(model, initial, scope, seed=5)
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    trained(model, x, optimizer)
    assert not during.is_due()
    before = initial_of(model)
    during.after_step(optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert during.metrics() == {"method/units_reset": 0}

    with fire.metrics.record_activations(model) as recorded:
        trained(model, x, optimizer)
        outputs = {activation.name: activation.values.clone() for activation in recorded}
    model.eval()(3 * x)
    with torch.no_grad():
        model.train()(3 * x)  # neither an evaluation nor a pass without gradients counts
    assert during.is_due()
    expected, written, count = slow_redo(model, initial, scope.units, outputs, 0.8, seed=5)
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    during.after_step(optimizer)

    assert count > 0
    assert during.metrics() == {"method/units_reset": count}
    assert during.metrics() == {"method/units_reset": 0}
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == pointers[name]
        assert torch.equal(tensor, expected[name]), name
    for number, (name, p) in enumerate(model.named_parameters()):
        assert 0 < int(written[name].sum()) < written[name].numel() or name in ("second.bias", "head.bias"), name
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            kept = torch.where(written[name], 0.0, moments[number][key])
            assert torch.equal(optimizer.state[p][key], kept), (name, key)
        assert float(optimizer.state[p]["step"]) == 2


def test_redo_keeps_the_output_where_the_units_are_silent() -> None:
    model, initial, scope, x = network("mlp")
    with torch.no_grad():
        model.first.bias[2] = -1e3
    during = fire.ReDo(tau=0.0, period=1).during(model, initial, scope)
    before = model(x)
    during.after_step()
    assert during.metrics() == {"method/units_reset": 1}
    torch.testing.assert_close(model(x), before)
    assert (model.first(x) > 0)[:, 2].any()


@pytest.mark.parametrize("variant", ["published", "as_published_code"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("redo", {"tau": 0.8, "period": 2}),
        ("cbp", {"replacement_rate": 0.07, "maturity_threshold": 2}),
        ("snr", {"tau_max": 8, "period": 4}),
    ],
)
def test_resets_continue_from_a_checkpoint(name: str, settings: dict, variant: str) -> None:
    model, initial, scope, _ = network("mlp")
    with torch.no_grad():
        model.first.bias.copy_(torch.linspace(-6, -2, 6))  # so that units are silent at times
    method = fire.build(name, variant=variant, **settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    during = method.during(model, initial, scope, seed=1)
    batches = torch.randn(20, 3, 5, dtype=torch.float64)
    for batch in batches[:9]:
        trained(model, batch, optimizer)
        during.after_step(optimizer)
    stored = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), during.state_dict()), stored)
    other = MLP().double()
    its_optimizer = torch.optim.Adam(other.parameters())
    resumed = method.during(other, initial, scope, seed=2)
    stored.seek(0)
    for part, state in zip((other, its_optimizer, resumed), torch.load(stored, weights_only=True), strict=True):
        part.load_state_dict(state)
    counts = []
    for batch in batches[9:]:
        for network_, optimizer_, during_ in ((model, optimizer, during), (other, its_optimizer, resumed)):
            trained(network_, batch, optimizer_)
            during_.after_step(optimizer_)
            counts.append(during_.metrics()["method/units_reset"])
        assert counts[-1] == counts[-2]
    assert sum(counts[2:]) > 0
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


def test_redo_uses_what_a_captured_forward_pass_measured() -> None:
    model, initial, scope, x = network("mlp")
    during = fire.ReDo(tau=0.0, period=1).during(model, initial, scope)
    with Tape() as tape:
        model(x).square().mean().backward()
    assert not during.measured()[0].eq(0).any()
    with torch.no_grad():
        model.first.weight[4], model.first.bias[4] = 0, -1
    tape.replay()
    assert during.measured()[0].eq(0).nonzero().flatten().tolist() == [4]
    during.after_step()
    assert during.metrics() == {"method/units_reset": 1}
    assert not model.second.weight[:, 4].any()
    assert model.second.weight[:, :4].all()
    assert torch.isin(model.first.weight[4], initial["first.weight"]).all()


def test_hooks_are_removed_and_other_methods_do_nothing() -> None:
    model, initial, scope, x = network("mlp")
    during = fire.ReDo().during(model, initial, scope)
    during.close()
    model(x)
    assert during.measured()[0].eq(-1).all()
    for method in (fire.NoReset(), fire.Fire()):
        during = method.during(model, initial, scope)
        during.after_step()
        assert (during.penalty(), during.metrics(), list(during.measured())) == (None, {}, [])
        assert not during.is_due()
        assert not method.acts_in(1)
    report = fire.ReDo().reset(model, initial, scope)  # at a boundary
    assert (report.touched, report.sfe) == (0, 0)


def test_phases_and_settings() -> None:
    assert [fire.L2Init(0.1).acts_in(phase) for phase in range(3)] == [False, True, True]
    assert [fire.ReDo(first_phase=0).acts_in(phase) for phase in range(2)] == [True, True]
    model, _, scope, _ = network("mlp")
    with pytest.raises(ValueError, match="names no units"):
        fire.ReDo().check(model, fire.Scope())
    for method in (fire.ReDo(), fire.L2Init(0.1)):
        with pytest.raises(ValueError, match="not of this model"):
            method.during(model, {}, scope)
        with pytest.raises(ValueError, match="the model's own tensors"):
            method.during(model, model.state_dict(), scope)
