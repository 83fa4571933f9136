"""Sums over stored predictions, learning curves and importances, against hand-computed ones."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pm25 import metrics
from sweeps.analysis import artifacts
from sweeps.analysis.artifacts import CALIBRATION_EDGES, DENSITY_EDGES, Tail
from sweeps.store.records import Store
from tests.errors import refuses

PLACES = {"a": (40.0, -90.0), "b": (45.0, -100.0), "c": (35.0, -80.0)}
BOARD = "checkerboard-16"


def rows(*cells: tuple[str, str, str, int]) -> pd.DataFrame:
    """Done cells of (key, variant, split, fold)."""
    lines = [
        {
            "key": key,
            "variant": variant,
            "fusion": None,
            "split": split,
            "kind": split.split("-")[0],
            "regime": "OoR" if split == BOARD else "WR",
            "fold": fold,
            "seed": 0,
            "state": "done",
        }
        for key, variant, split, fold in cells
    ]
    return pd.DataFrame(lines)


START = np.datetime64("2021-01-01")


def predict(
    store: Store,
    key: str,
    *lines: tuple[str, str, float, float],
    coded: bool = True,
    days: Sequence[int] | None = None,
) -> None:
    """Lines of part, site, truth, prediction; float32 and dictionaries, as they are stored.

    `days` are those of the lines since `START`, by default one day for all.
    """
    parts, sites, truth, prediction = zip(*lines, strict=True)
    texts = {"part": pa.array(parts), "site_id": pa.array(sites)}
    store.write_table(
        key,
        "predictions",
        {
            **{name: column.dictionary_encode() if coded else column for name, column in texts.items()},
            "lat": [PLACES[site][0] for site in sites],
            "lon": [PLACES[site][1] for site in sites],
            "date": START + np.array(days or [0] * len(lines)),
            "truth": pa.array(truth, pa.float32()),
            "prediction": pa.array(prediction, pa.float32()),
        },
    )


CELLS = rows(("k0", "none", BOARD, 0), ("k1", "none", BOARD, 1), ("k2", "latlon", BOARD, 0))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path), "toy")
    predict(
        store,
        "k0",
        ("test", "b", 5.0, 7.0),  # +2
        ("test", "a", 10.0, 11.0),  # +1
        ("test", "a", 40.0, 37.0),  # -3
        ("wr", "c", 36.0, 1000.0),  # +964
    )
    predict(store, "k1", ("test", "a", 8.0, 3.0), ("wr", "b", 1.0, 1.0), coded=False)
    predict(store, "k2", ("test", "a", 10.0, 10.0), ("test", "c", 50.0, 20.0))
    return store


def read(store: Store, frame: pd.DataFrame = CELLS) -> artifacts.Predicted:
    found = artifacts.predictions(store, frame)
    assert found is not None
    return found


def test_sums_by_cell_part_and_site(store: Store) -> None:
    found = read(store)
    assert found.site_id.tolist() == ["a", "b", "c"]  # by name, not by who comes first in a file
    assert found.lat.tolist() == [40.0, 45.0, 35.0]
    assert found.lon.tolist() == [-90.0, -100.0, -80.0]
    sums = found.of("k0", "test")
    assert sums is not None
    index, totals = sums
    assert index.dtype == np.int32
    assert totals.dtype == np.float64
    by_site = {int(i): line.tolist() for i, line in zip(index, totals, strict=True)}
    #              n    e    |e|  e2    y     y2
    assert by_site == {0: [2, -2, 4, 10, 50, 1700], 1: [1, 2, 2, 4, 5, 25]}
    within = found.of("k0", "wr")
    assert within is not None
    assert within[0].tolist() == [2]
    assert within[1].tolist() == [[1, 964, 964, 964**2, 36, 1296]]
    assert found.of("k2", "wr") is None
    assert found.of("unknown", "test") is None


@pytest.mark.parametrize("split", ["random", "rolling-5", BOARD, "spatial"])
def test_sums_by_day_of_splits_that_are_tested_by_days(tmp_path: Path, split: str) -> None:
    store = Store(str(tmp_path), "toy")
    lines = [
        ("test", "a", 5.0, 7.0),
        ("test", "b", 10.0, 9.0),
        ("wr", "a", 1.0, 9.0),
        ("test", "a", 4.0, 1.0),
    ]
    predict(store, "k0", *lines, days=[3, 1, 2, 3])
    found = read(store, rows(("k0", "none", split, 0), ("k1", "none", split, 1)))
    assert found.by_day("k1") is None
    if split in (BOARD, "spatial"):
        assert found.by_day("k0") is None
        return
    found_by_day = found.by_day("k0")
    assert found_by_day is not None
    day, totals = found_by_day
    assert (day.astype("datetime64[D]") - START).astype(int).tolist() == [1, 3]
    #                           n  e  |e| e2   y   y2
    assert totals.tolist() == [[1, -1, 1, 1, 10, 100], [2, -1, 5, 13, 9, 41]]


def test_metrics_come_from_the_totals(tmp_path: Path) -> None:
    store, rng = Store(str(tmp_path), "toy"), np.random.default_rng(0)
    truth, prediction = rng.gamma(2, 5, (2, 60)).astype("float32")
    sites = rng.choice(list(PLACES), 60)
    predict(
        store, "k0", *zip(["test"] * 60, sites.tolist(), truth.tolist(), prediction.tolist(), strict=True)
    )
    sums = read(store, CELLS.iloc[:1]).of("k0")
    assert sums is not None
    n, e, abs_e, e2, y, y2 = sums[1].sum(axis=0)
    expected = metrics.scores(truth, prediction)
    assert math.sqrt(e2 / n) == pytest.approx(expected["rmse"], rel=1e-12)
    assert abs_e / n == pytest.approx(expected["mae"], rel=1e-12)
    assert e / n == pytest.approx(expected["mbe"], rel=1e-12)
    assert 1 - e2 / (y2 - y**2 / n) == pytest.approx(expected["r2"], rel=1e-12)


def test_site_errors_pool_folds(store: Store) -> None:
    found = read(store)
    errors = found.site_errors("none", BOARD)
    assert errors.to_dict("list") == {
        "site_id": ["a", "b"],
        "lat": [40.0, 45.0],
        "lon": [-90.0, -100.0],
        "n": [3, 1],
        "bias": [pytest.approx(-7 / 3), 2.0],  # (1 - 3 - 5) / 3
        "rmse": [pytest.approx(math.sqrt(35 / 3)), 2.0],  # (1 + 9 + 25) / 3
    }
    assert found.site_errors("none", BOARD, "wr")["bias"].tolist() == [0.0, 964.0]
    assert found.totals("none", BOARD).tolist() == [4, -5, 11, 39, 63, 1789]


def test_differences_are_over_cells_that_both_have(store: Store) -> None:
    frame = read(store).site_differences("lat/lon", "none", BOARD)
    # Site a in fold 0 alone: 0 minus the root of (1 + 9) / 2. Sites b and c are in one of the arms only.
    assert frame["site_id"].tolist() == ["a"]
    assert frame["n"].tolist() == [1]
    assert frame["difference"].tolist() == [pytest.approx(-math.sqrt(5))]
    back = read(store).site_differences("none", "lat/lon", BOARD)
    assert back["difference"].tolist() == [pytest.approx(math.sqrt(5))]


def test_densities_count_every_prediction_once(store: Store) -> None:
    found = read(store)
    count = found.density("none", BOARD)
    assert count.sum() == 4
    for truth, prediction in ((5, 7), (10, 11), (40, 37), (8, 3)):
        i, j = (np.searchsorted(DENSITY_EDGES, value, side="right") - 1 for value in (truth, prediction))
        assert count[i, j] == 1
    assert found.density("none", BOARD, "wr")[:, -1].sum() == 1  # 1,000 and more are in the last bin
    assert [*found.arms(BOARD)] == ["none", "lat/lon"]
    assert found.arms("random") == []
    assert found.arms(BOARD, "wr") == ["none"]


def test_calibration_by_predicted_bin(store: Store) -> None:
    frame = read(store).calibration("none", BOARD)
    assert frame["low"].tolist() == [2.0, 6.0, 10.0, 35.5]  # predicted 3, 7, 11 and 37
    assert frame["high"].tolist() == [4.0, 8.0, 12.5, 45.0]
    assert frame["n"].tolist() == [1, 1, 1, 1]
    assert frame["observed"].tolist() == [8.0, 5.0, 10.0, 40.0]
    assert frame["predicted"].tolist() == [3.0, 7.0, 11.0, 37.0]
    assert metrics.EXCEEDANCE_UGM3 in CALIBRATION_EDGES


def test_the_tail(store: Store) -> None:
    found = read(store)
    assert found.tail("none", BOARD) == Tail(observed=1, predicted=1, both=1)
    assert found.tail("lat/lon", BOARD) == Tail(observed=1, predicted=0, both=0)


def test_cells_that_are_not_done_are_not_read(store: Store) -> None:
    frame = CELLS.assign(state=["done", "failed", "missing"])
    found = read(store, frame)
    assert found.of("k1") is None
    assert found.arms(BOARD) == ["none"]


def test_without_predictions_there_is_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    assert artifacts.predictions(store, CELLS) is None
    assert artifacts.predictions(store, CELLS.iloc[:0]) is None
    predict(store, "k1", ("test", "a", 8.0, 3.0))
    assert read(store).of("k0") is None  # one done cell has lost its file


def test_a_damaged_file_is_named(store: Store) -> None:
    store.write_file("k1", "predictions.parquet", b"PAR1 cut short")
    with refuses("k1/predictions.parquet", "", "not a readable table", "retry"):
        artifacts.predictions(store, CELLS)


def test_the_same_on_other_storage(store: Store) -> None:
    """Where each file takes requests, several are read at a time."""
    remote = Store(f"file://{store.storage}", "toy")
    local = read(store).site_errors("none", BOARD)
    pd.testing.assert_frame_equal(read(remote).site_errors("none", BOARD), local)


# Learning curves and importances


def on_random(*cells: tuple[str, str, int]) -> pd.DataFrame:
    """Done cells of (key, variant, seed) on the random split."""
    place = {"fusion": None, "split": "random", "regime": "WR", "fold": 0, "state": "done"}
    return pd.DataFrame([{"key": k, "variant": v, "seed": s, **place} for k, v, s in cells])


DONE = on_random(("k0", "none", 0), ("k1", "none", 1), ("k2", "none", 2), ("k3", "latlon", 0))


@pytest.fixture
def histories(tmp_path: Path) -> Store:
    store = Store(str(tmp_path), "toy")
    for key, curve in {"k0": [5.0, 4.0, 3.0, 2.0], "k1": [7.0, 6.0], "k2": [9.0]}.items():
        store.write_table(key, "history", {"epoch": [*range(1, len(curve) + 1)], "validation_rmse": curve})
    return store


def test_curves_end_where_most_cells_have_ended(histories: Store) -> None:
    frame, read, done = artifacts.curves(histories, DONE)
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


def test_of_many_cells_the_first_seeds_are_read(histories: Store) -> None:
    frame, read, done = artifacts.curves(histories, DONE, most=3)
    assert (read, done) == (3, 4)  # seed 0 of both arms, then seed 1
    assert frame["n"].tolist() == [2, 2, 1, 1]
    assert frame["mean"].tolist() == [6.0, 5.0, 3.0, 2.0]


def test_no_curves(tmp_path: Path) -> None:
    empty = Store(str(tmp_path), "toy")
    assert artifacts.curves(empty, DONE).frame.empty
    assert artifacts.curves(empty, DONE.iloc[:0]).frame.empty
    assert artifacts.importance(empty, DONE).empty


def test_importances_are_means_over_cells(histories: Store) -> None:
    for key, rise in {"k0": 1.0, "k1": 3.0, "k3": 5.0}.items():
        histories.write_table(
            key, "importance", {"what": ["wind", "place"], "rmse_increase": [rise, 0.5], "sd": [0.1, 0.2]}
        )
    frame = artifacts.importance(histories, DONE)
    assert frame["arm"].tolist() == ["none", "none", "lat/lon", "lat/lon"]
    assert frame["what"].tolist() == ["wind", "place"] * 2
    assert frame["rmse_increase"].tolist() == [2.0, 0.5, 5.0, 0.5]
    assert frame["n"].tolist() == [2, 2, 1, 1]
    assert frame["sd"].tolist() == [pytest.approx(2**0.5), 0.0, 0.1, 0.2]
