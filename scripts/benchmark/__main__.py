"""`python -m scripts.benchmark core|vision|language|atari|humanoid`: times, ratios, the machine, as CSV and Markdown.

On 2 idle CPU cores each takes 6 to 8 minutes; nothing else should run meanwhile.
"""

import argparse
import platform
import sys
from pathlib import Path

import torch

from experiments.common.workspace import machine
from scripts.benchmark import atari, core, humanoid, language, vision

BENCHMARKS = {"core": core, "vision": vision, "language": language, "atari": atari, "humanoid": humanoid}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark", description=__doc__)
    parser.add_argument("benchmark", choices=sorted(BENCHMARKS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark"), help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    benchmark = BENCHMARKS[arguments.benchmark]
    torch.set_float32_matmul_precision("highest")
    try:
        results = benchmark.run(arguments.device, arguments.repeats)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    threads = f", {torch.get_num_threads()} threads" if arguments.device == "cpu" else ""
    where = f"{machine(arguments.device)}{threads}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"{arguments.benchmark}-{arguments.device}"
    results.assign(machine=where).to_csv(stem.with_suffix(".csv"), index=False)
    text = f"{where}\n\n{benchmark.table(results)}\n"
    stem.with_suffix(".md").write_text(text)
    print(f"\n{text}\nwritten: {stem}.csv, {stem}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
