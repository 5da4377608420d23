"""Several training processes at once, on one machine's cores or one GPU."""

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pandas as pd

COUNTS = {"cpu": (1, 2), "cuda": (1, 2, 4, 8)}
SECONDS = 20.0


def together(module: str, device: str, case: str) -> pd.DataFrame:
    """Steps a second of N processes together, each on its share of the cores: a row for each N.

    Each process is `python -m <module> <device> <threads> <seconds>`, which calls `measure`.
    """
    rates = {}
    for count in COUNTS[device]:
        threads = max(1, (os.cpu_count() or 1) // count)
        command = [sys.executable, "-m", module, device, str(threads), str(SECONDS)]
        started = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # it is ready
        for process in started:  # all begin now
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        rates[count] = sum(float(process.communicate()[0]) for process in started)
        print(f"{count} processes: {rates[count]:.0f} steps/s", flush=True)
    return pd.DataFrame(
        {
            "case": case,
            "loop": f"ours, {count} process{'es' if count > 1 else ''}",
            "steps_per_second": rate,
            "over_ours": rates[1] / rate,
            "repeats": 1,
        }
        for count, rate in rates.items()
    )


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
