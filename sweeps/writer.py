"""The process that keeps the MLflow view in step beside the training."""

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from pm25.errors import InputError
from sweeps.store import Record, Store

if TYPE_CHECKING:
    from sweeps.tracking import Tracker

PAUSE_S = 30.0
"""For so long nothing is asked of a tracking store that has just failed: it may make us wait each time.
And when there is no news for so long, it is seen to what was recorded before, or missed."""
TOLD_EVERY_S = 5.0
"""How often, once there is nothing but the view to wait for, it is told how much is left."""


class Writer:
    """Writes what was recorded before, then what is added, in a process that ends with this one.

    So neither MLflow's time nor its memory is the driver's. A tracking store that does not answer, or a
    process that is killed, costs no training: `behind` says why the view is not whole, and `Tracker.sync`
    makes up for it. Used as a context, at whose end everything is written.
    """

    def __init__(self, store: Store, uri: str | None, recorded: Iterable[Record]) -> None:
        self.behind = ""
        """Known when it is closed."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from sweeps.writer import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C ends the training; what it recorded is still to be written
        )
        self._send("open", [store.storage, store.study, uri])
        self._recorded = recorded

    def __enter__(self) -> Self:
        for record in self._recorded:
            self._send("recorded", record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def opened(self) -> None:
        """Wait until it is known; raises InputError for a store that no waiting will open."""
        answer, reason = next(self._answers(), ("dead", ""))
        if answer == "refused":
            raise InputError(reason)

    def add(self, record: Record) -> None:
        """A cell or a search trial has ended."""
        self._send("write", record)

    def describe(self, markdown: str) -> None:
        """As Tracker.describe."""
        self._send("describe", markdown)

    def close(self) -> None:
        """Wait until everything handed in is written."""
        self._send("close")
        answer = ""
        for answer, value in self._answers():
            if answer == "left":
                click.echo(f"MLflow: {value} runs left to write", err=True)
            elif answer in ("closed", "refused"):
                self.behind = value
        self._process.communicate()
        if answer not in ("closed", "refused"):
            self.behind = f"its process ended with {self._process.returncode}"

    def _send(self, verb: str, value: Any = None) -> None:
        """Waits for nothing that is asked of MLflow: the process listens all the while."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed, as `close` will say
            self._process.stdin.write(json.dumps([verb, value]) + "\n")
            self._process.stdin.flush()

    def _answers(self) -> Iterator[tuple[str, Any]]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield tuple(json.loads(line))


def serve() -> None:
    """The process: its work comes by standard input, in lines of JSON."""
    os.nice(10)  # the training comes first
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for what libraries print
    told: queue.Queue[tuple[str, Any]] = queue.Queue()
    closing = threading.Event()
    listener = threading.Thread(target=_listen, args=[told, closing], daemon=True)
    listener.start()

    def answer(what: str, value: Any = None) -> None:
        print(json.dumps([what, value]), file=answers, flush=True)

    _, (storage, study, uri) = told.get()
    try:
        view = _View(Store(storage, study), uri)
    except InputError as error:
        answer("refused", str(error))
        listener.join()
        return
    answer("open")
    verb, note, last = "", None, time.monotonic()
    while verb != "close":
        try:
            verb, value = told.get(timeout=PAUSE_S)
        except queue.Empty:
            verb, value = "idle", None
        if verb == "describe":
            note = value  # that of a view which is whole
        elif verb in ("recorded", "write"):
            view.missed.append(value)
        # What was recorded before waits for the first news: Ray starts meanwhile, and wants the processor.
        if verb in ("write", "idle"):
            view.catch_up()
        if not closing.is_set():
            last = time.monotonic()
        elif time.monotonic() - last > TOLD_EVERY_S:
            last = time.monotonic()
            answer("left", told.qsize())
    view.finish(note)
    answer("closed", view.behind)


def _listen(told: "queue.Queue[tuple[str, Any]]", closing: threading.Event) -> None:
    """At once and to the end, so that the driver never waits to be heard."""
    while not closing.is_set():
        line = sys.stdin.readline()
        if not line.endswith("\n"):
            os._exit(1)  # the driver is dead, and another may be writing to the view in a moment
        verb, value = json.loads(line)
        if verb == "close":
            closing.set()
        told.put((verb, value))


class _View:
    """The tracking store, which may fail for a while: what it missed it is told when it answers again."""

    def __init__(self, store: Store, uri: str | None) -> None:
        """Raises InputError for a store that no waiting will open."""
        from sweeps.tracking import Unreachable

        self._store, self._uri = store, uri
        self._tracker: Tracker | None = None
        self._in_step = False
        self._rests_until = -math.inf
        self.missed: list[Record] = []
        self.behind = ""
        try:
            self._tracker = self._open()
        except Unreachable as error:
            self._failed(error)

    def catch_up(self) -> None:
        """Write what it missed, unless it failed a moment ago."""
        if time.monotonic() >= self._rests_until:
            self._try(self._write)

    def finish(self, note: str | None) -> None:
        """The last attempt; `note` is for a view that is whole (`Tracker.describe`)."""
        self._try(partial(self._write, note))

    def _write(self, note: str | None = None) -> None:
        self._tracker = self._tracker or self._open()
        if self._in_step:
            for record in self.missed:
                self._tracker.write(record)
        else:
            self._tracker.sync(self.missed)
        self.missed, self._in_step = [], True
        if note is not None:
            self._tracker.describe(note)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # whatever the tracking store says, it must not end the training
            self._failed(error)
        else:
            self.behind = ""

    def _open(self) -> "Tracker":
        from sweeps.tracking import Tracker

        return Tracker(self._store, self._uri)

    def _failed(self, error: Exception) -> None:
        self._in_step = False
        self._rests_until = time.monotonic() + PAUSE_S
        self.behind = " ".join(str(error).split())[:300].rstrip(".")
