"""Learning curves and importances of stored cells, by hand."""

from pathlib import Path

import pandas as pd
import pytest

from sweeps.analysis import stored
from sweeps.store.records import Store


def rows(*cells: tuple[str, str, int]) -> pd.DataFrame:
    """Done cells of (key, variant, seed) on the random split."""
    place = {"fusion": None, "split": "random", "regime": "WR", "fold": 0, "state": "done"}
    return pd.DataFrame([{"key": k, "variant": v, "seed": s, **place} for k, v, s in cells])


CELLS = rows(("k0", "none", 0), ("k1", "none", 1), ("k2", "none", 2), ("k3", "latlon", 0))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path), "toy")
    for key, curve in {"k0": [5.0, 4.0, 3.0, 2.0], "k1": [7.0, 6.0], "k2": [9.0]}.items():
        store.write_table(key, "history", {"epoch": [*range(1, len(curve) + 1)], "validation_rmse": curve})
    return store


def test_curves_end_where_most_cells_have_ended(store: Store) -> None:
    frame, read, done = stored.curves(store, CELLS)
    assert (read, done) == (4, 4)  # lat/lon has lost its history
    assert frame.to_dict("list") == {
        "arm": ["none"] * 2,
        "split": ["random"] * 2,
        "epoch": [1, 2],
        "mean": [7.0, 5.0],
        "low": [5.0, 4.0],
        "high": [9.0, 6.0],
        "n": [3, 2],  # one of three is not half of them
    }


def test_of_many_cells_the_first_seeds_are_read(store: Store) -> None:
    frame, read, done = stored.curves(store, CELLS, most=3)
    assert (read, done) == (3, 4)  # seed 0 of both arms, then seed 1
    assert frame["n"].tolist() == [2, 2, 1, 1]
    assert frame["mean"].tolist() == [6.0, 5.0, 3.0, 2.0]


def test_no_curves(tmp_path: Path) -> None:
    empty = Store(str(tmp_path), "toy")
    assert stored.curves(empty, CELLS).frame.empty
    assert stored.curves(empty, CELLS.iloc[:0]).frame.empty
    assert stored.importance(empty, CELLS).empty


def test_importances_are_means_over_cells(store: Store) -> None:
    for key, rise in {"k0": 1.0, "k1": 3.0, "k3": 5.0}.items():
        store.write_table(
            key, "importance", {"what": ["wind", "place"], "rmse_increase": [rise, 0.5], "sd": [0.1, 0.2]}
        )
    frame = stored.importance(store, CELLS)
    assert frame["arm"].tolist() == ["none", "none", "lat/lon", "lat/lon"]
    assert frame["what"].tolist() == ["wind", "place"] * 2
    assert frame["rmse_increase"].tolist() == [2.0, 0.5, 5.0, 0.5]
    assert frame["n"].tolist() == [2, 2, 1, 1]
    assert frame["sd"].tolist() == [pytest.approx(2**0.5), 0.0, 0.1, 0.2]
