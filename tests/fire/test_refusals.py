"""What the library refuses: call -> error, and the model is as it was. A new public function needs a row here."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fire
from fire import metrics


class Net(nn.Module):
    """A convolution, a linear layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)


def names() -> dict[str, Any]:
    """What the rows below refer to."""
    torch.manual_seed(0)
    model, bad = Net(), Net()
    bad.head.weight.data[0, 0] = torch.nan
    initial = copy.deepcopy(model.state_dict())
    weights = {"incoming": "conv", "outgoing": ["body"]}
    tied = Net()
    return {
        "fire": fire, "metrics": metrics, "torch": torch, "nn": nn, "nan": torch.nan, "inf": torch.inf,
        "model": model, "bad": bad, "initial": initial, "relu_only": nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)),
        "arrays": {name: value.numpy() for name, value in initial.items()}, "own": tied.state_dict(), "tied": tied,
        "A": torch.randn(5, 3), "v": torch.randn(3), "weights": weights, "np": np, "Act": metrics.Activation,
        "adam": torch.optim.Adam(model.parameters()), "copy": copy,
        "maximizing": torch.optim.Adam(model.parameters(), maximize=True),
        "total": lambda factor: factor * model.head.weight.sum(),
        "scope": lambda **given: fire.Scope(**given).check(model), "flat": nn.BatchNorm1d(3),
    }  # fmt: skip


T, V = TypeError, ValueError
ROWS: list[tuple[str, type[Exception], str]] = [
    # polar
    ("fire.polar([[1.0, 0.0]])", T, "W must be a torch.Tensor, got list"),
    ("fire.polar(np.eye(2))", T, "W must be a torch.Tensor, got ndarray"),
    ("fire.polar(torch.eye(2, dtype=torch.int64))", T, "W must be of a real floating-point dtype, got torch.int64"),
    ("fire.polar(torch.eye(2, dtype=torch.complex64))", T, "W must be of a real floating-point dtype"),
    ("fire.polar(v)", V, r"W must have at least 2 dimensions, got shape \(3,\)"),
    ("fire.polar(A * nan)", V, r"W of shape \(5, 3\) holds a non-finite entry"),
    ("fire.polar(A, steps=0)", V, r"steps must be a whole number in \[1, 1000\], got 0"),
    ("fire.polar(A, steps=10**9)", V, r"steps must be a whole number in \[1, 1000\], got 1000000000"),
    ("fire.polar(A, steps=2.5)", T, "steps must be a whole number, got 2.5"),
    ("fire.polar(A, steps=True)", T, "steps must be a whole number, got True"),
    ("fire.polar(A, steps='10')", T, "steps must be a whole number, got '10'"),
    ("fire.polar(A, tol='small')", T, "tol must be a number, got 'small'"),
    ("fire.polar(A, tol=nan)", V, "tol must be finite"),
    ("fire.polar(A, tol=1e-12)", V, "tol must lie in"),
    ("fire.polar(A, solver='newton')", V, "unknown solver 'newton'; valid: newton_schulz, polar_express, svd"),
    ("fire.polar(A, solver=None)", V, "unknown solver None"),
    # fire_
    ("fire.fire_(model.state_dict())", T, "model must be a torch.nn.Module, got OrderedDict"),
    ("fire.fire_(A)", T, "model must be a torch.nn.Module, got Tensor"),
    ("fire.fire_(relu_only)", V, "Sequential has no weight that FIRE can project: all are excluded, or no tensor"),
    ("fire.fire_(nn.Embedding(3, 3))", V, "Embedding has no weight that FIRE can project: weight: an embedding: proj"),
    ("fire.fire_(bad)", V, "head.weight holds a non-finite entry; nothing has been changed"),
    ("fire.fire_(model, include='head')", T, "include must be a list of patterns, got 'head'"),
    ("fire.fire_(model, include=5)", T, "include must be a list of patterns, got 5"),
    ("fire.fire_(model, include=[5])", T, "include must be a list of patterns, got 5 in it"),
    ("fire.fire_(model, include=[])", V, "include is empty and selects nothing"),
    ("fire.fire_(model, exclude='head')", T, "exclude must be a list of patterns, got 'head'"),
    ("fire.fire_(model, exclude=['haed'])", V, "exclude pattern 'haed' matches no module with weights; there are"),
    ("fire.fire_(model, include=['relu'])", V, "include pattern 'relu' matches no module with weights"),
    ("fire.fire_(model, fused=[2, 4])", T, "fused must be a mapping of patterns to lists of row sizes, got list"),
    ("fire.fire_(model, fused={'body': 3})", T, r"fused\['body'\] must be a list of row sizes, got 3"),
    ("fire.fire_(model, fused={'body': 'ab'})", T, r"fused\['body'\] must be a list of row sizes, got 'ab'"),
    ("fire.fire_(model, fused={'body': [2.0, 4.0]})", T, r"fused\['body'\] must be a list of row sizes"),
    ("fire.fire_(model, fused={'body': [2, 3]})", V, "must be positive and add up to its 6 rows"),
    ("fire.fire_(model, norm='frobenius')", V, "norm must be one of fire, own, got 'frobenius'"),
    ("fire.fire_(model, interpolation=nan)", V, "interpolation must be finite"),
    ("fire.fire_(model, interpolation=2)", V, r"interpolation must lie in \[0, 1\], got 2"),
    ("fire.fire_(model, interpolation='half')", T, "interpolation must be a number, got 'half'"),
    # weight_matrices, unit_layers and Scope
    ("fire.weight_matrices(None)", T, "model must be a torch.nn.Module, got NoneType"),
    ("fire.unit_layers(model, {'rule': weights})", V, "units pattern 'rule' matches no module"),
    ("fire.unit_layers(model, {'relu': {'incoming': 'conv'}})", V, "units of relu: .*outgoing"),
    ("fire.unit_layers(model, {'relu': {'incoming': 'conv', 'outgoing': 'body'}})", V, "must be a list of names"),
    ("fire.unit_layers(model, {'relu': {'incoming': 'cnov', 'outgoing': ['body']}})", V, "'cnov' is no module"),
    ("fire.unit_layers(model, {'relu': {'incoming': 'body', 'outgoing': ['conv']}})", V, "reads 3 features, but body"),
    ("fire.Scope(include='head')", T, "include must be a list of patterns, got 'head'"),
    ("fire.Scope(exclude='head')", T, "exclude must be a list of patterns, got 'head'"),
    ("fire.Scope(reset='head')", T, "reset must be a list of patterns, got 'head'"),
    ("fire.Scope(inject='head')", T, "inject must be a list of patterns, got 'head'"),
    ("fire.Scope(fused=[3])", T, "fused must be a mapping"),
    ("fire.Scope(units=['relu'])", T, "units must be a mapping of patterns to the layers around them, got list"),
    ("fire.Scope(units={'relu': 'conv'})", T, r"units\['relu'\] must be a mapping with incoming, outgoing and norm"),
    ("scope(reset=['haed'])", V, "reset pattern 'haed' matches no module with weights"),
    ("scope(inject=['haed'])", V, "inject pattern 'haed' matches no module"),
    ("fire.fire_(model, layouts=['out in'])", T, "layouts must be a mapping of patterns to a word for each dimension"),
    ("fire.fire_(model, layouts={'body.weight': 2})", T, r"layouts\['body.weight'\] must be a word for each dimension"),
    ("fire.fire_(model, layouts={'*.wieght': 'out in'})", V, "layouts pattern '.*' matches no parameter; there are: "),
    ("fire.fire_(model, layouts={'body.weight': 'out'})", V, "it needs a word for each dimension, `out` and `in` once"),
    ("fire.fire_(model, layouts={'conv.weight': 'out in x'})", V, r"does not fit conv.weight \(4, 3, 3, 3\)"),
    ("fire.Scope(layouts='out in')", T, "layouts must be a mapping"),
    ("fire.reset_state(None, None)", T, "optimizer must be a torch.optim.Optimizer, got NoneType"),
    ("fire.reset_state(torch.optim.SGD(model.parameters()), None)", T, "report must be a fire.ResetReport"),
    ("fire.refresh_batch_norm(A, [A])", T, "model must be a torch.nn.Module"),
    ("fire.refresh_batch_norm(flat, [])", V, "refresh_batch_norm needs at least one batch"),
    # methods
    ("fire.build([])", T, "name must be a string, got list"),
    ("fire.register(3)", T, "name must be a string, got int"),
    ("fire.register('fire')(nn.Module)", V, "there is a method 'fire' already: Fire"),
    ("fire.FullReset().reset(model, {k: v.int() for k, v in initial.items()})", T, r"initial\['conv.weight'\] must be"),
    ("fire.fire_(model, include=(name for name in ['head']))", T, "include must be a list of patterns, got <generator"),
    ("fire.Fire().check(model, fire.Scope(exclude=['*']))", V, "all are excluded"),
    ("fire.polar(torch.eye(2, device='meta'))", V, "W is on the meta device"),
    ("metrics.dfi(A[:0])", V, "is empty"),
    ("metrics.dormant_ratio([Act('relu', A, 7)])", V, "the activation relu has no axis 7"),
    ("metrics.sharpness([lambda: A.sum()], model.head.weight)", T, "parameters must be several tensors"),
    ("fire.build('ifre')", V, "unknown method 'ifre'; valid: .*fire, full_reset"),
    ("fire.build('fire', stepz=3)", T, "stepz"),
    ("fire.build('shrink_perturb')", T, "coefficient"),
    ("fire.Fire(steps=0)", V, "steps must be a whole number in"),
    ("fire.Fire(solver='qr')", V, "unknown solver 'qr'"),
    ("fire.Fire(norm='frobenius')", V, "norm must be one of fire, own"),
    ("fire.build('l2_init')", T, "coefficient"),
    ("fire.Rescale(tol=2)", V, "tol must lie in"),
    ("fire.RescaleConvolution(steps=0)", V, "steps must"),
    ("fire.ShrinkPerturb(nan)", V, "coefficient must be finite, got nan"),
    ("fire.ShrinkPerturb('0.5')", T, "coefficient must be a number, got '0.5'"),
    ("fire.ShrinkPerturb(1.5)", V, r"coefficient must lie in \[0, 1\], got 1.5"),
    ("fire.L2Init(inf)", V, "coefficient must be finite, got inf"),
    ("fire.L2Init(-1)", V, "coefficient must be at least 0, got -1"),
    ("fire.L2Init(1.0, first_phase=-1)", V, "first_phase must be a whole number of at least 0, got -1"),
    ("fire.ContinualBackprop(replacement_rate=2)", V, r"replacement_rate must lie in \[0, 1\], got 2"),
    ("fire.ContinualBackprop(maturity_threshold=-1)", V, "maturity_threshold must be a whole number of at least 0"),
    ("fire.ContinualBackprop(decay=1.5)", V, r"decay must lie in \[0, 1\], got 1.5"),
    ("fire.ContinualBackprop().reset(model, initial)", V, "cbp needs a scope whose `units` names"),
    ("fire.SelfNormalizedResets(percentile=99)", V, r"percentile must lie in \[0, 1\], got 99"),
    ("fire.SelfNormalizedResets(tau_max=0)", V, r"tau_max must be a whole number in \[1, 10000000\], got 0"),
    ("fire.SelfNormalizedResets(period=0)", V, r"period must be a whole number in \[1, 1000\], got 0"),
    ("fire.SelfNormalizedResets().reset(model, initial)", V, "snr needs a scope whose `units` names"),
    ("fire.ReDo(variant='paper')", V, "variant must be one of published, as_published_code, got 'paper'"),
    ("fire.ReDo(tau=nan)", V, "tau must be finite"),
    ("fire.ReDo(period=0)", V, "period must be a whole number of at least 1, got 0"),
    ("fire.ReDo(period=1.5)", T, "period must be a whole number, got 1.5"),
    ("fire.ReDo().reset(model, initial)", V, "redo needs a scope whose `units` names"),
    ("fire.PlasticityInjection().reset(model, initial)", V, "plasticity_injection needs a scope whose `inject`"),
    ("fire.Fire().reset(model, initial, {'include': ['head']})", T, "scope must be a fire.Scope, got dict"),
    ("fire.Fire().reset(model, initial, None)", T, "scope must be a fire.Scope, got NoneType"),
    ("fire.Fire().reset(model, arrays)", T, r"initial\['conv.weight'\] must be a torch.Tensor, got ndarray"),
    ("fire.Fire().reset(model, None)", T, "initial must be a state_dict, got NoneType"),
    ("fire.Fire().reset(model, {})", V, "the initial weights are not of this model"),
    ("fire.Fire().reset(tied, own)", V, "the initial weights are the model's own tensors"),
    ("fire.Fire().reset(flat, {k: v + 0 for k, v in flat.state_dict().items()})", V, "BatchNorm1d has no weight that"),
    ("fire.Fire().reset(bad, initial)", V, "head.weight holds a non-finite entry"),
    ("fire.NoReset().reset(A, initial)", T, "model must be a torch.nn.Module"),
    ("fire.FullReset().reset(nn.Linear(2, 2), nn.Linear(3, 2).state_dict())", V, "other names or shapes"),
    ("fire.FullReset().reset(model, {'conv.weight': A})", V, "the initial weights are not of this model"),
    ("fire.Parseval(nan)", V, "coefficient must be finite, got nan"),
    ("fire.Parseval(1.0).during(nn.Sequential(nn.ReLU()), {}, fire.Scope())", V, "parseval finds no weight matrix"),
    ("fire.Dash(0, 0.1)", V, "alpha must be positive"),
    ("fire.Dash(0.3, 1.5)", V, r"lambda_ must lie in \[0, 1\], got 1.5"),
    ("fire.Dash(0.3, 0.1, 'mine')", V, "variant must be one of published, as_published_code, got 'mine'"),
    ("fire.Dash(0.3, 0.1).reset(model, initial)", V, r"dash needs the data to come: reset\(..., data=batches, loss="),
    ("fire.Dash(0.3, 0.1).reset(model, initial, data=[A])", V, "dash needs the data to come"),
    ("fire.Dash(0.3, 0.1).reset(model, initial, data=[], loss=total)", V, "dash needs at least one batch"),
    ("fire.Dash(0.3, 0.1).reset(model, initial, data=[nan], loss=total)", V, "is not finite; nothing has been changed"),
    ("fire.Dash(0.3, 0.1).reset(flat, {k: v + 0 for k, v in flat.state_dict().items()}, data=[1], loss=total)", V,
     "dash finds no weight matrix that is trained in BatchNorm1d"),
    ("fire.Muon(-1)", V, "learning_rate must be at least 0, got -1"),
    ("fire.Muon(momentum=1.5)", V, r"momentum must lie in \[0, 1\], got 1.5"),
    ("fire.Muon(variant='mine')", V, "variant must be one of published, as_published_code, got 'mine'"),
    ("fire.Muon().optimizer(torch.optim.SGD(model.parameters()), model, fire.Scope())", T, "plain must be a torch"),
    ("fire.Muon().optimizer(adam, flat, fire.Scope())", V, "muon finds no weight matrix in BatchNorm1d"),
    ("fire.Muon().optimizer(adam, model, fire.Scope(adam=['haed']))", V, "adam pattern 'haed' matches no module with"),
    ("fire.Muon().optimizer(maximizing, model, fire.Scope())", V, "muon takes the place of an Adam without maximize"),
    ("copy.deepcopy(fire.Muon().optimizer(adam, model, fire.Scope()))", T, "MuonWithAdam cannot be copied or pickled"),
    ("fire.Scope(adam='head')", T, "adam must be a list of patterns, got 'head'"),
    # metrics
    ("metrics.sfe(A, A[0])", V, r"before and after must have one shape, got \(5, 3\) and \(3,\)"),
    ("metrics.sfe(A, 0)", T, "after must be a torch.Tensor, got int"),
    ("metrics.dfi(v)", V, "W must have at least 2 dimensions"),
    ("metrics.dfi(A.tolist())", T, "W must be a torch.Tensor, got list"),
    ("metrics.dfi(A, scale=0)", V, "scale must be positive"),
    ("metrics.dfi(A, scale=nan)", V, "scale must be finite"),
    ("metrics.isometry(A)", T, "model must be a torch.nn.Module"),
    ("metrics.isometry(relu_only)", V, "Sequential has no weight matrix"),
    ("metrics.weight_norm(A)", T, "model must be a torch.nn.Module"),
    ("metrics.stable_rank(A * nan)", V, r"features of shape \(5, 3\) holds a non-finite entry"),
    ("metrics.stable_rank(A[:0])", V, r"features of shape \(0, 3\) are empty"),
    ("metrics.effective_rank(A * inf)", V, "holds a non-finite entry"),
    ("metrics.effective_rank(v)", V, "features must have at least 2 dimensions"),
    ("metrics.srank(A, delta=2)", V, r"delta must lie in \[0, 1\], got 2"),
    ("metrics.srank(A, delta=1)", V, "delta must be below 1"),
    ("metrics.srank(A[:, :0])", V, "are empty"),
    ("metrics.dormant_ratio([])", V, "there is no activation to count units in"),
    ("metrics.dormant_ratio([Act('relu', A * nan, -1)])", V, "the activation relu .* a non-finite entry"),
    ("metrics.dormant_ratio([Act('relu', A, -1)], tau=-1)", V, "tau must be at least 0"),
    ("metrics.record_activations(A).__enter__()", T, "model must be a torch.nn.Module"),
    ("metrics.record_activations(model, {'gelu': 1}).__enter__()", V, "unit_axis pattern 'gelu' matches no module"),
    ("metrics.sharpness([], model.parameters())", V, "at least one batch"),
    ("metrics.sharpness([lambda: A.sum()], [])", V, "a parameter that requires a gradient"),
    ("metrics.sharpness([lambda: A.sum()], model.parameters(), iterations=0)", V, "iterations must be a whole number"),
    ("metrics.sharpness([lambda: A.sum()], model.parameters(), tol=nan)", V, "tol must be finite"),
]  # fmt: skip

RECORDS = {"Activation", "During", "InjectedHead", "MatrixReport", "METHODS", "Method", "MuonWithAdam", "Recorder",
           "ResetReport", "TrainingMethod", "UnitLayer", "WeightMatrix", "metrics", "register"}  # fmt: skip
"""Public names that are results, base classes or modules: nothing of theirs takes a user's argument."""


@pytest.mark.parametrize(("call", "error", "pattern"), ROWS, ids=[row[0] for row in ROWS])
def test_refused_and_unchanged(call: str, error: type[Exception], pattern: str) -> None:
    known = names()
    before = {name: copy.deepcopy(known[name].state_dict()) for name in ("model", "bad", "tied")}
    with pytest.raises(error, match=pattern):
        eval(call, known)
    for name, state in before.items():
        after = known[name].state_dict()
        assert all(torch.equal(torch.nan_to_num(after[key]), torch.nan_to_num(state[key])) for key in state)


def test_every_public_function_has_a_row() -> None:
    text = "\n".join(call for call, _, _ in ROWS)
    measures = {"sfe", "dfi", "isometry", "weight_norm", "stable_rank", "effective_rank", "srank", "dormant_ratio",
                "record_activations", "sharpness"}  # fmt: skip
    public = {name for name, value in vars(metrics).items() if getattr(value, "__module__", "") == metrics.__name__}
    assert {name for name in public if name[0].islower() and name[0] != "_"} - {"distances"} == measures
    missing = [f"metrics.{name}(" for name in measures if f"metrics.{name}(" not in text]
    missing += [f"fire.{name}(" for name in {*fire.__all__} - RECORDS if f"fire.{name}(" not in text]
    assert not missing
