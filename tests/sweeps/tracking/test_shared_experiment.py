"""Several files or stores of one study in one experiment: `sync` of one keeps the runs of the others."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pm25.cell import Cell
from pm25.splits import RandomSplit
from sweeps.bench.engine import trivial
from sweeps.spec.study import Study
from sweeps.store import declarations
from sweeps.store.records import Record, Store

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient

    from sweeps.tracking.mlflow_view import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PANEL: Any = SimpleNamespace(fingerprint="f" * 64)
STUDY: dict[str, Any] = {
    "study": "toy",
    "data": {"synthetic": {}},
    "design": {"variant": "none", "split": {"kind": "random"}, "seed": 0},
}


def stored(store: Store, seed: int, variant: str = "none") -> Record:
    """A finished cell."""
    cell = Cell(variant=variant, split=RandomSplit(), fold=0, seed=seed)
    return trivial(cell, cell.key(PANEL.fingerprint), PANEL, store)


def active(uri: str, kind: str = "cell") -> dict[str, str]:
    """Identifiers of the runs of one kind, with their keys (or arms)."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("toy")
    runs = client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")
    return {run.info.run_id: run.data.tags.get("key", run.data.tags["arm"]) for run in runs}


def declared(folder: Path) -> Store:
    """A store with a declaration of its own: times have seconds, so the seeds differ too."""
    store = Store(str(folder), "toy")
    store.prepare()
    design = {**STUDY["design"], "seed": [0, 1 + sum(map(ord, folder.name))]}
    declarations.declare(Study.model_validate({**STUDY, "design": design}), store)
    return store


def test_a_file_with_fewer_cells_keeps_the_runs_of_the_others(tmp_path: Path) -> None:
    store = declared(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    records = [stored(store, seed, variant) for seed in range(2) for variant in ("none", "latlon")]
    Tracker(store, None).sync(records)
    before = active(uri), active(uri, "arm")
    assert Tracker(store, None).sync(records[:1]) == 0
    assert (active(uri), active(uri, "arm")) == before


def test_another_store_in_the_same_experiment_keeps_its_runs(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/shared.db"
    ana, ben = declared(tmp_path / "ana"), declared(tmp_path / "ben")
    of_ana = [stored(ana, seed) for seed in (0, 1)]
    Tracker(ana, uri).sync(of_ana)
    before = active(uri), active(uri, "arm")
    of_ben = [stored(ben, seed) for seed in (1, 2)]  # one cell is the same
    assert Tracker(ben, uri).sync(of_ben) == 2
    runs, parents = active(uri), active(uri, "arm")
    assert before[0].items() <= runs.items()
    assert before[1].items() <= parents.items()
    assert (len(runs), len(parents)) == (4, 2)
    ana.forget(of_ana[0]["key"])
    Tracker(ana, uri).sync(of_ana[1:])
    left = active(uri)
    assert sorted(left.values()) == sorted(r["key"] for r in (of_ana[1], *of_ben))


@pytest.mark.parametrize("damage", ["deleted", "damaged", "replaced"])
def test_a_store_knows_its_runs_after_its_declarations_are_gone(tmp_path: Path, damage: str) -> None:
    """Chaos found it: the next run wrote every changed cell a second time, beside the old run."""
    store, uri = declared(tmp_path), f"sqlite:///{tmp_path}/mlflow.db"
    records = [stored(store, seed) for seed in (0, 1, 2)]
    Tracker(store, None).sync(records)
    before = active(uri)
    file = tmp_path / "toy" / declarations.FILE
    if damage == "damaged":
        file.write_text("[")
    else:
        file.unlink()
    if damage == "replaced":
        declarations.declare(Study.model_validate({**STUDY, "title": "again"}), store)
    store.forget(records[0]["key"])
    again = store.write_record(records[1] | {"ended": "2031-01-01T00:00:00.000+00:00"}, records[1]["files"])
    assert Tracker(store, None).sync([again, records[2]]) == 1
    after = active(uri)
    assert sorted(after.values()) == sorted([again["key"], records[2]["key"]])
    assert len(after.keys() & before.keys()) == 1


def test_stores_are_told_apart_by_their_first_declaration(tmp_path: Path) -> None:
    stores = [declared(tmp_path / name) for name in ("ana", "ben")]
    files = [Path(store.storage, "toy", declarations.FILE) for store in stores]
    first = json.loads(files[0].read_text())[0]["time"]
    assert Tracker(stores[0], None)._origin["origin"].startswith(first)
