"""The progress of a run: one live line on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from sweeps.store.records import Record

PLAIN_EVERY_S = 5.0
"""Shortest time between two lines without a terminal."""


class RunProgress:
    """Shows the cells done, running and failed, their rate and the time left; used as a context."""

    def __init__(self, total: int, trials: int = 0, console: Console | None = None) -> None:
        self.total, self.done, self.failed = total, 0, 0
        self._trials, self._trials_ended = trials, 0
        self._running: set[str] = set()
        self._most_running = 0
        self._printed = ""
        self._start = self._last = time.monotonic()
        self._console = console or Console(file=sys.stderr)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (SpinnerColumn(), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("starting Ray", total=total)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self._most_running:
            self._print()

    def notice(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def started(self, key: str, kind: str = "cell") -> None:
        """Count a task that has started."""
        self._running.add(key)
        self._most_running = max(self._most_running, len(self._running))
        if not self.done and not self.failed and len(self._running) == 1:
            self._start = time.monotonic()  # without the time that Ray takes to start
        self._show()

    def ended(self, kind: str, record: Record) -> None:
        """Count a task that has ended, as done or failed."""
        self._running.discard(record["key"])
        self._trials_ended += kind == "trial"
        if record["state"] == "failed":
            self.failed += 1
        else:
            self.done += 1
        self._show()

    def line(self) -> str:
        """Format the counts, such as `12/60 done, 2 running, 0 failed, 4.0 cells/min, 0:12:00 left`."""
        ended, elapsed = self.done + self.failed, time.monotonic() - self._start
        text = f"{self.done}/{self.total} done, {len(self._running)} running, {self.failed} failed"
        if self._trials:
            text += f", {self._trials_ended}/{self._trials} search trials"
        if ended and elapsed > 0:
            left = round((self.total - ended) * elapsed / ended)
            text += f", {60 * ended / elapsed:.1f}{'' if self._trials else ' cells'}/min"
            text += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left" if left else ""
        return text

    def _show(self) -> None:
        ended = self.done + self.failed
        if self._bar:
            self._bar.update(self._task, completed=ended, total=self.total, description=self.line())
        # After an end, wait until the worker has its next task, so that the line does not show it idle.
        elif ended and time.monotonic() - self._last > PLAIN_EVERY_S:
            if len(self._running) < self._most_running and ended + len(self._running) < self.total:
                return
            self._last = time.monotonic()
            self._print()

    def _print(self) -> None:
        line = self.line()
        if line != self._printed:
            self._console.print(line, highlight=False)
        self._printed = line
