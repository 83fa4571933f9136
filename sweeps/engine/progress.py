"""The progress of a run: live lines on a terminal, plain lines elsewhere."""

import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn

from pm25.errors import InputError
from sweeps.store import running
from sweeps.store.records import Record

PLAIN_EVERY_S = 5.0
"""Shortest time between two lines without a terminal."""

READ_EVERY_S = 2.0
"""Time between two readings of what is trained, on a terminal."""

READ_PLAIN_EVERY_S = 60.0
"""The same without a terminal, where each reading prints a line unless a training has ended meanwhile."""

SHOWN = 8
"""Largest number of trainings that are shown one by one: those that have run longest."""


class RunProgress:
    """Shows the cells done, running and failed, their rate and the time left; used as a context.

    `read` returns the progress of the trainings with the given keys. While one of them is long, its epoch and
    its validation RMSE are shown, and the time left counts the epochs that have ended.
    """

    def __init__(
        self,
        total: int,
        trials: int = 0,
        console: Console | None = None,
        read: Callable[[Sequence[str]], Sequence[running.Progress]] | None = None,
    ) -> None:
        self.total, self.done, self.failed = total, 0, 0
        self._read, self._trained = read, list[running.Progress]()
        self._lines: dict[str, TaskID] = {}
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._trials, self._trials_ended = trials, 0
        self._running: dict[str, None] = {}
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
        if self._read is not None:
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._bar:
            self._bar.stop()
        if self._most_running:
            self._print()

    def notice(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def started(self, key: str, kind: str = "cell") -> None:
        """Count a task that has started."""
        self._running[key] = None
        self._most_running = max(self._most_running, len(self._running))
        if not self.done and not self.failed and len(self._running) == 1:
            self._start = time.monotonic()  # without the time that Ray takes to start
        self._show()

    def ended(self, kind: str, record: Record) -> None:
        """Count a task that has ended, as done or failed."""
        self._running.pop(record["key"], None)
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
        if elapsed <= 0:
            return text
        if ended:
            per_minute, what = 60 * ended / elapsed, "" if self._trials else " cells"
            text += f", {per_minute:.1f}{what}/min" if per_minute >= 1 else f", {60 * per_minute:.1f}{what}/h"
        spent = ended + sum(one.share for one in self._trained if one.key in self._running)
        left = round((self.total - spent) * elapsed / spent) if spent else 0
        return text + (f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left" if left else "")

    def _follow(self) -> None:
        """Read what the running trainings have written, until the run ends."""
        assert self._read is not None
        while not self._stop.wait(READ_EVERY_S if self._bar else READ_PLAIN_EVERY_S):
            keys, ended = [*self._running], self.done + self.failed
            try:
                self._trained = list(self._read(keys))
            except InputError:
                continue  # a record that cannot be stored ends the run; this is a view
            if self._bar:
                self._draw()
            elif time.monotonic() - self._last >= READ_PLAIN_EVERY_S and ended == self.done + self.failed:
                self._last = time.monotonic()
                self._print()
                for one in self._shown:
                    self.notice(f"  {one.line}")

    @property
    def _shown(self) -> list[running.Progress]:
        """Trainings to show one by one."""
        return [*itertools.islice((one for one in self._trained if one.key in self._running), SHOWN)]

    def _draw(self) -> None:
        """Draw a line for each of the trainings that have run longest."""
        assert self._bar is not None
        shown = {one.key: one for one in self._shown}
        for key in self._lines.keys() - shown.keys():
            self._bar.remove_task(self._lines.pop(key))
        for key, one in shown.items():
            if key not in self._lines:
                self._lines[key] = self._bar.add_task("", total=one.max_epochs)
            self._bar.update(self._lines[key], completed=one.epoch, description=one.line)
        self._bar.update(self._task, description=self.line())

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
