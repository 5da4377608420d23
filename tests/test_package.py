"""The wheel: the library alone, under a name that collides with no other package."""

import os
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

BOTH = """
import torch, fire, fire_reinit
model = torch.nn.Linear(3, 3)
optimizer = torch.optim.Adam(model.parameters())
print(fire_reinit.reset_state(optimizer, fire_reinit.fire_(model)))
print(fire.Fire(lambda x: x + 1, command=["41"]))
print(fire_reinit.__file__, fire.__file__)
"""


@pytest.mark.slow
def test_wheel_beside_the_fire_of_the_package_index(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("fire_reinit-*.whl")
    packed = zipfile.ZipFile(wheel)
    names = packed.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"fire_reinit"}
    assert "fire_reinit/py.typed" in names
    (metadata,) = [name for name in names if name.endswith("METADATA")]
    fields = message_from_string(packed.read(metadata).decode())
    assert fields["Requires-Dist"] == "torch>=2.6"
    assert "import fire_reinit as fire" in fields.get_payload()
    assert "Typing :: Typed" in fields.get_all("Classifier")
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*install, str(wheel), "fire", "termcolor"], check=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    result = subprocess.run(
        [sys.executable, "-c", BOTH], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    count, called, places = result.stdout.splitlines()[0], "42", result.stdout.splitlines()[-1]
    assert count == "1"
    assert called in result.stdout.splitlines()
    assert all(str(target) in place for place in places.split())
