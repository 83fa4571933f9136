"""How busy the GPUs are: what is counted, and a whole run in small."""

import re
from pathlib import Path

import numpy as np
import pytest

from sweeps.bench import busy as bench_busy
from sweeps.bench.busy import LONGEST_S, SHORTEST_S, Task, seconds, timeline
from tests.processes import NO_IDLE_WORKERS


def test_only_the_time_from_the_warm_up_to_the_last_beginning_is_asked_for() -> None:
    """Two GPUs: one begins at 0 s, the other at 2 s; the last task begins at 8 s, and all end at 12 s."""
    seen = timeline(
        [
            Task("trial", 1, 0, 4, 1),
            Task("cell", 1, 5, 12, 1),  # 1 s after
            Task("cell", 2, 2, 6, 0.5),
            Task("cell", 2, 8, 10, 1),  # 2 s after
        ],
        gpus=2,
    )
    assert seen.warm == 2
    assert seen.wall == 10
    assert seen.busy == pytest.approx((2 + 3 + 0.5 * 4) / (2 * 6))
    assert seen.busy_to_the_end == pytest.approx((2 + 7 + 0.5 * 4 + 2) / (2 * 10))
    assert seen.gaps == (1, 2)


def test_the_tasks_are_uneven_and_the_same_each_time() -> None:
    drawn = [seconds(f"task {i}") for i in range(60)]
    assert drawn == [seconds(f"task {i}") for i in range(60)]
    assert min(drawn) == SHORTEST_S
    assert max(drawn) > 0.7 * LONGEST_S
    assert np.std(np.log(drawn)) > 0.5


def test_sixty_tasks_are_to_be_done(tmp_path: Path) -> None:
    from sweeps.engine.scheduler import Scheduler

    scheduler = Scheduler(bench_busy.study(tmp_path))
    assert (scheduler.trials, scheduler.cells) == (18, 42)


@pytest.mark.slow
def test_a_run_on_two_pretended_gpus_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("GPUS", 2), ("ARMS", ("none", "sincos")), ("TRIALS", 2), ("FOLDS", 2), ("SEEDS", 1)):
        monkeypatch.setattr(bench_busy, name, value)
    for name, text in NO_IDLE_WORKERS.items():
        monkeypatch.setenv(name, text)
    busy, to_the_end = bench_busy.run(tmp_path)
    assert re.match(r"4 search trials and 4 cells of \d+\.\d to \d+\.\d s \(median ", busy.detail)
    assert 0 < busy.value <= 1
    assert 0 < to_the_end.value <= 1
    assert busy.at_least
    assert len(list((tmp_path / "busy" / "busy" / "cells").iterdir())) == 4
