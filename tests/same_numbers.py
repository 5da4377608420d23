"""Whether a change has kept every number: `python -m tests.same_numbers [commit]` (default: HEAD).

Runs every domain with every method at scale=smoke on the CPU, with one thread, in a checkout of the commit and in the
working tree, and compares all metric rows to the bit, but for clock readings. Both use the data in `FIRE_DATA`. What
only one of the two has, a method or a metric, is listed and is no difference.
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
METHODS = {
    "vision": ["none", "shrink_perturb", "full_reset", "fire", "rescale"],
    "language": ["none", "shrink_perturb", "full_reset", "fire", "rescale"],
    "atari": ["none", "shrink_perturb", "full_reset", "fire", "rescale", "plasticity_injection"],
    "humanoid": ["none", "shrink_perturb", "full_reset", "fire", "rescale", "plasticity_injection"],
}
CLOCK = ("speed/", "reset/seconds")
Runs = dict[tuple[str, str], list[dict[str, Any]]]


def run(tree: Path, outputs: Path) -> Runs:
    """The metric rows of each domain and method, trained by the code in `tree`."""
    found: Runs = {}
    for domain, methods in METHODS.items():
        command = [
            sys.executable, "-m", f"experiments.{domain}", "-m", f"method={','.join(methods)}", "scale=smoke",
            "device=cpu", "threads=1", "wandb.mode=disabled", f"outputs_dir={outputs / domain}",
        ]  # fmt: skip
        subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True, stdout=sys.stderr)
        for done in sorted((outputs / domain).glob(f"{domain}/*/*/done")):
            rows = [json.loads(line) for line in (done.parent / "metrics.jsonl").read_text().splitlines()]
            kept = [{key: value for key, value in row.items() if not key.startswith(CLOCK)} for row in rows]
            found[domain, done.parent.name.rsplit("-", 2)[0]] = kept
    return found


def differences(before: Runs, after: Runs) -> list[str]:
    """A line for each run in which a number differs."""
    lines = []
    for run_of in sorted(before.keys() & after.keys()):
        old, new = before[run_of], after[run_of]
        changed = {
            key
            for one, other in zip(old, new, strict=False)
            for key in one.keys() & other.keys()
            if json.dumps(one[key]) != json.dumps(other[key])
        }
        if len(old) != len(new) or changed:
            lines.append(f"{' '.join(run_of)}: {len(old)} and {len(new)} rows; different: {', '.join(sorted(changed))}")
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
    for run_of in sorted(before.keys() ^ after.keys()):
        print(f"{' '.join(run_of)}: only {'before' if run_of in before else 'after'}")
    keys = [{key for rows in runs.values() for row in rows for key in row} for runs in (before, after)]
    for name, only in (("before", keys[0] - keys[1]), ("after", keys[1] - keys[0])):
        if only:
            print(f"metrics only {name}: {', '.join(sorted(only))}")
    found = differences(before, after)
    print("\n".join(found) or f"{len(before.keys() & after.keys())} runs are equal to the bit")
    return int(bool(found) or not before.keys() & after.keys())


if __name__ == "__main__":
    sys.exit(main())
