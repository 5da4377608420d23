"""The core is tested on the CPU in both of its ways, and on a GPU where there is one."""

import pytest

from fire import gram
from tests.conftest import CUDA


@pytest.fixture
def worked_as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done on a GPU is done on the CPU."""
    monkeypatch.setattr(gram, "GPUS", ["cuda", "cpu"])


@pytest.fixture(params=["cpu", "cpu-as-gpu", pytest.param("cuda", marks=CUDA)])
def device(request: pytest.FixtureRequest) -> str:
    """The test runs on the CPU, on it as on a GPU, and on a GPU where there is one."""
    if request.param == "cpu-as-gpu":
        request.getfixturevalue("worked_as_on_gpu")
        return "cpu"
    return request.param
