"""What can go wrong in a way a user can mend, and how a run is asked to stop."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


class UserError(Exception):
    """Bad input or circumstances, in one line: what is wrong, where, and what would be valid."""


class Interrupted(BaseException):
    """The run was asked to stop and has saved what it did. Not an Exception, so that it ends a whole sweep."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.exit_status = 128 + signum


@contextmanager
def default_signals() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM end the process as if Python had not asked for them: for a wait inside a library."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class StopSignals:
    """Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 (schedulers' warnings) end the process in order.

    While `deferred`, they are only noted in `received`, for the training loop to save its state at the next step; a
    second Ctrl-C stops at once. Elsewhere there is nothing to save, and they raise Interrupted where they come.
    """

    # Windows has only the first two.
    SIGNALS = tuple(
        signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
    )

    def __init__(self, signals: Sequence[int] = SIGNALS) -> None:
        self.signals = signals
        self.received: int | None = None  # the first that came
        self._deferring = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for signum in self.signals:
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if _is_importing(frame):  # compiled modules may not survive an exception there
            threading.Timer(0.1, os.kill, (os.getpid(), signum)).start()
            return
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signum
        if not self._deferring:
            raise Interrupted(signum)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note signals while the block runs."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `deferred`, raise where a signal comes: in a block that may be long and in which nothing is saved. One
        that came before still waits for the next time the state is saved."""
        deferring, self._deferring = self._deferring, False
        try:
            yield
        finally:
            self._deferring = deferring

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)
