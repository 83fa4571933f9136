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
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from pm25.cell import Cell
from pm25.errors import InputError
from sweeps.store.records import Record, Store, default_tracking

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.state import StudyState
    from sweeps.tracking.mlflow_view import Tracker
    from sweeps.tracking.winners import Winner

PAUSE_S = 30.0
"""For so long nothing is asked of a tracking store that has just failed: it may make us wait each time.
And when there is no news for so long, it is seen to what was recorded before, or missed."""
TOLD_EVERY_S = 5.0
"""How often, once there is nothing but the view to wait for, it is told how much is left."""
OPENS_S = 20.0
"""For so long the training waits to hear that the tracking store cannot be opened: a server that accepts a
connection and says nothing would hold it up for minutes."""
ANSWERS_S = 60.0
"""How often, at most, the arms are compared anew while a study runs."""


_WINNER = ("arm", "name", "key", "card", "tags", "inputs", "encoder_options")
"""What of a winner travels as it is."""


class TrackingProcess:
    """Writes what was recorded before, then what is added, in a process that ends with this one.

    So neither MLflow's time nor its memory is the driver's. A tracking store that does not answer, or a
    process that is killed, costs no training: `behind` says why the view is not whole, and `Tracker.sync`
    makes up for it. Used as a context, at whose end everything is written.
    """

    def __init__(
        self,
        store: Store,
        uri: str | None,
        recorded: Iterable[Record],
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """`data` is what `Tracker` shows of the panel. Raises InputError where there is no place for it."""
        uri = uri or default_tracking(store.storage)
        self.behind = ""
        """Known when it is closed."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from sweeps.tracking.process import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C ends the training; what it recorded is still to be written
        )
        self._answered: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._hear, daemon=True).start()
        self._uri = uri
        self._send("open", [store.storage, store.study, uri, data])
        self._recorded = recorded

    def __enter__(self) -> Self:
        for record in self._recorded:
            self._send("recorded", record)
        self._recorded = ()  # 100,000 of them would be a gigabyte for as long as the study runs
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def opened(self, *, needed: bool = False) -> None:
        """Wait until it is known, but not long; raises InputError for a store that no waiting will open.

        Where the view is `needed` also for one that does not answer now.
        """
        try:
            answer = self._answered.get(timeout=OPENS_S)
        except queue.Empty:
            if needed:
                raise InputError(f"tracking: {self._uri} does not answer within {OPENS_S:g} s") from None
            return
        if answer is None:
            self._answered.put(None)  # it has died, as `close` will say
        elif answer[0] == "refused" or (needed and answer[1]):
            raise InputError(answer[1])

    def add(self, record: Record) -> None:
        """A cell or a search trial has ended."""
        self._send("write", record)

    def plan(self, state: "StudyState") -> None:
        """What the study holds by now: the arms are compared over its cells, recorded or not."""
        cells = {key: cell.resolved() for key, cell in state.cells.items()}
        waiting = [cell.resolved() for cell in state.waiting]
        study = state.study
        judged = [study.analysis.model_dump(mode="json"), [c.model_dump(mode="json") for c in study.claims]]
        self._send("plan", [cells, waiting, state.searched(), *judged, study.design.looks])

    def describe(self, markdown: str) -> None:
        """As Tracker.describe."""
        self._send("describe", markdown)

    def register(self, winner: "Winner", example: "pd.DataFrame") -> None:
        """As Tracker.register, once all else is written."""
        told = {name: getattr(winner, name) for name in _WINNER} | {"cell": winner.cell.resolved()}
        self._send("register", [told, example.to_dict("split", index=False)])

    def close(self) -> None:
        """Wait until everything handed in is written."""
        self._send("close")
        last = ""
        while (answer := self._answered.get()) is not None:
            last, value = answer
            if last == "left":
                click.echo(f"MLflow: {value} runs left to write", err=True)
            elif last in ("closed", "refused"):
                self.behind = value
        self._process.communicate()
        if last not in ("closed", "refused"):
            self.behind = f"its process ended with {self._process.returncode}"

    def _send(self, verb: str, value: Any = None) -> None:
        """Waits for nothing that is asked of MLflow: the process listens all the while."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed, as `close` will say
            self._process.stdin.write(json.dumps([verb, value], default=str) + "\n")  # paths
            self._process.stdin.flush()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answered.put(tuple(json.loads(line)))
        self._answered.put(None)


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

    _, (storage, study, uri, data) = told.get()
    try:
        view = MlflowMirror(Store(storage, study), uri, data)
    except InputError as error:
        answer("refused", str(error))
        listener.join()
        return
    answer("open", view.behind)
    verb, note, last = "", None, time.monotonic()
    models: list[Any] = []
    while verb != "close":
        try:
            verb, value = told.get(timeout=PAUSE_S)
        except queue.Empty:
            verb, value = "idle", None
        if verb == "describe":
            note = value  # that of a view which is whole
        elif verb == "plan":
            view.plan = value
        elif verb == "register":
            models.append(value)
        elif verb in ("recorded", "write"):
            view.missed.append(value)
        # What was recorded before waits for the first news: Ray starts meanwhile, and wants the processor.
        if verb in ("write", "idle"):
            view.catch_up(told.empty() and not closing.is_set())
        if not closing.is_set():
            last = time.monotonic()
        elif time.monotonic() - last > TOLD_EVERY_S:
            last = time.monotonic()
            answer("left", told.qsize())
    view.finish(note, models)
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


class MlflowMirror:
    """The tracking store, which may fail for a while: what it missed it is told when it answers again."""

    def __init__(self, store: Store, uri: str | None, data: Mapping[str, Any] | None = None) -> None:
        """Raises InputError for a store that no waiting will open."""
        from sweeps.tracking.mlflow_view import Unreachable

        self._store, self._uri, self._data = store, uri, data
        self._tracker: Tracker | None = None
        self._in_step = False
        self._rests_until = self._answers_at = -math.inf
        self.missed: list[Record] = []
        self.plan: list[Any] | None = None
        """As `Writer.plan` sends it."""
        self.behind = ""
        try:
            self._tracker = self._open()
        except Unreachable as error:
            self._failed(error)

    def catch_up(self, at_leisure: bool) -> None:
        """Write what it missed, unless it failed a moment ago; and compare the arms now and then."""
        if time.monotonic() >= self._rests_until:
            self._try(partial(self._write, at_leisure and time.monotonic() >= self._answers_at))

    def finish(self, note: str | None, models: Sequence[Any] = ()) -> None:
        """The last attempt; `note` and `models` are for a view that is whole (`Tracker.describe`)."""
        self._try(partial(self._write, True, note, models))

    def _write(self, answers: bool, note: str | None = None, models: Sequence[Any] = ()) -> None:
        self._tracker = self._tracker or self._open()
        if self._in_step:
            self._tracker.write(self.missed)
        else:
            self._tracker.sync(self.missed)
        self.missed, self._in_step = [], True
        if answers and self.plan is not None:
            self._answer(self._tracker, last=note is not None)
        if note is not None:
            self._tracker.describe(note)
        for told, example in models:
            self._register(self._tracker, told, example)

    def _register(self, tracker: "Tracker", told: dict[str, Any], example: dict[str, Any]) -> None:
        import pandas as pd

        from sweeps.tracking.winners import Winner

        winner = Winner(**told | {"cell": Cell.model_validate(told["cell"]), "store": self._store})
        tracker.register(winner, pd.DataFrame(**example))

    def _answer(self, tracker: "Tracker", last: bool) -> None:
        """From the store, so that no record is kept here; it takes a twentieth of the time at most.

        The `last` time with figures.
        """
        from sweeps.analysis import results
        from sweeps.spec.claims import Analysis, Claim
        from sweeps.tracking import parent_metrics

        begin = time.monotonic()
        planned, waiting, searched, analysis, claims, looks = self.plan or ({}, [], [], {}, [], [])
        cells = {key: Cell.model_validate(cell) for key, cell in planned.items()}
        records = self._store.records(cells)
        rows = results.rows(cells, records, [Cell.model_validate(cell) for cell in waiting])
        judge, declared = Analysis.model_validate(analysis), [Claim.model_validate(claim) for claim in claims]
        found = parent_metrics.of_rows(rows, judge, declared, looks)
        tracker.answer(found | {(arm, None): counts for arm, counts in searched})
        if last:
            tracker.show(parent_metrics.pictures(self._store, rows, judge, declared, looks))
        end = time.monotonic()
        self._answers_at = end + max(ANSWERS_S, 20 * (end - begin))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # whatever the tracking store says, it must not end the training
            self._failed(error)
        else:
            self.behind = ""

    def _open(self) -> "Tracker":
        from sweeps.tracking.mlflow_view import Tracker

        return Tracker(self._store, self._uri, self._data)

    def _failed(self, error: Exception) -> None:
        self._in_step = False
        self._rests_until = time.monotonic() + PAUSE_S
        self.behind = " ".join(str(error).split())[:300].rstrip(".")
