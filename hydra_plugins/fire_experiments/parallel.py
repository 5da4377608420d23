"""Several jobs of a sweep at once on one machine, each in a fresh process on a device that no other uses."""

import contextlib
import logging
import os
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.common.errors import Interrupted, UserError
from experiments.common.files import read_object
from experiments.common.launch import OUTCOME

logger = logging.getLogger("fire")

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Slot:
    """A place where one job at a time may run.

    Attributes:
        name: of the place; two sweeps of a user on a machine that name the same do not use it at once.
        environment: variables that send a process there.
        overrides: further words for a job there.
    """

    name: str
    environment: dict[str, str]
    overrides: list[str]
    lock: FileLock = field(init=False)

    def __post_init__(self) -> None:
        folder = Path(tempfile.gettempdir()) / f"fire-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():  # others' links could lead anywhere
                raise PermissionError("it is another user's")
        except OSError as error:
            raise UserError(f"cannot keep the locks of devices in {folder}: {error}; set TMPDIR") from error
        self.lock = FileLock(folder / f"{self.name.replace('/', '_')}.lock")

    def take(self) -> bool:
        """Take the place if it is free."""
        with contextlib.suppress(Timeout):
            self.lock.acquire(timeout=0)
            return True
        return False


class Running:
    """The process of job `number` of a sweep, started with these `overrides` in a `slot` that is taken for it."""

    def __init__(self, domain: str, number: int, overrides: Sequence[str], slot: Slot, scratch: Path) -> None:
        self.number, self.slot, self._outcome = number, slot, scratch / f"{number}.json"
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"experiments.{domain}", *slot.overrides, *overrides],
            env={**os.environ, **slot.environment, "PYTHONPATH": path, OUTCOME: str(self._outcome)},
            stdin=subprocess.PIPE,  # its end shows the job that this process has died
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        )  # fmt: skip
        logger.info("[%d] started on %s: %s", number, slot.name, shlex.join(overrides))
        self._reader = threading.Thread(target=self._relay, daemon=True)
        self._reader.start()

    def _relay(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip():
                logger.info("[%d] %s", self.number, line.rstrip())

    def outcome(self) -> dict[str, Any]:
        """What the ended job has left or, where it has left nothing, its exit status."""
        with contextlib.suppress(UserError):
            return read_object(self._outcome)
        status = self.process.returncode
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        logger.error("[%d] error: the job's process was %s", self.number, how)
        minutes = f"{(time.perf_counter() - self._started) / 60:.1f}"
        return {"run": f"[{self.number}]", "status": "failed", "result": how, "path": "", "minutes": minutes}

    def clean_up(self) -> None:
        """After the process has ended: end what it started, and free its place."""
        self._reader.join(timeout=1)  # longer only if a child of the job's still holds its output
        self.kill()
        self._reader.join(timeout=5)
        self.slot.lock.release()

    def kill(self) -> None:
        """End the process and what it started at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the job leads a process group


def run_parallel(
    domain: str,
    jobs: Sequence[Sequence[str]],
    later: Collection[str],
    slots: Sequence[Slot],
    at_once: int,
    outcomes: dict[int, dict[str, Any]],
) -> None:
    """Run `python -m experiments.<domain>` with each of `jobs`, lists of overrides, on the slots that are free,
    `at_once` of them at most at a time. Each line a job prints is shown with its number.

    Args:
        later: the keys of settings that do not decide phase 0.
        outcomes: gets the outcome of each job when it ends, as `experiments.common.launch` has it, by its number.
    """
    waiting = first_of_each_phase_0(jobs, later)
    running: list[Running] = []
    announced = False
    with tempfile.TemporaryDirectory() as scratch:
        try:
            while waiting or running:
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    job.clean_up()
                    outcomes[job.number] = job.outcome()
                for slot in slots:
                    if not waiting or len(running) == at_once:
                        break
                    if all(job.slot is not slot for job in running) and slot.take():
                        number = waiting.pop(0)
                        running.append(Running(domain, number, jobs[number], slot, Path(scratch)))
                if waiting and len(running) < at_once and not announced:
                    logger.info("%d of %d jobs run: other sweeps use the other devices", len(running), at_once)
                    announced = True
                time.sleep(0.1)
        except BaseException:
            logger.info("stopping %d jobs, which save first", len(running))
            _stop(running)
            raise


def first_of_each_phase_0(jobs: Sequence[Sequence[str]], later: Collection[str]) -> list[int]:
    """The jobs' numbers in the order to start them in: first one for each phase 0 they share, so that the others find
    it trained instead of waiting for it. Jobs that differ in settings `later` alone share it."""
    seen: dict[tuple[str, ...], int] = {}
    turns = []
    for number, overrides in enumerate(jobs):
        keys = {word: word.lstrip("+").split("=")[0] for word in overrides}
        shared = tuple(
            word for word, key in keys.items() if not any(key == one or key.startswith(f"{one}.") for one in later)
        )
        turns.append((seen.setdefault(shared, 0), number))
        seen[shared] += 1
    return [number for _, number in sorted(turns)]


def _stop(running: Sequence[Running]) -> None:
    """Have all jobs save and end; a second Ctrl-C ends them at once."""
    for job in running:
        job.process.terminate()
    for job in running:
        while job.process.poll() is None:
            with contextlib.suppress(Interrupted):  # it is being done
                try:
                    job.process.wait()
                except KeyboardInterrupt:
                    for other in running:
                        other.kill()
        job.clean_up()
