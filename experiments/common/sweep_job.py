"""A process that runs one job of a sweep (`hydra_plugins/fire_experiments`)."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

# The file in which a job leaves its outcome. Where the variable is set, the process is a job of a sweep.
OUTCOME = "FIRE_OUTCOME"


def is_job() -> bool:
    """Whether this process is one."""
    return OUTCOME in os.environ


def stop_with_parent() -> None:
    """End this job as by SIGTERM when the process of its sweep dies."""

    def watch() -> None:
        os.read(0, 1)  # returns when the other end is closed; sys.stdin would be locked at the interpreter's end
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def leave_outcome(outcome: dict[str, Any]) -> None:
    """Leave for the sweep how this job ended."""
    Path(os.environ[OUTCOME]).write_text(json.dumps(outcome))
