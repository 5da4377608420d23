"""The wheel: the library alone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_wheel_ships_fire_alone_and_imports(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("fire_reinit-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"fire"}
    code = "import fire, torch; print(fire.__file__); fire.fire_(torch.nn.Linear(3, 3))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(wheel) in result.stdout
