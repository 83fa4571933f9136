"""100,000 cells on 512 GPUs: the simulated cluster, by hand where it is small, and the parts in small."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeps.bench import scale
from sweeps.bench.scale import study
from sweeps.bench.simulation import HANDED_S, Outcome, Simulation


def simulated(folder: Path, seconds: float, **how: float) -> Outcome:
    """100 cells without a search on two nodes of five GPUs each."""
    state = study(folder, 100, searched=False)
    return Simulation(state, lambda rng: seconds, nodes=2, gpus=5, **{"tune_s": 0.0, **how}).run()


def test_equal_tasks_come_in_waves(tmp_path: Path) -> None:
    seen = simulated(tmp_path, 30)
    assert seen.ended == 100
    assert seen.work == 3000
    assert seen.makespan == pytest.approx(10 * (30 + HANDED_S), abs=0.5)  # and what the driver took
    assert seen.over_bound == pytest.approx(1, abs=0.002)
    assert seen.busy(seen.last) > 0.99
    assert len(seen.handed) == len(seen.finished) == 100


def test_a_slow_driver_leaves_gpus_idle(tmp_path: Path) -> None:
    """Ten GPUs whose tasks take 3 s, and a driver that takes 1 s for each: it can keep three at work."""
    seen = simulated(tmp_path, 3, tune_s=1)
    assert seen.makespan == pytest.approx(103, abs=1)
    assert 0.25 < seen.busy(seen.last) < 0.35
    assert seen.driver / seen.makespan > 0.95


def test_what_is_lost_is_done_in_the_end(tmp_path: Path) -> None:
    seen = simulated(tmp_path, 600, worker_hours=0.5, node_hours=1)
    assert seen.ended == 100
    assert seen.work == 60_000
    assert seen.workers_lost > 10
    assert seen.nodes_lost > 1
    assert seen.over_bound > 1.05
    assert sum(end - begin for begin, end in seen.used) > seen.work  # since the last checkpoint, once more


def test_searches_come_first_and_their_cells_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "TRIALS", 4)
    state = study(tmp_path, 100, searched=True)
    state.store.prepare()

    def seconds(rng: np.random.Generator) -> float:
        return float(rng.uniform(10, 20))

    assert Simulation(state, seconds, nodes=2, gpus=4, tune_s=0.005).run().ended == 5 * 4 + 100
    assert len(state.store.search.keys()) == 5 * 4


@pytest.mark.slow
def test_the_scale_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.bench import mirror

    parts: dict[str, dict[str, Any]] = {}
    part = scale._part

    def kept(name: str, *arguments: Any) -> dict[str, Any]:
        parts[name] = part(name, *arguments)
        return parts[name]

    monkeypatch.setattr(scale, "_part", kept)
    monkeypatch.setattr(scale, "CELLS", 200)
    monkeypatch.setattr(scale, "TUNED", (20, 100))
    monkeypatch.setattr(scale, "ASKED", (20,))
    monkeypatch.setattr(mirror, "CELLS", 12)
    found = {row.what: row for row in scale.run(tmp_path)}
    assert [*found] == [
        "memory that 1,000 ended cells leave",
        "driver's processor a cell, Tune's",
        "busy share of 512 GPUs",
        "makespan over its lower bound",
        "driver's share of a core, 512 GPUs",
        "driver's memory, 200 cells",
        "200 records read",
        "sweep status, 200 finished",
        "restart on 200 finished",
        "driver's memory, 200 finished",
        "200 cells mirrored in MLflow",
        "Optuna asked after 20 trials",
    ]
    assert all(row.value > 0 for what, row in found.items() if not what.startswith("memory that"))
    # Tune would keep all ended trials, 12 kB each, and write and read them once more at its end.
    assert 0 < parts["tune"]["kept"] < 10
