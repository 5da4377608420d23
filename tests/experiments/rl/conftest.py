"""What is tested in the same way of both agents."""

from importlib import import_module
from typing import Any

import pytest

from tests.conftest import Command, slow

AGENTS = ("atari", "humanoid")
# For a test whose fast half is enough for every day: Atari's network takes most of the time.
atari_is_slow = pytest.mark.parametrize("name", [slow("atari"), "humanoid"], indirect=True)


@pytest.fixture(params=AGENTS)
def name(request: pytest.FixtureRequest) -> str:
    """A domain."""
    if request.param == "humanoid":
        request.getfixturevalue("robot_dir")
    return request.param


@pytest.fixture
def agent(name: str) -> Any:
    """`tests.experiments.<domain>.agent`, imported only now, so that the other's tests run without its packages."""
    return import_module(f"tests.experiments.{name}.agent")


@pytest.fixture
def command(name: str, request: pytest.FixtureRequest) -> Command:
    """The domain's command line."""
    return request.getfixturevalue(name)
