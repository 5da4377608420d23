"""How every script ends: an error is one line on stderr and a non-zero status, never a traceback."""

import os
import signal
import sys
from collections.abc import Callable

from experiments.common.errors import UserError


def run(main: Callable[[], int | None]) -> int:
    """Call a script's `main`; the exit status of the process: what `main` returns, 0 for None.

    A reader of the output that closes it early, as `| head` does, is no error and ends the script quietly.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # Python flushes stdout once more at exit, which must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
