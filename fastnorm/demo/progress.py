"""A small progress bar on stderr: redrawn in place on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

WIDTH = 30
REDRAW_S = 0.1
# In a log a line is kept, so there are few of them.
LINE_S = 10.0


class Progress:
    """Counts towards total; use as a context manager so that an error leaves a clean line behind."""

    def __init__(self, total: int, label: str) -> None:
        self.total = max(total, 1)
        self.label = label
        self.done = 0
        self.live = sys.stderr.isatty() and not os.environ.get("CI")
        self.start = self.shown = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def advance(self, count: int = 1, *, label: str | None = None) -> None:
        """Count further; redraw if the last drawing is old enough."""
        self.done += count
        self.label = label or self.label
        now = time.monotonic()
        if now - self.shown >= (REDRAW_S if self.live else LINE_S):
            self.shown = now
            self._draw(now - self.start)

    def _draw(self, elapsed: float) -> None:
        share = min(self.done / self.total, 1.0)
        left = elapsed * (1 - share) / share if share else 0.0
        text = f"{share:4.0%}  {self.label}, {elapsed:.0f} s gone, about {left:.0f} s left"
        if self.live:
            filled = round(WIDTH * share)
            text = f"\r\x1b[2K[{'#' * filled}{'.' * (WIDTH - filled)}] {text}"
        print(text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the bar from its line, so that something else can be printed there."""
        if self.live:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
