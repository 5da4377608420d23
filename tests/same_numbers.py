"""Whether a change has kept every number: `python -m tests.same_numbers [commit]` (default: HEAD).

Runs every domain with every method at scale=smoke on the CPU, with one thread, in a checkout of the commit and in the
working tree, and compares all metric rows to the bit, but for clock readings. Both use the data in `FIRE_DATA`. Metrics
that only one of the two has are listed; a new one is no difference.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
METHODS = "method=none,shrink_perturb,full_reset,fire,rescale"
SWEEPS = [
    ("vision", METHODS), ("vision", "benchmark=continual method=fire"), ("vision", "method=fire sharpness=100"),
    ("language", METHODS), ("language", "checkpoint=best method=fire sharpness=8"),
    ("atari", f"{METHODS},plasticity_injection"), ("humanoid", f"{METHODS},plasticity_injection"),
]  # fmt: skip
CLOCK = ("speed/", "reset/seconds")
Runs = dict[tuple[str, str, str], list[dict[str, Any]]]


def run(tree: Path, outputs: Path) -> Runs:
    """The metric rows of each domain and method, trained by the code in `tree`."""
    found: Runs = {}
    for number, (domain, words) in enumerate(SWEEPS):
        folder = outputs / f"{number}"
        command = [
            sys.executable, "-m", f"experiments.{domain}", "-m", *words.split(), "scale=smoke",
            "device=cpu", "threads=1", "wandb.mode=disabled", f"outputs_dir={folder}",
        ]  # fmt: skip
        subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True, stdout=sys.stderr)
        for done in sorted(folder.glob(f"{domain}/*/*/done")):
            rows = [json.loads(line) for line in (done.parent / "metrics.jsonl").read_text().splitlines()]
            kept = [{key: value for key, value in row.items() if not key.startswith(CLOCK)} for row in rows]
            found[domain, words, done.parent.name.rsplit("-", 2)[0]] = kept
    return found


def differences(before: Runs, after: Runs) -> list[str]:
    """A line for each run that is missing, or in which a number differs or is missing. New metrics are none."""
    lines = []
    for name, old in sorted(before.items()):
        new = after.get(name)
        if new is None or len(old) != len(new):
            lines.append(f"{' '.join(name)}: {len(old)} rows before, {'none' if new is None else len(new)} after")
            continue
        pairs = [(key, one[key], other.get(key, "missing")) for one, other in zip(old, new, strict=True) for key in one]
        changed = sorted({key for key, value, now in pairs if json.dumps(value) != json.dumps(now)})
        if changed:
            lines.append(f"{' '.join(name)}: different: {', '.join(changed)}")
    return lines


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.same_numbers", description=__doc__)
    parser.add_argument("commit", nargs="?", default="HEAD")
    commit = parser.parse_args().commit
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), commit], cwd=REPOSITORY, check=True)
        try:
            before = run(tree, Path(temporary) / "before")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=REPOSITORY, check=True)
        after = run(REPOSITORY, Path(temporary) / "after")
    found = differences(before, after)
    print("\n".join(found) or f"{len(before)} runs are equal to the bit")
    return int(bool(found) or not before)


if __name__ == "__main__":
    sys.exit(main())
