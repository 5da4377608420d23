"""Beside HumanoidBench's own package, where it can be imported: the same episodes, the same training."""

from pathlib import Path

import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.humanoid import envs
from experiments.humanoid.tasks import TASKS
from tests.conftest import Command, numbers, run_dirs
from tests.experiments.humanoid.compare_upstream import compare

try:
    envs.resolve_backend("humanoid_bench")
    WHY_NOT = ""
except UserError as error:
    WHY_NOT = str(error)
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"needs HumanoidBench's package: {WHY_NOT.split(';')[0]}")


@pytest.mark.parametrize("task", TASKS)
def test_step_by_step(task: str, robot_dir: Path) -> None:
    found = compare(task, 2, robot_dir)
    assert found["steps"] > 60
    assert found["ends_apart"] == 0
    for name in ("observation", "reward", "terms"):
        assert found[f"{name}_error"] < 1e-12


def test_saved_state_goes_on(robot_dir: Path) -> None:
    rng = np.random.default_rng(0)
    one, other = (envs.Player(envs.make("h1-walk", "humanoid_bench", robot_dir), 2) for _ in range(2))
    one.reset(3)
    for step in range(60):
        action = rng.uniform(-1, 1, 19).astype(np.float32)
        if step == 7:
            other.load_state_dict(one.state_dict())
        a = one.step(action)
        if step >= 7:
            b = other.step(action)
            assert np.array_equal(a.observation, b.observation)
            assert a[1:] == b[1:]
        if a.terminated:
            one.reset()
            other.reset() if step >= 7 else None


def test_training_is_the_same_on_both(humanoid: Command, tmp_path: Path) -> None:
    for backend in ("native", "humanoid_bench"):
        outputs = f"outputs_dir={tmp_path / backend}"
        status, printed = humanoid("method=fire", f"env.backend={backend}", outputs)
        assert status == 0, printed
        assert f"{backend} environment on MuJoCo" in printed
    (native,), (upstream,) = run_dirs(tmp_path / "native"), run_dirs(tmp_path / "humanoid_bench")
    assert native.name != upstream.name  # though they are never pooled
    # The terms of a reward are multiplied in another order.
    for one, other in zip(numbers(native), numbers(upstream), strict=True):
        assert one == pytest.approx(other, rel=1e-6)
