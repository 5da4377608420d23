"""To be imported first by every command: Ctrl-C while the rest is imported ends in one line, not in a traceback."""

import sys
from types import TracebackType


def _in_one_line(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _in_one_line
