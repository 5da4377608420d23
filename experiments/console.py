"""To be imported first by every command: what happens on the terminal when something unusual does."""

import io
import os
import signal
import sys
from types import FrameType, TracebackType


def _in_one_line(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Ctrl-C: Python's KeyboardInterrupt, but while modules are imported the process ends at once.

    An exception in the middle of an import passes through C++ that cannot have one (PyTorch's then calls abort()).
    """
    inner = frame
    while inner is not None:
        if inner.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"interrupted\n")
            os._exit(128 + signum)
        inner = inner.f_back
    signal.default_int_handler(signum, frame)


sys.excepthook = _in_one_line
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores it
    signal.signal(signal.SIGINT, _interrupt)
for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, io.TextIOWrapper):
        _stream.reconfigure(errors="backslashreplace")  # where the locale knows no more than ASCII
