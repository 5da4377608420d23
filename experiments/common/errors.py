"""What can go wrong in a way a user can mend, and how a run is asked to stop."""

import signal
from types import FrameType, TracebackType


class UserError(Exception):
    """Bad input or circumstances, said in one line: what, where, and what would be valid."""


class Interrupted(BaseException):
    """The run was asked to stop and has saved what it did. Not an Exception, so that it ends a whole sweep."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_status = 128 + signum


class StopSignals:
    """Turns Ctrl-C, SIGTERM and SIGUSR1 (a scheduler's warning) into a flag that loops look at between steps.

    A second Ctrl-C stops at once, as usual.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for signum in self.SIGNALS:
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)
