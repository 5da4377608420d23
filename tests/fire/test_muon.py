"""Muon with Adam: against plain loops in float64, in bfloat16 against PyTorch's, captured, and across checkpoints."""

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn

import fire
from fire.muon import nearly_orthogonal
from tests.fire.test_during import ConvNet
from tests.tape import Tape, launches


class Net(nn.Module):
    """Convolutions of three kinds, fused rows, a norm, an embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.conv, self.norm = nn.Conv2d(2, 40, 3, padding=1, bias=False), nn.BatchNorm2d(40)
        self.grouped, self.shortcut = nn.Conv2d(40, 8, 3, groups=2, bias=False), nn.Conv2d(40, 48, 1)
        self.qkv, self.head = nn.Linear(56, 18), nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.conv(x)))
        pooled = [layer(hidden).mean((2, 3)) for layer in (self.grouped, self.shortcut)]
        q, k, v = self.qkv(torch.cat(pooled, 1)).split(6, 1)
        return self.head(torch.tanh(q * k) + v)


SCOPE = fire.Scope(fused={"qkv": [6, 6, 6]}, adam=["head"])
MATRICES = ("conv.weight", "grouped.weight", "shortcut.weight", "qkv.weight")


def plain_groups(model: nn.Module, **options: object) -> torch.optim.Optimizer:
    """AdamW of a training loop: matrices decay."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.125},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, fused=True, **options)  # type: ignore[arg-type]


class Plain:
    """The definition, one matrix and one number at a time."""

    def __init__(self, model: nn.Module, variant: str) -> None:
        self.model, self.variant, self.steps = model, variant, 0
        self.means = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        self.squares = copy.deepcopy(self.means)

    @staticmethod
    def orthogonal(matrix: Tensor) -> Tensor:
        """Jordan's five steps."""
        X = matrix / (torch.linalg.norm(matrix) + 1e-7)
        for _ in range(5):
            A = X @ X.T
            X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
        return X

    def muon(self, name: str, p: Tensor, gradient: Tensor) -> Tensor:
        mean = self.means[name] = 0.95 * self.means[name] + 0.05 * gradient
        update = 0.05 * gradient + 0.95 * mean
        parts = {"qkv.weight": 3, "grouped.weight": 2}.get(name, 1)
        new = []
        for part in update.chunk(parts):
            flat = part.reshape(len(part), -1)
            rows, columns = part.shape[-2:] if self.variant == "as_published_code" else flat.shape
            new.append((math.sqrt(max(1, rows / columns)) * self.orthogonal(flat)).reshape(part.shape))
        return p * (1 - 0.02 * 0.125) - 0.02 * torch.cat(new)

    def adam(self, name: str, p: Tensor, gradient: Tensor) -> Tensor:
        mean = self.means[name] = 0.9 * self.means[name] + 0.1 * gradient
        square = self.squares[name] = 0.95 * self.squares[name] + 0.05 * gradient**2
        decayed = p * (1 - 1e-3 * 0.125) if p.ndim >= 2 else p
        corrected = [mean / (1 - 0.9**self.steps), square / (1 - 0.95**self.steps)]
        return decayed - 1e-3 * corrected[0] / (corrected[1].sqrt() + 1e-10)

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        for name, p in self.model.named_parameters():
            p.copy_((self.muon if name in MATRICES else self.adam)(name, p.clone(), p.grad))


def backward(model: nn.Module, seed: int) -> None:
    model.zero_grad()
    x = torch.randn(32, 2, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=next(model.parameters()).dtype)
    model(x).cos().mean().backward()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("variant", ["published", "as_published_code"])
def test_the_plain_algorithm(variant: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = Net().double()
    expected = copy.deepcopy(model)
    model.to(memory_format=layout)
    optimizer = fire.build("muon", learning_rate=0.02, variant=variant).optimizer(plain_groups(model), model, SCOPE)
    exact = Plain(expected, variant)
    for seed in range(4):
        for each, step in ((model, optimizer.step), (expected, exact.step)):
            backward(each, seed)
            step()
        for (name, p), right in zip(model.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p, right, rtol=1e-8, atol=1e-10, msg=name)


def test_the_variants_differ_where_a_convolution_is_tall() -> None:
    after = []
    for variant in ("published", "as_published_code"):
        torch.manual_seed(0)
        model = Net().double()
        optimizer = fire.Muon(variant=variant).optimizer(plain_groups(model), model, SCOPE)
        backward(model, 0)
        before = copy.deepcopy(model.state_dict())
        optimizer.step()
        after.append({name: tensor - before[name] for name, tensor in model.state_dict().items() if "weight" in name})
    ratios = {name: float(moved.norm() / after[1][name].norm()) for name, moved in after[0].items()}
    # 40 x 18, 48 x 40 and, in groups, 4 x 180.
    assert ratios.pop("conv.weight") == pytest.approx(math.sqrt(40 / 18), rel=1e-2)
    assert ratios.pop("shortcut.weight") == pytest.approx(math.sqrt(48 / 40), rel=1e-2)
    assert set(ratios.values()) == {1.0}


def test_bfloat16_is_near_and_so_is_pytorch() -> None:
    torch.manual_seed(0)
    X = torch.randn(3, 20, 40)
    near = nearly_orthogonal(X)
    assert near.dtype == torch.bfloat16
    for one, exact in zip(near, X.double(), strict=True):
        assert (one.double() - Plain.orthogonal(exact)).abs().max() < 0.02
        assert (
            0.6 < float(torch.linalg.svdvals(one.float()).min()) < float(torch.linalg.svdvals(one.float()).max()) < 1.3
        )
    if not hasattr(torch.optim, "Muon"):
        return
    models = [nn.Sequential(nn.Linear(20, 60, bias=False), nn.Linear(60, 40, bias=False)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = fire.Muon(0.02).optimizer(torch.optim.Adam(models[0].parameters()), models[0], fire.Scope())
    theirs = torch.optim.Muon(models[1].parameters(), lr=0.02, weight_decay=0.0, momentum=0.95)
    start = [p.detach().clone() for p in models[0].parameters()]
    for _ in range(4):
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for before, p, q in zip(start, models[0].parameters(), models[1].parameters(), strict=True):
        assert (p - q).norm() < 0.02 * (p - before).norm()


def test_groups_take_over_what_the_training_loop_has() -> None:
    model = Net()
    optimizer = fire.Muon(0.02).optimizer(plain_groups(model, capturable=True), model, SCOPE)
    names = {id(p): name for name, p in model.named_parameters()}
    found = [
        ({names[id(p)] for p in group["params"]}, group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    ]
    vectors = {"norm.weight", "norm.bias", "shortcut.bias", "qkv.bias"}
    assert found == [({*MATRICES}, 0.02, 0.125), ({"embedding.weight"}, 1e-3, 0.125), (vectors, 1e-3, 0.0)]
    assert all(group["fused"] and group["capturable"] for group in optimizer.param_groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 5e-4, 5e-4]
    part = fire.Muon().optimizer(torch.optim.Adam(model.qkv.parameters()), model, SCOPE)
    assert [len(group["params"]) for group in part.param_groups] == [1, 1]
    assert fire.Muon().acts_in(1)
    assert not fire.Muon().acts_in(0)


def test_captured_with_a_learning_rate_in_a_tensor() -> None:
    """To the bit as eager, at every replay with the rate of then."""
    torch.manual_seed(0)
    eager, captured = Net(), Net()
    captured.load_state_dict(eager.state_dict())
    optimizers = [fire.Muon().optimizer(plain_groups(m, capturable=True), m, SCOPE) for m in (eager, captured)]
    for one, other in zip(optimizers[0].param_groups, optimizers[1].param_groups, strict=True):
        one["lr"] = 2.0**-6  # which float32 holds exactly
        other["lr"] = torch.tensor(one["lr"])
    for model, optimizer in zip((eager, captured), optimizers, strict=True):
        backward(model, 0)
        optimizer.step()
    gradients = [p.grad for p in captured.parameters()]
    before = copy.deepcopy((captured.state_dict(), optimizers[1].state_dict()["state"]))
    with Tape() as tape:  # which refuses to wait
        optimizers[1].step()
    assert sum(tape.launches.values()) < 120, tape.launches
    captured.load_state_dict(before[0])
    for number, p in enumerate(p for group in optimizers[1].param_groups for p in group["params"]):
        for key, value in before[1][number].items():
            optimizers[1].state[p][key].copy_(value)
    for seed in (1, 2):
        backward(eager, seed)
        for ours, p in zip(gradients, eager.parameters(), strict=True):
            ours.copy_(p.grad)
        for one, other in zip(optimizers[0].param_groups, optimizers[1].param_groups, strict=True):
            one["lr"] = 2.0 ** -(6 + seed)
            other["lr"].fill_(one["lr"])
        optimizers[0].step()
        tape.replay()
        for p, q in zip(eager.parameters(), captured.parameters(), strict=True):
            assert torch.equal(p, q)


def test_matrices_of_one_shape_are_one_product() -> None:
    model = nn.Sequential(*(nn.Linear(8, 16) for _ in range(10)), *(nn.Linear(16, 8) for _ in range(10)))
    optimizer = fire.Muon().optimizer(torch.optim.Adam(model.parameters(), fused=True), model, fire.Scope())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    counted = launches(optimizer.step)
    assert counted["aten.bmm.default"] + counted["aten.baddbmm.default"] == 15, counted


def test_continues_from_a_checkpoint() -> None:
    torch.manual_seed(0)
    model, other = ConvNet(), ConvNet()
    x, scope = torch.randn(8, 2, 5, 5), fire.Scope(adam=["head"])
    optimizers = [fire.Muon().optimizer(torch.optim.Adam(m.parameters(), fused=True), m, scope) for m in (model, other)]

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        assert optimizer.step(closure) > 0

    for _ in range(3):
        train(model, optimizers[0])
    stored = io.BytesIO()
    torch.save((model.state_dict(), optimizers[0].state_dict()), stored)
    stored.seek(0)
    weights, moments = torch.load(stored, weights_only=True)
    other.load_state_dict(weights)
    optimizers[1].load_state_dict(moments)
    for each, optimizer in zip((model, other), optimizers, strict=True):
        train(each, optimizer)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_reset_clears_its_moments() -> None:
    torch.manual_seed(0)
    model = ConvNet()
    optimizer = fire.Muon().optimizer(torch.optim.Adam(model.parameters()), model, fire.Scope(adam=["head"]))
    model(torch.randn(8, 2, 5, 5)).square().mean().backward()
    optimizer.step()
    assert fire.reset_state(optimizer, fire.fire_(model)) == 3
    assert not optimizer.state[model.conv1.weight]["momentum_buffer"].any()
    assert not optimizer.state[model.head.weight]["exp_avg"].any()
    assert optimizer.state[model.conv1.bias]["exp_avg"].any()
