"""Several training processes at once, on one machine's cores or one GPU."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import pandas as pd

from scripts.benchmark.plan import Case
from scripts.benchmark.timing import Limit, spread

COUNTS = {"cpu": (1, 2), "cuda": (1, 4)}
SECONDS = {"cpu": 20.0, "cuda": 4.0}
START = {"cpu": 15.0, "cuda": 8.0}  # seconds until a process is ready, expected


def several(module: str, device: str, name: str) -> Case:
    """N processes together, each on its share of the cores: their steps a second, a row for each N, measured once.

    Each process is `python -m <module> <device> <threads> <seconds>`, which calls `measure`.
    """
    loops = tuple(_title(count) for count in COUNTS[device])
    run = partial(_measure, module, device, name)
    return Case(name, loops, loops[0], run, len(loops) * START[device], len(loops) * SECONDS[device])


def _title(count: int) -> str:
    return f"ours, {count} process{'es' if count > 1 else ''}"


def _measure(module: str, device: str, case: str, loops: Sequence[str], limit: Limit) -> pd.DataFrame:
    pace = {}
    for count in (count for count in COUNTS[device] if _title(count) in loops):
        pace[_title(count)] = together(module, device, count)
        print(f"{case}: {_title(count)}: {pace[_title(count)]:.0f} steps/s", flush=True)
    alone = pace[_title(COUNTS[device][0])]
    return pd.DataFrame(
        {"case": case, "loop": loop, **spread([rate], "steps_per_second"), "over_ours": alone / rate}
        for loop, rate in pace.items()
    )


def together(module: str, device: str, count: int) -> float:
    """Steps a second of `count` processes.

    Raises:
        RuntimeError: one of them failed.
    """
    threads = max(1, (os.cpu_count() or 1) // count)
    command = [sys.executable, "-m", module, device, str(threads), str(SECONDS[device])]
    started: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # it is ready, or has ended
        for process in started:  # all begin now
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write("go\n")
                process.stdin.flush()
        printed = [process.communicate()[0] for process in started]
        if failed := [process.returncode for process in started if process.returncode]:
            raise RuntimeError(f"{len(failed)} of {count} processes failed: {' '.join(command[1:])}")
        return sum(map(float, printed))
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()


def measure(advance: Callable[[], int], wait: Callable[[], object], seconds: float) -> None:
    """One of the processes: says when it is ready, waits for the word, prints its steps a second.

    `advance` returns how many steps it has taken, `wait` waits for the device.
    """
    print("ready", flush=True)
    sys.stdin.readline()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        steps += advance()
    wait()
    print(steps / (time.perf_counter() - started))
