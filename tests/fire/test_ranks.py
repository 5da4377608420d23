"""Several processes: DistributedDataParallel, FSDP and FSDP2, by gloo on the CPU."""

import copy
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.checkpoint import state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import fire
from fire import ranks
from tests.fire.recipes import recipe

RANKS = 2
BATCH = torch.linspace(-1, 1, 12).reshape(2, 6)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(BATCH).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def assert_expected(found: dict[str, torch.Tensor], forgotten: str = "the weights'") -> None:
    """Compare with what one process computes: a step, FIRE, a step."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    report = fire.fire_(model)
    if forgotten == "everything":
        optimizer.state.clear()
    else:
        fire.reset_state(optimizer, report)
    train(model, optimizer)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def ddp(rank: int) -> None:
    model = DistributedDataParallel(network())
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    fire.reset_state(optimizer, fire.fire_(model))
    train(model, optimizer)
    assert_expected(model.module.state_dict())
    initial = {name: torch.full_like(value, 0.5) for name, value in model.module.state_dict().items()}
    fire.ShrinkPerturb(coefficient=1.0).reset(model, initial)
    assert all((value == 0.5).all() for value in model.module.state_dict().values())


def ddp_on_one_rank(rank: int) -> None:
    model = DistributedDataParallel(network())
    before = copy.deepcopy(model.module.state_dict())
    if rank == 1:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(RuntimeError, match="rank 0 did not come to the reset, and nothing has changed"):
                fire.fire_(model)
        assert str(caught[0].message).startswith("rank 1 waits in a reset for rank 0: each rank must make it")
        assert caught[0].filename == __file__  # where the user calls
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    fire.fire_(model.module)  # a module that no wrapper is seen of waits for nobody


def fsdp(rank: int) -> None:
    model = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    with pytest.raises(ValueError, match=r"use FullyShardedDataParallel\.summon_full_params"):
        fire.fire_(model)
    recipe("summon_full_params", "reset_fsdp", FullyShardedDataParallel=FullyShardedDataParallel)(model, optimizer)
    train(model, optimizer)
    with FullyShardedDataParallel.summon_full_params(model):
        assert_expected({n.replace("_fsdp_wrapped_module.", ""): p for n, p in model.named_parameters()})


def fsdp_flat(rank: int) -> None:
    model = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"flat; where FSDP has sharded it, use FullySharded"):
        fire.fire_(model)
    with FullyShardedDataParallel.summon_full_params(model):
        report = fire.fire_(model)
        assert (report.coverage, report.skipped) == (1, {})
    with FullyShardedDataParallel.summon_full_params(model):
        assert fire.metrics.isometry(model)["dfi_normalised"] < 0.1


def fsdp2(rank: int) -> None:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    with pytest.raises(ValueError, match="sharded over devices: gather it first"):
        fire.fire_(model)
    recipe("StateDictOptions", "reset_fsdp2", **vars(state_dict))(model, optimizer, network())
    train(model, optimizer)
    whole = state_dict.StateDictOptions(full_state_dict=True)
    assert_expected(state_dict.get_model_state_dict(model, options=whole), forgotten="everything")


def process(rank: int, meeting_point: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ranks.PATIENCE = timedelta(seconds=0.2)
    distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=RANKS)
    for check in (ddp, fsdp, fsdp_flat, fsdp2, ddp_on_one_rank):
        if check is ddp_on_one_rank:
            distributed.distributed_c10d._get_default_store().set_timeout(timedelta(seconds=1))
        check(rank)
        distributed.barrier()
    distributed.destroy_process_group()


def test_on_two_ranks(tmp_path: Path) -> None:
    multiprocessing.spawn(process, (str(tmp_path / "meet"),), nprocs=RANKS)
