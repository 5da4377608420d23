"""Plain lines where nobody watches."""

import logging

import pytest

from experiments.common.progress import Progress


def test_tells_now_and_then_without_metrics(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(logging.getLogger("fire"), "propagate", True)
    caplog.set_level(logging.INFO, "fire")
    with Progress("phase 0", 4000, 1000, "steps") as progress:
        progress.advance(4)
        assert not caplog.messages  # not every time
        monkeypatch.setattr(Progress, "QUIET_SECONDS", 0.0)
        progress.advance(4)
        assert caplog.messages[-1].startswith("phase 0  1,008 of 4,000  ")
        monkeypatch.setattr(Progress, "LINE_SECONDS", 0.0)
        progress.show("step 1,008", loss=0.5)
    assert caplog.messages[-1].startswith("phase 0  step 1,008  loss 0.5  ")
    assert caplog.messages[-1].endswith(" left")
