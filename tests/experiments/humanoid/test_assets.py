"""The model files: verified, fetched again where damaged, the same from both sources."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from experiments.common.errors import UserError
from experiments.humanoid import assets
from tests.conftest import Command

OLD = {  # what the files of the package have where HumanoidBench's have something else
    "envs/h1_pos_balance_simple.xml": [(b"-0.1 0 1.38 1 ", b"-0.1 0 1.32 1 "), (b"0 0 0.37 1 ", b"0 0 0.34 1 ")],
    "envs/h1_pos_balance_hard.xml": [(b"-0.1 0 1.38 1 ", b"-0.1 0 1.32 1 "), (b"0 0 0.37 1 ", b"0 0 0.34 1 ")],
    "tasks/balance_simple.xml": [(b'pos="0 0 0.37"', b'pos="0 0 0.34"'), (b"0.55 0.03", b"0.55 0.01")],
    "tasks/balance_hard.xml": [(b'pos="0 0 0.37"', b'pos="0 0 0.34"'), (b"0.55 0.03", b"0.55 0.01")],
}


def no_download(*_: object) -> None:
    raise UserError("no network")


def archive_of(folder: Path) -> bytes:
    """HumanoidBench's archive, as its host makes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in assets.SHA256:
            tar.add(folder / name, f"humanoid-bench-{assets.COMMIT}/humanoid_bench/assets/{name}")
    return buffer.getvalue()


def package_of(folder: Path) -> bytes:
    """The package, with its older board."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for name in assets.SHA256:
            content = (folder / name).read_bytes()
            for new, old in OLD.get(name, ()):
                assert new in content
                content = content.replace(new, old)
            wheel.writestr(zipfile.ZipInfo(f"{assets.PACKAGE_FOLDER}/{name}"), content)  # the same bytes at any time
    return buffer.getvalue()


@pytest.mark.parametrize("source", ["archive", "package"])
def test_both_sources_give_the_same_files(
    source: str, robot_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = assets.folder(robot_dir)

    def download(_url: str, target: Path) -> None:
        if source == "package":
            no_download()
        target.write_bytes(archive_of(right))

    def pip_download(package: str, folder: Path, megabytes: int) -> Path:
        assert (package, megabytes) == ("robust-gymnasium==0.1.4", 237)
        wheel = folder / "robust_gymnasium-0.1.4-py3-none-any.whl"
        wheel.write_bytes(package_of(right))
        return wheel

    monkeypatch.setattr(assets, "download", download)
    monkeypatch.setattr(assets, "pip_download", pip_download)
    if source == "package":
        corrections = assets.CORRECTIONS
        monkeypatch.setattr(assets, "CORRECTIONS", {})
        with pytest.raises(UserError, match=r"no network; .* wrong checksum of 4 files, the first "):
            assets.FILES.prepare(tmp_path)
        monkeypatch.setattr(assets, "CORRECTIONS", corrections)
    folder = assets.FILES.prepare(tmp_path)
    for name in assets.SHA256:
        assert (folder / name).read_bytes() == (right / name).read_bytes()
    assert len(assets.SHA256) == 54
    assert {path.name for path in tmp_path.iterdir()} == {"humanoid_bench"}


def test_damaged_and_missing_files(robot_dir: Path, humanoid: Command, tmp_path: Path) -> None:
    copy = assets.folder(tmp_path)
    shutil.copytree(assets.folder(robot_dir), copy)
    assert assets.check(tmp_path) == copy
    damaged = copy / "robots/h1_pos.xml"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    status, printed = humanoid(f"data_dir={tmp_path}")
    assert status == 1
    assert f"error: {damaged} is damaged: its SHA-256 is not" in printed
    assert f"fetch the models with: python -m scripts.prepare_data humanoid --data-dir {tmp_path}\n" in printed
    damaged.unlink()
    status, printed = humanoid(f"data_dir={tmp_path}")
    assert status == 1
    assert f"error: {damaged} is missing; fetch" in printed
    assert not (tmp_path / "outputs" / "humanoid").exists()
