"""A table of vectors is read by site or by place, by month or not, and a wrong one is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pm25 import encoders
from tests.errors import refuses

SITES = pd.DataFrame(
    {
        "site_id": ["06-037-1103", "06-037-4006", "36-061-0079"],
        "lat": [34.0664, 33.8244, 40.7997],
        "lon": [-118.2269, -118.1884, -73.9343],
        "b": [1.0, 2.0, 3.0],
        "a": [10, 20, 30],
    }
)
WANTED = np.array([[3, 30], [1, 10], [1, 10]], np.float32)  # rows 2, 0, 0; the columns in the file's order
ORDER = SITES.iloc[[2, 0, 0]]


def write(folder: Path, frame: pd.DataFrame, name: str = "t.parquet", **options: Any) -> Path:
    frame.to_parquet(folder / name, **options)
    return folder / name


def monthly(frame: pd.DataFrame = SITES) -> pd.DataFrame:
    """Value b of month 3 is b + 0.03."""
    months = pd.DataFrame({"month": range(1, 13)})
    rows = frame.merge(months, how="cross")
    return rows.assign(b=rows.b + rows.month / 100)


def test_a_table_keyed_by_site_id(tmp_path):
    table = encoders.load("table", path=write(tmp_path, SITES))
    assert (table.dim, table.trained_on_target) == (2, False)
    vectors = table.embed(ORDER.lat, ORDER.lon, ORDER.site_id)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, WANTED)
    np.testing.assert_array_equal(table.embed(ORDER.lat, ORDER.lon, ORDER.site_id.astype("category")), WANTED)
    assert table.embed([], [], []).shape == (0, 2)
    with refuses("t.parquet", "site_id"):
        table.embed(ORDER.lat, ORDER.lon)
    with refuses("t.parquet", "site_id", (2,), 3):
        table.embed(ORDER.lat, ORDER.lon, ["a", "b"])
    with refuses("t.parquet", "site_id", 60371103):
        table.embed([1.0], [2.0], [60371103])


def test_a_table_keyed_by_site_id_as_pandas_index_or_category(tmp_path):
    plain = encoders.load("table", path=write(tmp_path, SITES))
    index = encoders.load("table", path=write(tmp_path, SITES.set_index("site_id"), "index.parquet"))
    kind = encoders.load("table", path=write(tmp_path, SITES.astype({"site_id": "category"}), "kind.parquet"))
    # A frame with rows taken out has an unnamed index, which pandas stores as a column of numbers.
    rows = encoders.load("table", path=write(tmp_path, SITES.iloc[[2, 0, 1]], "rows.parquet"))
    for table in (plain, index, kind, rows):
        np.testing.assert_array_equal(table.embed(ORDER.lat, ORDER.lon, ORDER.site_id), WANTED)


def test_a_table_keyed_by_place_takes_the_nearest_row_within_the_tolerance(tmp_path):
    path = write(tmp_path, SITES.drop(columns="site_id"))
    table = encoders.load("table", path=path)
    np.testing.assert_array_equal(table.embed(ORDER.lat, ORDER.lon), WANTED)
    np.testing.assert_array_equal(table.embed(ORDER.lat + 6e-5, ORDER.lon - 6e-5, ORDER.site_id), WANTED)
    with refuses("t.parquet", "lat, lon", 2, 0.0001, "(34.0665, -118"):
        table.embed(ORDER.lat + 1.1e-4, ORDER.lon)
    with refuses("t.parquet", "lat, lon", 2):
        table.embed(ORDER.lat, ORDER.lon - 1.1e-4)
    wide = encoders.load("table", path=path, tolerance_deg=0.2)  # two Los Angeles monitors lie 0.25 apart
    np.testing.assert_array_equal(wide.embed([33.95, 33.94], [-118.22, -118.2]), [[1, 10], [2, 20]])
    assert wide.fingerprint != table.fingerprint
    assert encoders.fingerprint("table", path=path, tolerance_deg=1e-4) == table.fingerprint


def test_a_table_by_place_joins_across_the_date_line(tmp_path):
    path = write(tmp_path, pd.DataFrame({"lat": [10.0], "lon": [-179.99999], "a": [5.0]}))
    assert encoders.load("table", path=path).embed([10.0], [179.99999]).tolist() == [[5.0]]


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed"])
def test_a_table_with_one_list_column(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "list": pa.list_(pa.float32()),
        "large_list": pa.large_list(pa.float64()),
        "fixed": pa.list_(pa.float32(), 2),
    }
    vectors = pa.array(SITES[["b", "a"]].to_numpy().tolist(), types[kind])
    pq.write_table(
        pa.table({"site_id": SITES.site_id.tolist(), "embedding": vectors}), tmp_path / "l.parquet"
    )
    table = encoders.load("table", path=tmp_path / "l.parquet")
    np.testing.assert_array_equal(table.embed(ORDER.lat, ORDER.lon, ORDER.site_id), WANTED)


@pytest.mark.parametrize("key", ["site_id", "place"])
def test_a_table_with_months_gives_twelve_vectors_a_place(tmp_path, key):
    frame = monthly(SITES if key == "site_id" else SITES.drop(columns="site_id")).sample(
        frac=1, random_state=0
    )
    table = encoders.load("table", path=write(tmp_path, frame))
    vectors = table.embed(ORDER.lat, ORDER.lon, ORDER.site_id if key == "site_id" else None)
    assert (vectors.shape, vectors.dtype, table.dim) == ((3, 12, 2), np.float32, 2)
    wanted = np.repeat(WANTED[:, None].astype(float), 12, axis=1)
    wanted[:, :, 0] += np.arange(1, 13) / 100
    np.testing.assert_allclose(vectors, wanted, rtol=1e-6)


def test_places_that_a_table_lacks_are_counted_and_named(tmp_path):
    table = encoders.load("table", path=write(tmp_path, SITES))
    ids = [f"{i:02}" for i in range(8)] * 2
    with refuses("t.parquet", "site_id", 8, "00, 01, 02, 03, 04, ..."):
        table.embed(np.zeros(16), np.zeros(16), ids)


LISTS = SITES[["site_id"]].assign(embedding=[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


@pytest.mark.parametrize(
    ("frame", "field", "values"),
    [
        (pd.concat([SITES, SITES[:1]]), "site_id", (1, "06-037-1103")),
        (pd.concat([SITES, SITES[:1]]).drop(columns="site_id"), "lat, lon", (1, "(34.0664, -118")),
        (pd.concat([monthly(), monthly()[5:6]]), "site_id", (1, "06-037-1103")),
        (monthly()[1:], "month", (1, "06-037-1103", 12)),
        (SITES.assign(month=13), "month", (13, "06-037-1103", "1 to 12")),
        (SITES.assign(month=1.5), "month", (1.5, "06-037-1103")),
        (SITES.assign(b=[1.0, np.nan, np.inf]), "value 1 of 2", (2, "06-037-4006")),
        (SITES.assign(b=1e39), "value 1 of 2", (3, "06-037-1103")),  # beyond float32
        (SITES.assign(b=["x", "y", "z"]), "b", ("string",)),
        (SITES.assign(b=[True, False, True]), "b", ("bool",)),
        (SITES.assign(site_id=[60371103, 2, 3]), "site_id", ("int64",)),
        (SITES.assign(site_id=["a", None, "c"]), "site_id", (1,)),
        (SITES.drop(columns=["site_id", "lat"]), "site_id, lat, lon", ("lon, b, a",)),
        (SITES.drop(columns=["site_id"]).assign(lat=[1.0, np.nan, 2.0]), "lat", ("nan", "position 1")),
        (SITES.drop(columns=["site_id"]).assign(lon=200), "lon", (200, "position 0")),
        (SITES[["site_id", "lat", "lon"]], "embedding", ("embedding",)),
        (SITES[:0], "", ()),
        (LISTS.assign(year=2021), "embedding", ("embedding, year",)),
        (LISTS.rename(columns={"embedding": "e"}), "embedding", ("columns e",)),
        (LISTS.assign(embedding=[[1.0], [1.0, 2.0], [3.0]]), "embedding", ("1, 2",)),
        (LISTS.assign(embedding=[[1.0], None, [3.0]]), "embedding", ("1, None",)),
        (LISTS.assign(embedding=[[], [], []]), "embedding", ()),
        (LISTS.assign(embedding=[["x"], ["y"], ["z"]]), "embedding", ("string",)),
        (LISTS.assign(embedding=[[1.0, 2.0], [3.0, np.nan], [5.0, 6.0]]), "value 2 of 2", (1, "06-037-4006")),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, frame, field, values):
    path = write(tmp_path, frame)
    with refuses(str(path), field, *values):
        encoders.load("table", path=path)


def test_a_wrong_request_for_a_table_is_refused(tmp_path):
    path = write(tmp_path, SITES)
    with refuses("gone.parquet", "", "No such file"):
        encoders.fingerprint("table", path=tmp_path / "gone.parquet")
    (tmp_path / "t.csv").write_text("site_id,a\n1,2\n")
    with refuses("t.csv", "", "Parquet"):
        encoders.fingerprint("table", path=tmp_path / "t.csv")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1" + path.read_bytes()[300:])
    with refuses("cut.parquet", "", "Parquet"):
        encoders.load("table", path=tmp_path / "cut.parquet")
    with refuses("encoder table", "tolerance_deg", path, "site_id"):
        encoders.fingerprint("table", path=path, tolerance_deg=1e-4)
    by_place = write(tmp_path, SITES.drop(columns="site_id"), "p.parquet")
    for tolerance in (-1, float("nan"), "x", True):
        with refuses("encoder table", "tolerance_deg", repr(tolerance), "0 to 1"):
            encoders.fingerprint("table", path=by_place, tolerance_deg=tolerance)
    with refuses("encoder table", "trained_on_target", "'no'", "true", "false"):
        encoders.load("table", path=path, trained_on_target="no")


def test_the_fingerprint_of_a_table_is_of_its_bytes(tmp_path):
    one, same = write(tmp_path, SITES), write(tmp_path, SITES, "same.parquet")
    other = write(tmp_path, SITES.assign(a=1), "other.parquet")
    assert encoders.load("table", path=one).fingerprint == encoders.fingerprint("table", path=same)
    assert encoders.fingerprint("table", path=one, trained_on_target=True) == encoders.fingerprint(
        "table", path=one
    )
    assert encoders.fingerprint("table", path=other) != encoders.fingerprint("table", path=one)


def test_a_table_that_was_trained_on_the_target_says_so(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = write(tmp_path, SITES)
    assert encoders.load("table", path=plain, trained_on_target=True).trained_on_target
    assert encoders.load("table", path=write(tmp_path, SITES, "my_PDFM_v1.parquet")).trained_on_target
    noted = pa.Table.from_pandas(SITES).replace_schema_metadata({"source": "PDFM embeddings 2023"})
    pq.write_table(noted, tmp_path / "noted.parquet")
    assert encoders.load("table", path=tmp_path / "noted.parquet", trained_on_target=False).trained_on_target
    shuffled = encoders.load("shuffled", of="table", path=plain, trained_on_target=True)
    assert shuffled.trained_on_target
    assert not encoders.load("random").trained_on_target


@pytest.mark.parametrize("listed", [True, False])
def test_vectors_that_are_too_long_are_refused(tmp_path, monkeypatch, listed):
    from pm25.encoders import table

    values = np.arange(9.0).reshape(3, 3)
    wide = (
        SITES[["site_id"]].assign(embedding=[*values])
        if listed
        else pd.concat([SITES[["site_id"]], pd.DataFrame(values, columns=[*"xyz"])], axis=1)
    )
    path = write(tmp_path, wide)
    monkeypatch.setattr(table, "MOST_UNITS", 3)
    assert encoders.load("table", path=path).dim == 3
    monkeypatch.setattr(table, "MOST_UNITS", 2)
    with refuses("t.parquet", "", "3 values for each place", 2):
        encoders.load("table", path=path)


def test_a_table_of_more_values_than_are_read_is_refused_before(tmp_path, monkeypatch):
    """Three sites with a name, two coordinates and two values each have 15 values."""
    from pm25.encoders import table

    path = write(tmp_path, SITES)
    monkeypatch.setattr(table, "MOST_VALUES", 15)
    encoders.load("table", path=path)
    monkeypatch.setattr(table, "MOST_VALUES", 14)
    with refuses("t.parquet", "", "15 values", 14):
        encoders.load("table", path=path)


def test_columns_beyond_the_limit_are_refused_before_they_are_read(tmp_path, monkeypatch):
    from pm25.encoders import table

    path = write(tmp_path, pd.DataFrame({"site_id": ["a"], **{f"v{i}": [1.0] for i in range(9)}}))
    monkeypatch.setattr(table, "MOST_UNITS", 4)
    monkeypatch.setattr(table.Table, "_places", None)
    with refuses("t.parquet", "", "10 values", 4):
        encoders.load("table", path=path)
