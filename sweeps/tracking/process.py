"""Process that updates the MLflow view during training."""

import contextlib
import fcntl
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from pm25.cell import Cell
from pm25.errors import InputError
from sweeps.spec.tracking_address import without_password
from sweeps.store import declarations
from sweeps.store.fencing import LockLost
from sweeps.store.records import Record, Store, default_tracking, intact

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.state import StudyState
    from sweeps.tracking.mlflow_view import Tracker
    from sweeps.tracking.winners import Winner

PAUSE_S = 30.0
"""Pause after a failure of the tracking store, which may take long to fail again.

After a pause without new records, earlier and missed records are written."""
LEFT_EVERY_S = 5.0
"""Interval between messages about the number of runs that are left, when the training has ended."""
OPENS_S = 20.0
"""Longest time that the training waits for the tracking store to open.

A server that accepts a connection and does not answer would delay it by minutes."""
ANSWERS_S = 60.0
"""Shortest interval between two comparisons of the arms while a study runs."""

_WINNER = ("arm", "name", "key", "card", "tags", "inputs", "encoder_options", "intervals")
"""Fields of a winner that are sent as they are."""


class TrackingProcess:
    """Process that writes earlier records, then new ones, to MLflow; it ends with this process.

    MLflow thus needs no time and no memory of the driver. A tracking store that does not answer, or a killed
    process, stops no training. `behind` then says why the view is incomplete, and `sweep sync` completes it.
    The end of the `with` block waits until everything is written. If another driver has taken over the study,
    the process writes nothing more.
    """

    def __init__(
        self,
        store: Store,
        uri: str | None,
        recorded: Iterable[Record],
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Start the process; `data` describes the panel. Raises InputError without a tracking store."""
        uri = uri or default_tracking(store.storage)
        self.behind = ""
        """Reason why the view is incomplete, or empty; known after `close`."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from sweeps.tracking.process import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            process_group=0,  # Ctrl-C ends the training only; its records are still written
        )
        self._answered: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._hear, daemon=True).start()
        self._uri = uri
        self._send("open", [store.storage, store.study, store.token, uri, data])
        self._recorded = recorded

    def __enter__(self) -> Self:
        for record in self._recorded:
            self._send("recorded", record)
        self._recorded = ()  # 100,000 records would occupy a gigabyte during the study
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def opened(self, *, needed: bool = False) -> None:
        """Wait at most `OPENS_S` for the tracking store; raises InputError if waiting longer will not help.

        If the view is `needed`, a store that does not answer yet raises InputError too.
        """
        fix = "start the server, or omit --require-tracking"
        waiting = f"{without_password(self._uri)} does not answer within {OPENS_S:g} s"
        try:
            answer = self._answered.get(timeout=OPENS_S)
        except queue.Empty:
            if needed:
                raise InputError("tracking", "", waiting, fix) from None
            self._say(waiting)
            return
        if answer is None:
            self._answered.put(None)  # the process has died, which `close` reports
            return
        verb, value = answer
        if verb == "refused":
            raise InputError(*value)
        problem, own_fix = value
        if needed and problem:
            raise InputError("tracking", "", problem, own_fix or fix)
        if problem:
            self._say(problem)

    @staticmethod
    def _say(problem: str) -> None:
        """Tell the user at the start; the notice at the end names the fix, if the view is incomplete then."""
        click.echo(f"sweep: MLflow: {problem}; training continues without it", err=True)

    def add(self, record: Record) -> None:
        """Write the record of a cell or search trial that has ended."""
        self._send("write", record)

    def plan(self, state: "StudyState") -> None:
        """Update the study's cells, recorded or not, over which the arms are compared."""
        cells = {key: cell.resolved() for key, cell in state.cells.items()}
        waiting = [cell.resolved() for cell in state.waiting]
        study = state.study
        asked = [study.analysis.model_dump(mode="json"), [c.model_dump(mode="json") for c in study.claims]]
        declared = declarations.content(study)
        self._send("plan", [cells, waiting, state.search_summaries(), *asked, study.design.looks, declared])

    def describe(self, markdown: str) -> None:
        """Call `Tracker.describe` once everything else is written."""
        self._send("describe", markdown)

    def register(self, winner: "Winner", example: "pd.DataFrame") -> None:
        """Call `Tracker.register` once everything else is written."""
        fields = {name: getattr(winner, name) for name in _WINNER} | {"cell": winner.cell.resolved()}
        self._send("register", [fields, example.to_dict("split", index=False)])

    def close(self) -> None:
        """Wait until everything is written, and set `behind`."""
        self._send("close")
        last = ""
        while (answer := self._answered.get()) is not None:
            last, value = answer
            if last == "left":
                click.echo(f"MLflow: {value} runs left to write", err=True)
            elif last == "closed":
                self.behind = value
            elif last == "refused":
                self.behind = str(InputError(*value))
        self._process.communicate()
        if last not in ("closed", "refused"):
            self.behind = f"its process ended with {self._process.returncode}"

    def _send(self, verb: str, value: Any = None) -> None:
        """Send a message, without waiting for MLflow: the process reads messages in a thread of its own."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process was killed, which `close` reports
            self._process.stdin.write(json.dumps([verb, value], default=str) + "\n")  # str for paths
            self._process.stdin.flush()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            verb, value = json.loads(line)
            if verb == "notice":
                click.echo(f"sweep: MLflow: {value}", err=True)
            else:
                self._answered.put((verb, value))
        self._answered.put(None)


def serve() -> None:
    """Run the process: read messages as lines of JSON from standard input, and write to MLflow."""
    os.nice(10)  # the training comes first
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to standard error
    messages: queue.Queue[tuple[str, Any]] = queue.Queue()
    closing = threading.Event()
    listener = threading.Thread(target=_listen, args=[messages, closing], daemon=True)
    listener.start()

    def answer(what: str, value: Any = None) -> None:
        print(json.dumps([what, value]), file=answers, flush=True)

    _, (storage, study, token, uri, data) = messages.get()
    try:
        view = MlflowMirror(Store(storage, study, token=token), uri, data, partial(answer, "notice"))
        answer("open", [view.behind, view.fix])
        _mirror(view, messages, closing, answer)
    except InputError as error:  # LockLost, or a tracking store that no waiting will open
        answer("refused", error.args)
        listener.join()


def _mirror(
    view: "MlflowMirror",
    messages: "queue.Queue[tuple[str, Any]]",
    closing: threading.Event,
    answer: Callable[..., None],
) -> None:
    """Write what the messages bring until the driver closes. Raises LockLost if another driver took over."""
    verb, note, last = "", None, time.monotonic()
    models: list[Any] = []
    while verb != "close":
        try:
            verb, value = messages.get(timeout=PAUSE_S)
        except queue.Empty:
            verb, value = "idle", None
        if verb == "describe":
            note = value  # written only to a complete view
        elif verb == "plan":
            view.plan = value
        elif verb == "register":
            models.append(value)
        elif verb in ("recorded", "write"):
            view.missed.append(value)
        # Earlier records wait for the first new one, since Ray needs the processor to start.
        if verb in ("write", "idle"):
            view.catch_up(messages.empty() and not closing.is_set())
        if not closing.is_set():
            last = time.monotonic()
        elif time.monotonic() - last > LEFT_EVERY_S:
            last = time.monotonic()
            answer("left", messages.qsize())
    view.finish(note, models)
    answer("closed", f"{view.behind}. Fix: {view.fix}" if view.behind and view.fix else view.behind)


def _listen(messages: "queue.Queue[tuple[str, Any]]", closing: threading.Event) -> None:
    """Read messages as soon as they arrive, so that the driver never waits."""
    while not closing.is_set():
        line = sys.stdin.readline()
        if not line.endswith("\n"):
            os._exit(1)  # the driver is dead, and another may soon write to the view
        verb, value = json.loads(line)
        if verb == "close":
            closing.set()
        messages.put((verb, value))


class MlflowMirror:
    """Tracking store that may fail for a while; missed records are written when it answers again."""

    def __init__(
        self,
        store: Store,
        uri: str | None,
        data: Mapping[str, Any] | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Open the tracking store; raises InputError if it needs another address or another user.

        `notice` shows the user a line.
        """
        from sweeps.tracking.connection import DamagedDatabase, Unreachable

        self._store, self._uri, self._data, self._notice = store, uri, data, notice
        self._written: list[tuple[Store, str]] = []
        """Store and key of each record that the view has, to be read again for a new database."""
        self._tracker: Tracker | None = None
        self._in_step = False
        self._rests_until = self._answers_at = -math.inf
        self.missed: list[Record] = []
        self.plan: list[Any] | None = None
        """Last message of `TrackingProcess.plan`."""
        self.behind = self.fix = ""
        """Problem of the tracking store, and what the user can do; empty while the view is complete."""
        try:
            self._tracker = self._open()
        except (DamagedDatabase, Unreachable) as error:
            self._failed(error)

    def catch_up(self, at_leisure: bool) -> None:
        """Write missed records, unless the store has just failed; compare the arms if there is time."""
        if time.monotonic() >= self._rests_until:
            self._try(partial(self._write, at_leisure and time.monotonic() >= self._answers_at))

    def finish(self, note: str | None, models: Sequence[Any] = ()) -> None:
        """Try a last time; `note` and `models` are written only to a complete view."""
        self._try(partial(self._write, True, note, models))

    def _write(self, answers: bool, note: str | None = None, models: Sequence[Any] = ()) -> None:
        self._tracker = self._tracker or self._open()
        if self._in_step:
            self._tracker.write(self.missed)
        else:
            self._tracker.sync(self.missed)
        stores = {True: self._store.search, False: self._store}
        self._written += [(stores["params" in record], record["key"]) for record in self.missed]
        self.missed, self._in_step = [], True
        if answers and self.plan is not None:
            self._answer(self._tracker, last=note is not None)
        if note is not None:
            self._tracker.describe(note)
        for fields, example in models:
            self._register(self._tracker, fields, example)

    def _register(self, tracker: "Tracker", fields: dict[str, Any], example: dict[str, Any]) -> None:
        import pandas as pd

        from sweeps.tracking.winners import Winner

        winner = Winner(**fields | {"cell": Cell.model_validate(fields["cell"]), "store": self._store})
        tracker.register(winner, pd.DataFrame(**example))

    def _answer(self, tracker: "Tracker", last: bool) -> None:
        """Compare the arms, from records read from the store, in at most a twentieth of the time.

        With `last`, attach the figures too, and write the records that nobody passed on: those that the store
        had already when a search chose the settings of their cells.
        """
        from sweeps.analysis import artifacts, results
        from sweeps.analysis.declarations import history
        from sweeps.spec.claims import Analysis, Claim
        from sweeps.spec.design import Ladders
        from sweeps.tracking import parent_metrics

        begin = time.monotonic()
        assert self.plan is not None
        planned, waiting, searched, analysis, claims, looks, present = self.plan
        cells = {key: Cell.model_validate(cell) for key, cell in planned.items()}
        records = self._store.records(cells, "tables")
        if last:
            written = {key for _, key in self._written}
            if absent := [record for key, record in intact(records).items() if key not in written]:
                tracker.sync(absent)
        rows = results.rows(cells, records, [Cell.model_validate(cell) for cell in waiting])
        judge = Analysis.model_validate(analysis)
        declared = [Claim.model_validate(claim) for claim in claims]
        sums = artifacts.predictions(self._store, rows, degrees=judge.block_degrees)
        done = sum(record["state"] == "done" for record in records.values())
        trials = int(sum(counts["n"] for _, counts in searched))
        statuses = history(declarations.read(self._store), present, done, trials).contrasts
        covered = parent_metrics.covered_by_region(rows, judge, sums)
        how = judge, declared, Ladders(*looks), sums, statuses, covered
        found = parent_metrics.of_rows(rows, *how)
        tracker.answer(found | {(arm, None): counts for arm, counts in searched})
        if last:
            tracker.show(parent_metrics.pictures(self._store, rows, *how))
        end = time.monotonic()
        self._answers_at = end + max(ANSWERS_S, 20 * (end - begin))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except LockLost:
            raise
        except Exception as error:  # no error of the tracking store may end the training
            self._failed(error)
        else:
            self.behind = self.fix = ""

    def _open(self) -> "Tracker":
        """Open the tracking store. The default database is replaced if it is damaged."""
        from sweeps.tracking.connection import DamagedDatabase, move_aside, sqlite_file
        from sweeps.tracking.mlflow_view import Tracker

        opened = partial(Tracker, self._store, self._uri, self._data)
        try:
            return opened()
        except DamagedDatabase:
            if "://" in self._store.storage or self._uri != default_tracking(self._store.storage):
                raise  # it may hold what no store has
        file = sqlite_file(self._uri)
        with _exclusive(file.parent):
            try:
                return opened()  # another study of this storage may have replaced it
            except DamagedDatabase as error:
                aside = move_aside(file)
                tracker = opened()
                self._notice(f"{error.problem}; it was moved to {aside} and is written again from the store")
        records = (store.record(key) for store, key in self._written)
        self.missed = [*filter(None, records), *self.missed]
        self._written = []
        return tracker

    def _failed(self, error: Exception) -> None:
        from sweeps.tracking.connection import DamagedDatabase, short_reason

        self._in_step, self._tracker = False, None  # it is examined again before anything else is written
        self._rests_until = time.monotonic() + PAUSE_S
        self.behind = short_reason(error)
        self.fix = error.fix.rstrip(".") if isinstance(error, DamagedDatabase) else ""


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Exclude other processes from the same block, on file systems that have locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network file system
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
