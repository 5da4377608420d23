"""A whole step of training as one captured graph: on the CPU, where a tape stands in for CUDA, to the bit as eager."""

from typing import Any

import pytest
import torch

import fire
from experiments.common import cuda_graphs
from experiments.common.errors import Interrupted
from experiments.common.progress import Progress
from tests.conftest import slow
from tests.experiments.vision.conftest import Storage, trained, training
from tests.tape import WAITS, Tape, launches

L2_INIT = ("method=l2_init", "method.coefficient=0.01")
REDO = ("method=redo", "method.tau=0.5", "method.period=3")
CBP = ("method=cbp", "method.replacement_rate=0.02", "method.maturity_threshold=2")
SNR = ("method=snr", "method.period=2", "method.tau_max=200")
RESETS = [REDO, CBP, SNR]
MUON = ("method=muon", "method.learning_rate=0.0078125")
PARSEVAL = ("method=parseval", "method.coefficient=0.01")
ACTING = {"plasticity_injection", "l2_init", "redo", "cbp", "snr", "muon", "parseval"}
OTHERS = [(f"method={name}",) for name in fire.METHODS if name not in ACTING]
METHODS = [
    *(words if words[0] in ("method=fire", "method=dash") else slow(words) for words in OTHERS),
    *map(slow, (L2_INIT, MUON, *RESETS, (*REDO, "method.variant=as_published_code"))),
    *((*words, "method.first_phase=0") for words in (L2_INIT, MUON, PARSEVAL, *RESETS)),
]
# Both may only fall.
LAUNCHES_PER_STEP = 2  # besides the graph: copying the indices and filling in the learning rate
LAUNCHES_IN_GRAPH = 231  # of a step that is not compiled, on the CPU


def equal(one: Any, other: Any) -> bool:
    """Whether two states are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("method", METHODS, ids=" ".join)
def test_captured_run_equals_eager_to_the_bit(method: tuple[str, ...], taped: list[Tape], uncompiled: None) -> None:
    eager, captured = training("false", *method), training("graphs", *method)
    rows = trained(captured, Storage())
    assert rows == trained(eager, Storage())
    if method[:3] in RESETS:
        assert sum(row.get("method/units_reset", 0) for row in rows) > 0
    assert len(taped) == 6  # for each of two phases a whole and a smaller batch, and two sizes of test batches
    one, other = eager.state_dict(), captured.state_dict()
    for ours, theirs in zip(*(state["optimizer"]["param_groups"] for state in (one, other)), strict=True):
        assert ours.pop("capturable") is not theirs.pop("capturable")
    assert equal(one, other)


# After the first step, after the first epoch, and in the middle of an epoch of phase 1.
@pytest.mark.parametrize(("stop_at", "precision"), [slow(1, "fp32"), slow(3, "bf16"), (8, "fp32")])
@pytest.mark.parametrize("method", [("method=fire",), (*L2_INIT, "method.first_phase=0"), MUON, *RESETS], ids=" ".join)
def test_captured_run_resumes_in_the_middle(
    stop_at: int, precision: str, method: tuple[str, ...], taped: list[Tape], uncompiled: None
) -> None:
    settings = ("optimizer_at_boundary=keep", f"precision={precision}", *method)
    whole = trained(training("false", *settings), Storage())
    first, second = Storage(stop_at), Storage()
    with pytest.raises(Interrupted):
        trained(training("graphs", *settings), first)
    rest = training("graphs", *settings)
    rest.learner.update(torch.arange(64), 0.001)  # a graph of the state before, which loading must forget
    rest.load_state_dict(first.state)
    assert first.numbers() + trained(rest, second) == whole


def test_checkpoint_of_another_way_to_execute_can_be_resumed(taped: list[Tape], uncompiled: None) -> None:
    """One from when compile=graphs still had an eager optimiser says capturable=False and has a number as rate."""
    whole = trained(training("false"), Storage())
    first = Storage(4)
    with pytest.raises(Interrupted):
        trained(training("false"), first)
    rest = training("graphs")
    rest.load_state_dict(first.state)
    assert first.numbers() + trained(rest, Storage()) == whole


def test_learning_rate_is_read_at_every_replay(taped: list[Tape], uncompiled: None) -> None:
    one = training("graphs").learner
    indices = torch.arange(64)
    one.update(indices, 0.01)
    before = [p.detach().clone() for p in one.model.parameters()]
    one.update(indices, 0.0)
    assert all(map(torch.equal, before, one.model.parameters()))
    one.update(indices, 0.01)
    assert not any(map(torch.equal, before, one.model.parameters()))
    assert len(taped) == 1


def test_a_replayed_step_launches_little_and_an_epoch_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch, uncompiled: None
) -> None:
    replays: list[Tape] = []

    def record(update: Any) -> Any:
        with Tape() as tape:
            update()
        return lambda: replays.append(tape)  # and nothing more, so that what is outside of graphs can be counted

    monkeypatch.setattr(cuda_graphs, "warm_up", lambda update: update())
    monkeypatch.setattr(cuda_graphs, "record", record)
    one, storage = training("graphs"), Storage()
    one.phase = 1
    one.learner.update(torch.arange(64), 0.01)
    assert sum(replays[-1].launches.values()) <= LAUNCHES_IN_GRAPH
    outside = launches(lambda: one.learner.update(torch.arange(3, 67), 0.01))
    outside.subtract(launches(lambda: torch.arange(3, 67)))
    assert sum(outside.values()) == LAUNCHES_PER_STEP
    one.learner.update(torch.arange(8), 0.01)
    one.cfg.budget.test_every = [9, 9]
    one.learner.totals["steps"].fill_(4)
    replays.clear()
    with Progress("epoch", 200, 0, "images", shown=False) as progress:
        images = torch.arange(200)
        counted = launches(lambda: one.train_epoch(storage, images, 2, progress))  # type: ignore[arg-type]
    assert len(replays) == 4
    assert not WAITS & counted.keys()
    assert sum(counted.values()) <= 4 * LAUNCHES_PER_STEP + 7  # once an epoch: order, images, sums


@pytest.mark.slow
def test_compiled_objective_is_one_graph_and_agrees_with_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "warm_up", lambda update: update())
    monkeypatch.setattr(cuda_graphs, "record", lambda update: update)  # compiled code leaves no trace on a tape
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = trained(training("graphs", "method=fire"), Storage())
    again = trained(training("graphs", "method=fire"), Storage())
    counters = torch._dynamo.utils.counters
    # Neither a smaller last batch, a reset, a test nor another run makes torch.compile start over.
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert again == compiled
    eager = trained(training("false", "method=fire"), Storage())
    losses = [[row["train/loss"] for row in rows if "train/loss" in row] for rows in (compiled, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # fused operations round differently
    assert losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", RESETS, ids=" ".join)
def test_compiled_network_is_measured_by_hooks_that_came_later(method: tuple[str, ...]) -> None:
    """These begin in phase 1, when the network has been compiled without their hooks."""
    compiled, eager = (trained(training(compile, *method), Storage()) for compile in ("true", "false"))
    reset = [[row["method/units_reset"] for row in rows if "method/units_reset" in row] for rows in (compiled, eager)]
    assert reset[0] == reset[1]
    assert sum(reset[0]) > 0
    torch.compiler.reset()


def test_each_phase_takes_the_hooks_of_the_last_with_it() -> None:
    settings = ("benchmark.fractions=[0.2,0.4,0.6,1.0]", "budget.epochs=[1,1,1,1]", *REDO, "method.first_phase=0")
    run = training("false", *settings)
    trained(run, Storage())
    hooks = {name: len(module._forward_hooks) for name, module in run.model.named_modules() if module._forward_hooks}
    assert len(hooks) > 8
    assert set(hooks.values()) == {1}


def test_l2_init_keeps_the_weights_near_their_initial_values() -> None:
    runs = [training("false", *L2_INIT[:1], f"method.coefficient={c}", "method.first_phase=0") for c in (0, 10)]
    far, near = (
        sum(float((p.detach() - run.initial[name]).square().sum()) for name, p in run.model.named_parameters())
        for run in runs
        if trained(run, Storage())
    )
    assert near < 0.2 * far
    plain = trained(training("false", "method=none"), Storage())
    without = trained(training("false", *L2_INIT[:1], "method.coefficient=0", "method.first_phase=0"), Storage())
    assert [row.get("train/loss") for row in without] == [row.get("train/loss") for row in plain]


def test_muon_trains_the_convolutions_at_its_own_rate_from_its_first_phase_on() -> None:
    run = training("false", *MUON, "optimizer_at_boundary=keep")
    assert isinstance(run.learner.optimizer, torch.optim.Adam)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    assert trained(run, Storage())[2]["reset/sfe"] == 0
    assert isinstance(run.learner.optimizer, fire.MuonWithAdam)  # though optimisers are to be kept
    assert run.cfg.optimizer_at_boundary == "reset"
    matrices, vectors = run.learner.optimizer.param_groups
    assert [p.ndim for p in matrices["params"]] == [4] * 20
    assert (matrices["lr"], vectors["lr"]) == (2.0**-7, 2.0**-10)
    assert all(not torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    stem = run.model.stem[0].weight
    kept = stem.detach().clone()
    run.learner.update(torch.arange(64), 2.0**-10)
    step = (kept - stem.detach()).flatten(1) / 2.0**-7
    assert 0.6 < float(torch.linalg.svdvals(step)[0]) < 1.3


def test_parseval_keeps_the_weights_near_isometries() -> None:
    deviations = []
    settings = (PARSEVAL[0], "method.first_phase=0", "optimizer.learning_rate=0.0078125")
    for coefficient in (0, 10):
        run = training("false", *settings, f"method.coefficient={coefficient}")
        trained(run, Storage())
        weights = [p.detach().flatten(1) for p in run.model.parameters() if p.ndim > 1]
        deviations.append(sum(float((W @ W.T - torch.eye(len(W))).square().sum()) for W in weights))
    assert deviations[1] < 0.7 * deviations[0]


def test_dash_passes_over_the_images_of_the_phase_that_begins_once() -> None:
    run = training("false", "method=dash", "budget.test_images=20")
    seen: list[torch.Tensor] = []
    loss, labels = run.loss, run.train_set.labels.clone()
    run.train_set.labels.copy_(torch.arange(200))  # so that an image can be told by its label

    def watched(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        seen.append(batch[1])
        assert run.model.training
        return loss((batch[0], labels[batch[1]]))

    run.loss = watched  # type: ignore[method-assign]
    run.phase = 1
    state = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    rows: list[dict[str, Any]] = []
    run.evaluate = dict  # type: ignore[method-assign]
    run.cross_boundary(rows.append)
    assert [len(batch) for batch in seen] == [64, 64, 64, 8]
    assert sorted(torch.cat(seen).tolist()) == list(range(200))
    assert torch.cat(seen).tolist() != list(range(200))
    changed = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, state[name])}
    weights = {name for name, p in run.model.named_parameters() if p.ndim > 1}
    assert changed == weights | {"head.0.bias", "head.2.bias"}
    assert rows[0]["reset/sfe"] > 0
