"""The progress line: counts, rate and time left by a clock that the test turns."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from rich.console import Console

from pm25.errors import InputError
from sweeps.engine import progress
from sweeps.engine.progress import RunProgress
from sweeps.store.running import Progress
from tests.processes import wait_for
from tests.worlds import record


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    return clock


def plain() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=120), text


def test_the_line_by_hand(clock: Clock) -> None:
    shown = RunProgress(60, console=plain()[0])
    assert shown.line() == "0/60 done, 0 running, 0 failed"
    clock.now += 100  # Ray starts: no part of the rate
    shown.started("a", "cell")
    shown.started("b", "cell")
    assert shown.line() == "0/60 done, 2 running, 0 failed"
    clock.now += 30
    shown.ended("cell", record("a", "done"))
    # 1 in 30 s: 2 a minute, 59 to come at 30 s each
    assert shown.line() == "1/60 done, 1 running, 0 failed, 2.0 cells/min, 0:29:30 left"
    shown.started("c", "cell")
    clock.now += 30
    shown.ended("cell", record("c", "failed"))
    shown.ended("cell", record("b", "done"))
    # 3 in 60 s, 57 to come at 20 s
    assert shown.line() == "2/60 done, 0 running, 1 failed, 3.0 cells/min, 0:19:00 left"


def test_hours_and_the_end(clock: Clock) -> None:
    shown = RunProgress(3, console=plain()[0])
    shown.started("a", "cell")
    clock.now += 5025
    shown.ended("cell", record("a", "done"))
    assert shown.line() == "1/3 done, 0 running, 0 failed, 0.7 cells/h, 2:47:30 left"
    for key in "bc":
        shown.started(key, "cell")
        shown.ended("cell", record(key, "done"))
    assert shown.line().endswith("0 failed, 2.1 cells/h")  # nothing is left


def test_without_a_terminal_lines_are_few_and_plain(clock: Clock) -> None:
    console, text = plain()
    with RunProgress(100, console=console) as shown:
        for i in range(100):
            shown.started(str(i), "cell")
            clock.now += 1
            shown.ended("cell", record(str(i), "done"))
            shown.started(str(i + 1), "cell")
    lines = text.getvalue().splitlines()
    assert lines[-1].startswith("100/100 done")
    assert 10 <= len(lines) <= 100 / progress.PLAIN_EVERY_S + 2
    assert "\x1b" not in text.getvalue()
    assert "\r" not in text.getvalue()


def test_the_last_line_comes_after_an_error_too(clock: Clock) -> None:
    console, text = plain()

    def interrupted() -> None:
        with RunProgress(2, console=console) as shown:
            shown.started("a", "cell")
            clock.now += 1
            shown.ended("cell", record("a", "done"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert text.getvalue().splitlines()[-1].startswith("1/2 done, 0 running")


def test_a_cell_that_starts_again_is_one(clock: Clock) -> None:
    shown = RunProgress(2, console=plain()[0])
    shown.started("a", "cell")
    shown.started("a", "cell")
    assert "1 running" in shown.line()


def test_on_a_terminal_the_line_lives() -> None:
    text = io.StringIO()
    with RunProgress(2, console=Console(file=text, force_terminal=True, width=120)) as shown:
        shown.started("a", "cell")
        shown.ended("cell", record("a", "failed"))
    assert "0/2 done, 0 running, 1 failed" in text.getvalue()
    erased, last = text.getvalue().rsplit("\x1b[2K", 1)
    assert "━" in erased  # the bar
    assert last.startswith("0/2 done, 0 running, 1 failed")


def test_of_a_run_that_never_began_nothing_is_said() -> None:
    console, text = plain()
    with RunProgress(2, console=console) as shown:
        shown.notice("2 nodes with s3://bucket/results: [a], b")
    assert text.getvalue() == "2 nodes with s3://bucket/results: [a], b\n"


def test_nothing_is_said_twice(clock: Clock) -> None:
    console, text = plain()
    with RunProgress(1, console=console) as shown:
        shown.started("a", "cell")
        clock.now += progress.PLAIN_EVERY_S + 1
        shown.ended("cell", record("a", "done"))
    assert text.getvalue().splitlines() == [
        "1/1 done, 0 running, 0 failed, 10.0 cells/min",
    ]


def test_a_cell_that_takes_no_time_has_no_rate(clock: Clock) -> None:
    shown = RunProgress(2, console=plain()[0])
    shown.started("a", "cell")
    shown.ended("cell", record("a", "done"))
    assert shown.line() == "1/2 done, 0 running, 0 failed"


def test_search_trials_are_counted_beside_the_cells(clock: Clock) -> None:
    with RunProgress(5, 3, plain()[0]) as shown:
        for key, kind, state in (
            *(("a", "trial", "done"), ("b", "trial", "pruned"), ("c", "trial", "failed")),
            ("d", "cell", "done"),
        ):
            shown.started(key, kind)
            clock.now += 15
            shown.ended(kind, record(key, state))
    # A trial that was pruned has ended as it should. 4 in 60 s: the last one takes 15 s.
    assert shown.line() == "3/5 done, 0 running, 1 failed, 3/3 search trials, 4.0/min, 0:00:15 left"


def test_epochs_of_running_trainings_count_for_the_time_left(clock: Clock) -> None:
    trained: list[Progress] = []
    with RunProgress(4, console=plain()[0], read=lambda keys: trained) as shown:
        shown.started("a", "cell")
        clock.now += 100
        shown._trained = [under_way("a", epoch=5, of=20), under_way("of another run", epoch=9, of=10)]
        # A quarter of one cell in 100 s: 3.75 cells at 400 s each
        assert shown.line() == "0/4 done, 1 running, 0 failed, 0:25:00 left"


def test_without_a_terminal_long_trainings_are_shown_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "READ_PLAIN_EVERY_S", 0.02)
    console, text = plain()
    asked: list[list[str]] = []

    def read(keys: Sequence[str]) -> list[Progress]:
        asked.append([*keys])
        return [under_way("a", epoch=3, of=8)]

    with RunProgress(2, console=console, read=read) as shown:
        shown.started("a", "cell")
        wait_for(lambda: "epoch 3 of 8, validation RMSE 7.50, lowest 7.25" in text.getvalue())
    assert asked[-1] == ["a"]


def test_on_a_terminal_each_long_training_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "READ_EVERY_S", 0.02)
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    many = [under_way(f"{i:02}", epoch=i, of=90) for i in range(progress.SHOWN + 1)]
    with RunProgress(9, console=console, read=lambda keys: many) as shown:
        for one in many:
            shown.started(one.key)
        wait_for(lambda: f"epoch {progress.SHOWN - 1} of 90" in text.getvalue())
        shown.ended("cell", record("00", "done"))
        wait_for(lambda: f"epoch {progress.SHOWN} of 90" in text.getvalue())  # it has the place of the first


def test_a_storage_that_cannot_be_read_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "READ_PLAIN_EVERY_S", 0.02)
    asked: list[int] = []

    def read(keys: Sequence[str]) -> list[Progress]:
        asked.append(len(keys))
        raise InputError("storage", problem="cannot be read")

    with RunProgress(2, console=plain()[0], read=read):
        wait_for(lambda: len(asked) > 2)


def under_way(key: str, epoch: int, of: int) -> Progress:
    now = datetime(2026, 11, 28, tzinfo=UTC)
    place = {"host": "here", "process": 1, "started": now, "updated": now}
    scores = {"rmse": 7.5, "best_rmse": 7.25}
    return Progress(key=key, label=f"cell {key}", epoch=epoch, max_epochs=of, **place, **scores)
