"""The native humanoid environment step by step beside HumanoidBench's own:
`python -m tests.experiments.humanoid.compare_upstream`.

Both begin episodes with the same seeds and take the same random actions, kept small in half of the episodes so that the
robot stands longer; every observation, reward, term of a reward and end of an episode is compared. It needs
HumanoidBench's package (README) and the models, and writes a CSV and a table.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pandas as pd

from experiments.common.fetch import default_data_dir
from experiments.humanoid import assets, envs
from experiments.humanoid.tasks import TASKS
from scripts import command

LONGEST = 1000  # steps of an episode
GENTLE = 0.2  # share of the range that gentle actions keep to


def compare(task: str, episodes: int, data_dir: Path) -> dict[str, Any]:
    """Largest absolute differences over some episodes of a task, and how fast both are."""
    ours, theirs = envs.make(task, "native", data_dir), envs.make(task, "humanoid_bench", data_dir)
    worst = {"observation": 0.0, "reward": 0.0, "terms": 0.0}
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    steps = terminated = disagreements = 0
    for episode in range(episodes):
        rng = np.random.default_rng(episode)
        reach = 1.0 if episode % 2 else GENTLE
        pair = [env.reset(seed=episode)[0] for env in (ours, theirs)]
        worst["observation"] = max(worst["observation"], float(np.abs(pair[0] - pair[1]).max()))
        for _ in range(LONGEST):
            action = rng.uniform(-reach, reach, 19).astype(np.float32)
            outcomes = []
            for name, env in (("ours", ours), ("theirs", theirs)):
                started = time.perf_counter()
                outcomes.append(env.step(action))
                seconds[name].append(time.perf_counter() - started)
            a, b = outcomes
            worst["observation"] = max(worst["observation"], float(np.abs(a[0] - b[0]).max()))
            worst["reward"] = max(worst["reward"], abs(a[1] - b[1]))
            worst["terms"] = max(worst["terms"], *(abs(a[4][key] - b[4][key]) for key in a[4]))
            disagreements += bool(a[2]) != bool(b[2])
            steps += 1
            if a[2] or b[2]:
                terminated += 1
                break
    rates = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    return {
        "task": task, "episodes": episodes, "steps": steps, "terminated": terminated,
        **{f"{name}_error": error for name, error in worst.items()}, "ends_apart": disagreements,
        "native_steps_per_second": rates["ours"], "upstream_steps_per_second": rates["theirs"],
        "mujoco": mujoco.__version__,
    }  # fmt: skip


def table(results: pd.DataFrame) -> str:
    """Markdown."""
    shown = results[["task", "episodes", "steps", "terminated"]].copy()
    for column in ("observation_error", "reward_error", "terms_error"):
        shown["largest error, " + column.removesuffix("_error")] = results[column].map("{:.0e}".format)
    shown["ends that differ"] = results.ends_apart
    shown["native / upstream, steps a second"] = (
        results.native_steps_per_second / results.upstream_steps_per_second
    ).map("{:.2f}".format)
    return shown.to_markdown(index=False, disable_numparse=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.experiments.humanoid.compare_upstream", description=__doc__)
    parser.add_argument("--episodes", type=int, default=20, help="of each task (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="folder (default: %(default)s)")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), help="default: %(default)s")
    arguments = parser.parse_args()
    envs.resolve_backend("humanoid_bench")
    assets.check(arguments.data_dir)
    results = pd.DataFrame(compare(task, arguments.episodes, arguments.data_dir) for task in TASKS)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / "upstream-comparison"
    results.to_csv(stem.with_suffix(".csv"), index=False)
    text = (
        "# The native environment beside HumanoidBench's own package, step by step\n\n"
        f"{table(results)}\n\nMuJoCo {mujoco.__version__}; same seeds, same random actions (gentle in every second "
        "episode). Speeds are medians of single steps taken in turns in one process.\n"
    )
    stem.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(command.run(main))
