"""Results of a worker outside Ray: a driver that lost its study is not the failure of a task."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from sweeps.engine import worker
from sweeps.engine.trainable import StudyTrainable
from sweeps.engine.tune_events import TuneEvents
from sweeps.store.fencing import LockLost
from sweeps.store.records import Store
from tests.errors import refuses

LOST = LockLost("driver.json", "", "process 1 on host node7 has taken over study toy", "wait")


class LosesTheStudy:
    """A search trial whose driver loses the study after some epochs."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.draft, self.finished = {"key": "k1"}, False

    def epoch(self) -> None:
        raise LOST


@pytest.mark.parametrize("kind", ["cell", "trial"])
def test_a_lost_study_ends_the_run_and_no_task_is_retried(
    kind: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_cell(*_: Any, **__: Any) -> None:
        raise LOST

    made: Any = object.__new__(StudyTrainable)
    made.config = {"kind": kind, "key": "k1"}
    made._refusal = made._trial = made._stack = made._panel = None
    made._joined, made._store = False, Store(str(tmp_path), "toy")
    made._train_cell, made._search_trial, made._keeps_weights = train_cell, LosesTheStudy, bool
    monkeypatch.setattr(StudyTrainable, "_task", lambda trainable: ([None], {}, {}))
    monkeypatch.setattr(worker, "end_trial", lambda *_: pytest.fail("the trial did not fail"))
    result = made.step()
    assert result["done"]
    assert not [*tmp_path.iterdir()]

    queue: Any = SimpleNamespace(fault=None)
    queue.end = lambda fault: setattr(queue, "fault", fault)
    panel = cast(Any, SimpleNamespace(fingerprint="f"))
    events = TuneEvents(queue, made._store, queue, panel, lambda: None)
    trial: Any = SimpleNamespace(last_result=result, config=made.config, trial_id="t")
    events.on_trial_complete(1, [], trial)
    with refuses("driver.json", "", "process 1 on host node7", kind=LockLost):
        events.on_step_end(1, [])
