"""A bar where someone watches, plain lines where a file does."""

import logging
import sys
import time

from tqdm import tqdm

logger = logging.getLogger("fire")


class Progress:
    """Progress of one phase, in samples; shows throughput, time left and the newest metrics.

    In a terminal it is one moving bar, unless it is not to be `shown`; elsewhere a line now and then: with new metrics
    at most one every `LINE_SECONDS`, without any one every `QUIET_SECONDS`.
    """

    LINE_SECONDS, QUIET_SECONDS = 10.0, 60.0

    def __init__(self, title: str, total: int, start: int, unit: str, shown: bool = True) -> None:
        self._title, self._total, self._done, self._start, self._unit = title, total, start, start, unit
        self._began = self._told = time.monotonic()
        self._shown: dict[str, float] = {}
        self._bar = tqdm(
            total=total, initial=start, desc=title, unit=unit, unit_scale=True, file=sys.stdout, leave=False,
            disable=not (shown and sys.stdout.isatty()), dynamic_ncols=True,
        )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, amount: int) -> None:
        """Count `amount` more."""
        self._done += amount
        self._bar.update(amount)
        if self._bar.disable and time.monotonic() - self._told >= self.QUIET_SECONDS:
            self._tell(f"{self._done:,} of {self._total:,}")

    def show(self, place: str, **metrics: float) -> None:
        """The newest metrics, at `place` in the training (such as an epoch)."""
        self._shown.update(metrics)
        self._bar.set_postfix(self._shown, refresh=False)
        waited = time.monotonic() - self._told
        if self._bar.disable and (waited >= self.LINE_SECONDS or self._done >= self._total):
            self._tell(place)

    def _tell(self, place: str) -> None:
        self._told = time.monotonic()
        rate = (self._done - self._start) / max(self._told - self._began, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        parts = [self._title, place, *(f"{name} {value:.4g}" for name, value in self._shown.items())]
        logger.info("%s  %s %s/s  %s left", "  ".join(parts), f"{rate:,.0f}", self._unit, tqdm.format_interval(left))
