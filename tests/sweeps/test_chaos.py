"""A study under fire: MLflow, a worker and a driver killed, MLflow's database closed, and files damaged."""

import json
from pathlib import Path

import pytest

from sweeps.bench.chaos import Episode, Round, Tally
from sweeps.bench.chaos_damage import Damage
from sweeps.bench.chaos_faults import Fault

pytestmark = pytest.mark.slow

SEED = 20211121
KILLED = ("tracking process killed", "worker killed in training", "driver killed")
CLOSED = "MLflow's database closed to writers"
DAMAGED = (
    ("edited", "record of a cell"),
    ("swapped", "record of a cell"),
    ("edited", "predictions"),
    ("flipped byte in", "history"),
    ("truncated", "record of a trial"),
    ("flipped byte in", "start file of a trial"),
)


def test_every_cell_is_done_exactly_once_whatever_is_killed_and_no_damaged_file_is_believed(
    tmp_path: Path,
) -> None:
    """The referee of `sweep bench --only chaos` looks at records, runs of MLflow, journal and weights."""
    tally = Tally(SEED)
    with Round(tmp_path / "r", 0, tally, mounts=False, seeds=2) as one:
        one.do(Episode(tuple(Fault(kind, 2, SEED) for kind in KILLED)))
        assert {sight.kind: sight.status for sight in tally.sights} == dict.fromkeys(KILLED, -9)
        assert 0 < len(one.referee.seen) < 12 + 8, "the driver was killed in mid-run"

        one.do(Episode((Fault(CLOSED, 1, SEED),)))
        assert [*tally.lines()] == []
        assert (tally.sights[-1].kind, tally.sights[-1].status) == (CLOSED, 0)
        assert one.referee.complete(one.setting.storage / "mlflow.db") == []
        records = [json.loads(seen.content) for seen in one.referee.seen.values()]
        assert len(records) == 12 + 8
        assert any("resumed" in record for record in records), "no training went on from its last epoch"

        one.do(Episode(damages=tuple(Damage(*which, SEED) for which in DAMAGED)))
        assert len(tally.sights) == len(KILLED) + 1 + len(DAMAGED)
    assert [*tally.lines()] == []
