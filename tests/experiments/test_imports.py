"""Every domain runs without the packages that it does not need."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DOMAINS, REPOSITORY, run_dirs, slow

# Of the packages that an experiment may need beyond those all of them do; `matplotlib` and the like are for reports.
OPTIONAL = {
    "ale_py", "cv2", "datasets", "gymnasium", "huggingface_hub", "imageio_ffmpeg", "markdown_it", "matplotlib",
    "mujoco", "pandas", "pyarrow", "scipy", "tiktoken", "torchvision", "transformers", "wandb", "wandb_workspaces",
}  # fmt: skip
NEEDED = {"vision": set(), "language": set(), "atari": {"ale_py", "gymnasium"}, "humanoid": {"mujoco", "gymnasium"}}
TINY = {
    "vision": ["budget.train_images=100", "budget.test_images=20", "budget.epochs=[1,1]"],
    "language": ["budget.iterations=[2,1]"],
    "atari": [],
    "humanoid": ["env.backend=native", "budget.steps=[200,100]", "budget.eval_every=100", "budget.eval_episodes=1"],
}
# `python -m <second argument>` where no importer finds the packages that the first names.
BLOCKED = """
import runpy, sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

blocked, module = set(sys.argv[1].split(",")), sys.argv[2]
sys.meta_path[:] = map(Without, sys.meta_path)
del sys.argv[1:3]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run_without(blocked: set[str], module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m <module>` where some packages are not installed."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, ",".join(sorted(blocked)), module, *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("domain", ["vision", *(slow(name) for name in DOMAINS if name != "vision")])
def test_a_run_needs_no_package_of_another_domain(
    domain: str, request: pytest.FixtureRequest, made_text: tuple[Path, list[str]], cache: Path, tmp_path: Path
) -> None:
    if domain in ("vision", "humanoid"):
        request.getfixturevalue({"vision": "data_dir", "humanoid": "robot_dir"}[domain])
    folder, words = made_text if domain == "language" else (cache, [])
    result = run_without(
        OPTIONAL - NEEDED[domain], f"experiments.{domain}", *words, *TINY[domain], "method=none", "scale=smoke",
        "device=cpu", "threads=1", "wandb.mode=disabled", f"data_dir={folder}", f"outputs_dir={tmp_path}",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(run_dirs(tmp_path)) == 1


@pytest.mark.parametrize("domain", ["atari", "humanoid"])
def test_a_video_that_cannot_be_written_is_said_before_training(domain: str, robot_dir: Path, tmp_path: Path) -> None:
    result = run_without(
        {"imageio_ffmpeg"}, f"experiments.{domain}", "record_video=true", "scale=smoke", "device=cpu",
        "wandb.mode=disabled", f"outputs_dir={tmp_path}", f"data_dir={robot_dir}",
    )  # fmt: skip
    assert result.returncode == 1
    errors = [line for line in result.stdout.splitlines() if "error" in line]
    reason = "No module named 'imageio_ffmpeg'"
    assert errors == [
        f"error: record_video=true needs a package that is not there ({reason}): pip install imageio-ffmpeg"
    ]
    assert not run_dirs(tmp_path)


def test_blocking_blocks(tmp_path: Path) -> None:
    """The test above means something: without a package that is needed there is an error."""
    result = run_without(
        {"ale_py"}, "experiments.atari", "scale=smoke", "wandb.mode=disabled", f"outputs_dir={tmp_path}"
    )
    assert result.returncode != 0
    assert "ale_py" in result.stdout + result.stderr


def test_a_missing_package_is_an_error_of_its_domains_tests_alone() -> None:
    files = [f"tests/experiments/{folder}/test_cuda.py" for folder in ("vision", "language", "rl")]
    files.append("tests/experiments/humanoid/test_native.py")
    arguments = ("--collect-only", "-q", "-p", "no:cacheprovider", *files)
    printed = run_without(OPTIONAL - {"transformers"}, "pytest", *arguments).stdout
    for file in files:
        assert (f"{file}::" in printed) == ("native" not in file), printed
        assert (f"ERROR {file}" in printed) == ("native" in file), printed
    assert "ModuleNotFoundError: No module named 'gymnasium'" in printed
