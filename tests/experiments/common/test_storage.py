"""Checkpoints and the metric log: whole or absent, verified, and cut back together."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.common import checkpoint, seeding
from experiments.common.errors import UserError
from experiments.common.metric_log import MetricLog, cut, read_rows


def test_newest_intact_checkpoint_is_loaded(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None
    paths = [checkpoint.save(tmp_path, {"n": n, "w": torch.full((100,), float(n))}) for n in range(4)]
    assert [path.exists() for path in paths] == [False, False, True, True]
    assert torch.load(paths[3], weights_only=True)["n"] == 3
    content = bytearray(paths[3].read_bytes())
    content[-30] ^= 1
    paths[3].write_bytes(content)
    path, loaded = checkpoint.load(tmp_path) or (None, {})
    assert (path, loaded["n"]) == (paths[2], 2)
    paths[2].write_bytes(b"")
    with pytest.raises(UserError, match=f"damaged checkpoint {paths[3]}"):
        checkpoint.load(tmp_path)


def test_generators_go_on_where_they_were() -> None:
    seeding.seed_everything(5)
    state = seeding.rng_state()
    drawn = [random.random(), float(np.random.rand()), torch.rand(3).tolist()]  # noqa: NPY002
    random.random()
    torch.rand(10)
    seeding.set_rng_state(state)
    assert [random.random(), float(np.random.rand()), torch.rand(3).tolist()] == drawn  # noqa: NPY002


def test_streams_are_independent_and_repeatable() -> None:
    seeds = {seeding.derive(seed, stream, epoch) for seed in (0, 1) for stream in seeding.STREAMS for epoch in (0, 1)}
    assert len(seeds) == 4 * len(seeding.STREAMS)
    one, two = (torch.randperm(20, generator=seeding.generator(3, "order", 1, 2)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.randint(2**62, (), generator=seeding.generator(0, "order")).item() == 2219878356275350935


def test_metric_log_survives_a_cut_off_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    log.append({"epoch": 1, "loss": 0.1})
    position = log.position()
    log.append({"epoch": 2, "loss": float("nan")})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()][1] == {"epoch": 2, "loss": None}
    with path.open("ab") as file:
        file.write(b'{"epoch": 3, "lo')
    assert [row["epoch"] for row in read_rows(path)] == [1, 2]
    cut(path, position)
    assert os.path.getsize(path) == position["bytes"]
    assert MetricLog(path).rows == [{"epoch": 1, "loss": 0.1}]
    with pytest.raises(UserError, match=r"damaged .*metrics\.jsonl: 26 bytes where its checkpoint knows 27"):
        cut(path, {**position, "bytes": 27})
    path.write_bytes(path.read_bytes().replace(b"0.1", b"0.2"))
    with pytest.raises(UserError, match=r"damaged .*metrics\.jsonl: it has changed since its checkpoint was taken"):
        cut(path, position)


def test_mirror_sees_every_row_once(tmp_path: Path) -> None:
    seen: list[int] = []

    def mirror(number: int, row: dict) -> None:
        seen.append(number)

    path = tmp_path / "metrics.jsonl"
    first = MetricLog(path)
    first.append({"a": 1})
    first.show(mirror)
    first.append({"a": 2})
    first.close()
    again = MetricLog(path)
    again.show(mirror)
    again.append({"a": 3})
    assert seen == [0, 1, 0, 1, 2]  # reopening offers what there was; the mirror itself knows what it has shown


@pytest.mark.parametrize("links", [True, False])
def test_checkpoints_are_kept_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("no links on this file system")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for n in range(4):
        checkpoint.save(tmp_path, {"n": n}, keep=["low"] if n < 2 else ["high"] if n == 2 else [])
    kept = checkpoint.kept(tmp_path)
    assert {name: torch.load(path)["n"] for name, path in kept.items()} == {"low": 1, "high": 2}
    assert len(list(tmp_path.glob("*.pt"))) == 4  # two to resume from, two kept
    checkpoint.keep_also(tmp_path, "low", "high")
    checkpoint.keep_also(tmp_path, "nothing", "high")
    assert checkpoint.kept(tmp_path).keys() == {"low", "high"}
    checkpoint.drop(tmp_path, "low")
    checkpoint.drop(tmp_path, "nothing")
    assert checkpoint.kept(tmp_path).keys() == {"high"}
    path = checkpoint.kept(tmp_path)["high"]
    assert (checkpoint.read(path) or {})["n"] == 1
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert checkpoint.read(path) is None
    checkpoint.save_as(tmp_path, {"n": 9}, checkpoint.FINAL)
    assert (checkpoint.load(tmp_path) or ("", {}))[1]["n"] == 3  # what a run resumes from has not changed
    checkpoint.remove(tmp_path, but=1)
    assert {p.name.split("-")[0] + p.name.split("-")[1] for p in tmp_path.glob("*.pt")} == {
        "checkpoint000004", "kepthigh", "keptfinal",
    }  # fmt: skip
    checkpoint.remove(tmp_path)
    assert list(checkpoint.kept(tmp_path)) == [checkpoint.FINAL]
