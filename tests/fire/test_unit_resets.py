"""Continual backpropagation and self-normalised resets against slow state machines in float64; variants; what a step
costs."""

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import fire
from tests.conftest import needs_cuda
from tests.fire.test_during import CONVS, MLP, network, slow_reset, trained, units_first
from tests.fire.test_methods import initial_of
from tests.tape import WAITS, Tape, launches


class SlowCBP:
    """Algorithm 1 of Dohare et al. with the utility of `fire.ContinualBackprop`, unit by unit."""

    def __init__(self, method: fire.ContinualBackprop, units: dict) -> None:
        self.method, self.units, self.owed = method, units, dict.fromkeys(units, 0.0)
        self.ages: dict[str, list[int]] = {}
        self.means: dict[str, list[float]] = {}

    def replaced(self, name: str, activity: list[float], state: dict[str, Tensor]) -> list[int]:
        """The units of a layer to replace now, in their order."""
        size, method = len(activity), self.method
        published = method.variant == "published"
        ages = self.ages.setdefault(name, [0] * size)
        means = self.means.setdefault(name, [0.0] * size)
        for i in range(size):
            ages[i] += 1
            means[i] = (method.decay if published else 1) * means[i] + (1 - method.decay) * activity[i]
        mature = [i for i in range(size) if ages[i] > method.maturity_threshold]
        self.owed[name] += method.replacement_rate * (len(mature) if published else size * bool(mature))
        count = int(self.owed[name])
        self.owed[name] -= count
        (reader,) = self.units[name]["outgoing"]
        outgoing = state[f"{reader}.weight"]
        columns = outgoing.shape[1] // size
        weights = [float(outgoing[:, i * columns : (i + 1) * columns].abs().mean()) for i in range(size)]
        seen = [1 - method.decay ** ages[i] if published else 1 for i in range(size)]
        utility = [means[i] / seen[i] * weights[i] for i in range(size)]
        chosen = sorted(mature, key=lambda i: utility[i])[:count]
        for i in chosen:
            ages[i] = 0
            means[i] = 0.0 if published else means[i]
        return chosen


class SlowSNR:
    """Self-normalised resets with a histogram over all ages, unit by unit."""

    def __init__(self, method: fire.SelfNormalizedResets) -> None:
        self.method, self.step = method, 0
        self.ages: dict[str, list[int]] = {}
        self.thresholds: dict[str, list[int]] = {}
        self.histograms: dict[str, list[Counter]] = {}

    def replaced(self, name: str, fires: list[bool], samples: int, looks: bool) -> list[int]:
        size, most = len(fires), self.method.tau_max
        ages = self.ages.setdefault(name, [0] * size)
        thresholds = self.thresholds.setdefault(name, [max(1, most // 2)] * size)
        histograms = self.histograms.setdefault(name, [Counter() for _ in range(size)])
        silent = []
        for i in range(size):
            if fires[i]:
                histograms[i][ages[i]] += 1
            ages[i] = 0 if fires[i] else ages[i] + samples
            if not looks:
                continue
            thresholds[i] = min(max(self.threshold(histograms[i], thresholds[i]), samples), max(most, samples))
            histograms[i].clear()
            if ages[i] >= thresholds[i]:
                histograms[i][ages[i]] += 1
                ages[i] = 0
                silent.append(i)
        return silent

    def threshold(self, histogram: Counter, before: int) -> int:
        total = sum(count for age, count in histogram.items() if age > 0)
        seen, found = 0, 1
        for age in sorted(age for age in histogram if age > 0):
            seen += histogram[age]
            if seen / total >= self.method.percentile:
                found = age
                break
        return found if found < before else 2 * before


def expected_moments(
    moments: dict[int, dict[str, Tensor]], written: dict[str, Tensor], names: list[str], kept: bool
) -> dict[int, dict[str, Tensor]]:
    """Adam's moments with zeros where units were reset."""
    return {
        number: {
            key: torch.where(written[name] & ~torch.tensor(kept), 0.0, moments[number][key])
            for key in ("exp_avg", "exp_avg_sq")
        }
        for number, name in enumerate(names)
    }


def follow(method: fire.Method, kind: str, oracle: SlowCBP | SlowSNR, lr: float, steps: int) -> int:
    """Train a network with the method and see after every step that weights and moments are the oracle's, to the bit.
    Returns how many units were reset."""
    model, initial, scope, x = network(kind)
    if isinstance(model, MLP):
        with torch.no_grad():
            model.first.bias.copy_(torch.linspace(-4, 0, 6))  # so that units are silent at times
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    during = method.during(model, initial, scope, seed=3)
    generator, total = torch.Generator().manual_seed(3), 0
    names = [name for name, _ in model.named_parameters()]
    for step in range(1, steps + 1):
        samples = 2 + step % 2
        batch = torch.randn(samples, *x.shape[1:], dtype=torch.float64) * (1 + step % 5)
        with fire.metrics.record_activations(model) as recorded:
            trained(model, batch, optimizer)
            outputs = {one.name: units_first(model, one.values.clone()) for one in recorded}
        state, moments = initial_of(model), copy.deepcopy(optimizer.state_dict()["state"])
        before = initial_of(model)
        written = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in state.items()}
        count = 0
        for name, around in scope.units.items():
            if isinstance(oracle, SlowCBP):
                units = oracle.replaced(name, [float(unit.abs().mean()) for unit in outputs[name]], before)
            else:
                fires = [bool((unit > 0).any()) for unit in outputs[name]]
                units = oracle.replaced(name, fires, samples, step % oracle.method.period == 0)
            count += len(units)
            slow_reset(state, written, initial, around, units, len(outputs[name]), generator)
            if isinstance(oracle, SlowCBP) and (bias := f"{around['incoming']}.bias") in state:
                state[bias][units] = 0
        during.after_step(optimizer)
        assert during.metrics() == {"method/units_reset": count}, step
        total += count
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[name]), (step, name)
        kept = isinstance(oracle, SlowCBP) and method.variant != "published"
        for number, entries in expected_moments(moments, written, names, kept).items():
            found = optimizer.state_dict()["state"][number]
            assert all(torch.equal(found[key], entry) for key, entry in entries.items()), (step, names[number])
            assert float(found["step"]) == step
    return total


@pytest.mark.parametrize("variant", ["published", "as_published_code"])
@pytest.mark.parametrize(
    ("kind", "rate", "maturity", "steps"), [("mlp", 0.08, 5, 120), ("conv", 0.09, 4, 30), ("tokens", 0.4, 1, 60)]
)
def test_cbp_is_the_plain_algorithm(kind: str, rate: float, maturity: int, steps: int, variant: str) -> None:
    method = fire.ContinualBackprop(rate, maturity, 0.9, variant=variant)
    assert follow(method, kind, SlowCBP(method, network(kind)[2].units), lr=0.02, steps=steps) > 10


@pytest.mark.parametrize(
    ("kind", "percentile", "tau_max", "period"),
    [("mlp", 0.9, 40, 7), ("mlp", 0.5, 12, 16), ("mlp", 1.0, 20_000, 4), ("tokens", 0.8, 30, 5), ("mlp", 0.0, 1, 1)],
)
def test_snr_is_the_plain_algorithm(kind: str, percentile: float, tau_max: int, period: int) -> None:
    method = fire.SelfNormalizedResets(percentile, tau_max, period)
    assert 3 < follow(method, kind, SlowSNR(method), lr=0.005, steps=120) < 6 * 120 / period


def test_snr_thresholds_by_hand() -> None:
    """A unit that fires after 3, 3, 6 and 3 silent samples; one that always fires; one that never does."""
    model, initial, scope, _ = network("mlp")
    during = fire.SelfNormalizedResets(percentile=0.75, tau_max=100, period=10).during(model, initial, scope)
    patterns = {1: "0101001010", 0: "1" * 10, 2: "0" * 10}
    for step in range(10):
        with torch.no_grad():
            model.first.weight.zero_()
            model.first.bias.copy_(
                torch.tensor([1.0 if patterns.get(i, "1" * 10)[step] == "1" else -1 for i in range(6)])
            )
        model(torch.randn(3, 5, dtype=torch.float64))
        during.after_step()
    state = during.state_dict()
    assert state["thresholds"].tolist() == [3, 3, 3, 3, 3, 3]  # 1, raised to the samples of a batch, but of the first
    assert state["ages"].tolist() == [0, 0, 0, 0, 0, 0]
    assert state["fired"][-1].tolist() == [0, 3, 30, 0, 0, 0]  # both silent ones were reset
    assert during.metrics() == {"method/units_reset": 2}


def reset_once(variant: str, name: str, **settings: object) -> tuple[nn.Module, dict, torch.optim.Adam, Tensor]:
    """A network after a reset of some units of its first layer, its state before, its optimiser, with moments of 1 and
    2, and which units they were."""
    model, initial, _, x = network("conv")
    scope = fire.Scope(units={"relu1": CONVS["relu1"]})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    during = fire.build(name, variant=variant, **settings).during(model, initial, scope, seed=1)
    with torch.no_grad():
        model.bn1.weight.zero_()
        model.bn1.bias.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))  # two units of the first layer never fire
    trained(model, x, optimizer)
    for moments in optimizer.state.values():  # those of silent units are 0
        moments["exp_avg"].fill_(1)
        moments["exp_avg_sq"].fill_(2)
    before = initial_of(model)
    during.after_step(optimizer)
    changed = (model.conv1.weight != before["conv1.weight"]).flatten(1).any(1)
    return model, before, optimizer, changed


@pytest.mark.parametrize(
    ("name", "settings"), [("redo", {"tau": 0.0, "period": 1}), ("snr", {"tau_max": 1, "period": 1})]
)
def test_what_the_published_code_leaves_out(name: str, settings: dict) -> None:
    """ReDo and SNR: outgoing weights, moments and normalisation stay, and Adam's steps of whole tensors are zeroed."""
    for variant in ("published", "as_published_code"):
        model, before, optimizer, changed = reset_once(variant, name, **settings)
        assert changed.tolist() == [False, True, False, True]
        own = variant == "published"
        assert not torch.equal(model.conv1.bias[changed], before["conv1.bias"][changed])
        outgoing = model.conv2.weight[:, changed]
        assert torch.equal(outgoing, torch.zeros_like(outgoing) if own else before["conv2.weight"][:, changed])
        assert torch.equal(model.bn1.bias, before["bn1.bias"]) != own
        for parameter, places in ((model.conv1.weight, (changed,)), (model.conv2.weight, (slice(None), changed))):
            for key, value in (("exp_avg", 1.0), ("exp_avg_sq", 2.0)):
                expected = torch.full_like(parameter, value)
                if own:
                    expected[places] = 0
                assert torch.equal(optimizer.state[parameter][key], expected)
            assert float(optimizer.state[parameter]["step"]) == (1 if own else 0)
        assert float(optimizer.state[model.bn1.weight]["step"]) == 1


def test_what_the_published_code_of_cbp_does() -> None:
    """The running mean grows, moments stay, and all units count towards what is owed."""
    found = {}
    for variant in ("published", "as_published_code"):
        model, initial, scope, x = network("mlp")
        during = fire.ContinualBackprop(0.0, variant=variant).during(model, initial, scope)
        for _ in range(200):
            model(x)
            during.after_step()
        found[variant] = during.state_dict()["means"] / during.measured()[0].clamp_min(1e-9)
    torch.testing.assert_close(found["published"], torch.full((6,), 1 - 0.99**200), rtol=1e-5, atol=0)
    torch.testing.assert_close(found["as_published_code"], torch.full((6,), 2.0), rtol=1e-5, atol=0)

    settings = {"replacement_rate": 0.25, "maturity_threshold": 0}
    for variant, kept in (("published", False), ("as_published_code", True)):
        model, _, optimizer, changed = reset_once(variant, "cbp", **settings)
        assert int(changed.sum()) == 1
        assert not model.conv2.weight[:, changed].any()
        assert bool(optimizer.state[model.conv1.weight]["exp_avg"].all()) == kept
        assert float(optimizer.state[model.conv1.weight]["step"]) == 1

    counts = []
    for variant in ("published", "as_published_code"):
        model, initial, scope, x = network("mlp")
        during = fire.ContinualBackprop(0.5, 3, variant=variant).during(model, initial, scope)
        for _ in range(6):
            model(x)
            during.after_step()
        counts.append(during.metrics()["method/units_reset"])
    # From the fourth step on half of the mature units, of 6, 3 and 2, or half of all 6 while there are mature ones.
    assert counts == [5, 6]


def test_units_least_useful_first_and_none_twice_while_young() -> None:
    model, initial, scope, _ = network("mlp")
    with torch.no_grad():
        model.first.weight.zero_()
        model.first.bias.copy_(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 6.0]))
        model.second.weight.fill_(1)
        model.second.weight[:, 1] = 100  # little activity, much weight
    during = fire.ContinualBackprop(1 / 6, 2).during(model, initial, scope)
    order = []
    for _ in range(5):
        before = model.second.weight.clone()
        model(torch.zeros(2, 5, dtype=torch.float64))
        during.after_step()
        order += (before != model.second.weight).any(0).nonzero().flatten().tolist()
    assert order == [3, 4]  # from the third step on 1, then 5 / 6 and 4 / 6 of a unit


def test_units_that_were_replaced_are_not_the_next_ones() -> None:
    """All units are active alike, and a young running mean is no sign of low utility."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scope = fire.Scope(units={"1": {"incoming": "0", "outgoing": ["2"]}})
    during = fire.ContinualBackprop(5e-3, 40).during(model, initial, scope)
    replaced: list[int] = []
    for _ in range(400):
        with torch.no_grad():
            model[0].weight.zero_()
            model[0].bias.copy_(1 + torch.rand(64) / 2)
            model[2].weight.fill_(1)
        model(torch.zeros(2, 4))
        during.after_step()
        replaced += (model[2].weight == 0).all(0).nonzero().flatten().tolist()
    assert len(replaced) > 50
    assert len(set(replaced)) > 30


def test_steps_wait_for_nothing_and_launch_little() -> None:
    """Continual backpropagation never waits but in its first step; self-normalised resets only when they look. What
    a step launches may only fall."""
    model, initial, scope, x = network("conv")
    for method, each in ((fire.ContinualBackprop(1e-4, 10), 2), (fire.SelfNormalizedResets(period=16), 5)):
        during = method.during(model, initial, scope)
        model(x).sum().backward()
        during.after_step()
        for _ in range(14):
            model(x).sum().backward()
            counted = launches(during.after_step)
            assert sum(counted.values()) <= each, counted
            assert not WAITS & counted.keys()
        during.close()
    optimizer = torch.optim.Adam(model.parameters())
    during = fire.ContinualBackprop(0.5, 0).during(model, initial, scope)
    trained(model, x, optimizer)
    during.after_step(optimizer)
    trained(model, x, optimizer)
    during.metrics()
    counted = launches(lambda: during.after_step(optimizer))
    assert during.metrics()["method/units_reset"] > 2
    assert not WAITS & counted.keys()


@needs_cuda
def test_cbp_on_a_gpu_waits_for_nothing() -> None:
    """Not when units are replaced either; ReDo does, which shows that the check sees waits."""
    for method in (fire.ContinualBackprop(0.5, 0), fire.ReDo(1.0, 1)):
        model, initial, scope, x = network("conv")
        model, x = model.cuda(), x.cuda()
        optimizer = torch.optim.Adam(model.parameters(), capturable=True)
        during = method.during(model, initial, scope)
        for _ in range(3):
            trained(model, x, optimizer)
            during.after_step(optimizer)
        trained(model, x, optimizer)
        torch.cuda.set_sync_debug_mode("error")
        try:
            if isinstance(method, fire.ContinualBackprop):
                during.after_step(optimizer)
            else:
                with pytest.raises(RuntimeError, match="synchroniz"):
                    during.after_step(optimizer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert during.metrics()["method/units_reset"] > 0


def test_samples_are_those_of_the_captured_batch() -> None:
    """In one graph for each size of batch, the number of samples is that of the batch which is replayed."""
    model, initial, scope, x = network("mlp")
    during = fire.SelfNormalizedResets().during(model, initial, scope)
    tapes = []
    for size in (16, 3):
        with Tape() as tape:
            model(x[:size]).square().mean().backward()
        tapes.append(tape)
    for tape, size in zip(tapes, (16, 3), strict=True):
        tape.replay()
        assert during.measured()[-1].tolist() == [size]
