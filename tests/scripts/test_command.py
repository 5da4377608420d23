"""How every script ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.common.errors import UserError
from scripts import command
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no such thing"), 1, "error: no such thing\n"),
        (PermissionError(13, "Permission denied", "out"), 1, "error: [Errno 13] Permission denied: 'out'\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_one_line(error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    assert command.run(main) == status
    assert capsys.readouterr().err == line


def test_status_is_that_of_main() -> None:
    assert [command.run(lambda: None), command.run(lambda: 2)] == [0, 2]


def test_a_reader_that_stops_is_no_error(tmp_path: Path) -> None:
    """As in `python -m scripts.clean outputs | head -1`, with more output than a pipe holds."""
    code = "import sys; from scripts import command; sys.exit(command.run(lambda: print('line\\n' * 10**6)))"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == ""
