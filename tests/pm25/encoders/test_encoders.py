"""Frozen location encoders give the published vectors, latitude first, and cost no import before that."""

import hashlib
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pm25 import encoders
from pm25.errors import InputError

FIXTURE = Path(__file__).parents[3].parent / "shared" / "fixtures" / "geoclip_mexicali.csv"


@pytest.fixture(scope="module")
def geoclip() -> encoders.Encoder:
    return encoders.load("geoclip")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not FIXTURE.exists(), reason=f"no shared fixture {FIXTURE.name}")
def test_geoclip_agrees_with_the_published_code_in_all_512_values(geoclip):
    vector = geoclip.embed([32.6245], [-115.4683])[0]
    np.testing.assert_allclose(vector, np.loadtxt(FIXTURE, delimiter=","), rtol=0, atol=5e-6)


def test_geoclip_gives_the_published_vector_of_mexicali(geoclip):
    # The first four values and the length that geoclip 1.3.0 itself gives.
    vector = geoclip.embed([32.6245], [-115.4683])[0]
    published = [0.0190644953, 0.0123624261, 8.20900314e-05, -0.0246308595]
    np.testing.assert_allclose(vector[:4], published, rtol=0, atol=5e-6)
    assert np.linalg.norm(vector) == pytest.approx(0.29409, abs=1e-5)  # not of unit length


def test_equal_earth_of_known_points():
    import torch

    # Savric et al. 2018: half the equator is 2 pi / (sqrt(3) A1) long, the pole line lies at 1.3173627.
    points = torch.tensor([[0.0, 0.0], [0.0, 180.0], [90.0, 0.0], [-90.0, 0.0]], dtype=torch.float64)
    x, y = encoders._equal_earth(points).T
    equator = 2 * np.pi / np.sqrt(3) / 1.340264
    np.testing.assert_allclose(x, [0, equator, 0, 0], atol=1e-12)
    np.testing.assert_allclose(y, [0, 0, 1.3173627591574, -1.3173627591574], atol=1e-12)


def test_latitude_comes_first(geoclip):
    # Both orders are places on the globe here, so only the order can tell them apart.
    vector, swapped = geoclip.embed([45.0, 80.0], [80.0, 45.0])
    # The published code at (lat, lon) = (45, 80) and (80, 45), in float32.
    np.testing.assert_allclose(vector[:3], [0.01285203, 0.00768513, 0.00687621], rtol=0, atol=5e-6)
    np.testing.assert_allclose(swapped[:3], [0.02034693, -0.01399420, 0.00714316], rtol=0, atol=5e-6)


def test_a_vector_depends_on_its_place_only_and_comes_in_the_order_asked_for(geoclip):
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-90, 90, 40), rng.uniform(-180, 180, 40)
    together = geoclip.embed(lat, lon)
    assert together.shape == (40, geoclip.dim)
    assert together.dtype == np.float32
    again = geoclip.embed(np.tile(lat, 60), np.tile(lon, 60))  # 2400 samples, more than a chunk, 40 places
    np.testing.assert_array_equal(again, np.tile(together, (60, 1)))
    alone = np.concatenate([geoclip.embed(lat[i : i + 1], lon[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(together[:5], alone, rtol=0, atol=1e-8)


def test_chunks_join_seamlessly(geoclip, monkeypatch):
    lat, lon = np.linspace(25, 49, 11), np.linspace(-124, -67, 11)
    whole = geoclip.embed(lat, lon)
    monkeypatch.setattr(encoders, "CHUNK", 4)
    np.testing.assert_allclose(geoclip.embed(lat, lon), whole, rtol=0, atol=1e-8)


def test_no_places_give_no_vectors(geoclip):
    assert geoclip.embed([], []).shape == (0, 512)


def test_fingerprint_follows_weights_and_code_version(geoclip, monkeypatch, tmp_path):
    assert encoders.fingerprint("geoclip") == geoclip.fingerprint
    assert len(geoclip.fingerprint) == 64
    monkeypatch.setattr(encoders, "CODE_VERSION", encoders.CODE_VERSION + 1)
    assert encoders.fingerprint("geoclip") != geoclip.fingerprint
    monkeypatch.undo()
    other = tmp_path / "weights.pth"
    other.write_bytes(encoders.GeoCLIP.weights_file().read_bytes() + b"\0")
    monkeypatch.setattr(encoders.GeoCLIP, "weights_file", staticmethod(lambda: other))
    assert encoders.fingerprint("geoclip") != geoclip.fingerprint


def test_the_fingerprint_of_geoclip_is_what_it_was_before_there_were_others():
    weights = encoders.GeoCLIP.weights_file().read_bytes()
    assert encoders.fingerprint("geoclip") == hashlib.sha256(b"geoclip 1\n" + weights).hexdigest()


def test_no_fingerprint_needs_torch(tmp_path):
    checkpoint, table = tmp_path / "any.ckpt", tmp_path / "t.parquet"
    checkpoint.write_bytes(b"weights")
    pd.DataFrame({"lat": [1.0], "lon": [2.0], "a": [3.0]}).to_parquet(table)
    loaded = run(
        "import sys; from pm25.encoders import fingerprint as f;"
        f"f('satclip', checkpoint={str(checkpoint)!r}); f('table', path={str(table)!r}); f('random');"
        "f('shuffled'); f('shuffled', of='random');"
        "print([m for m in ('torch', 'geoclip', 'scipy') if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_fingerprint_needs_no_torch_and_embedding_no_image_tower():
    loaded = run(
        "import sys; from pm25 import encoders; encoders.fingerprint('geoclip');"
        "before = [m for m in ('torch', 'geoclip') if m in sys.modules];"
        "encoders.load('geoclip').embed([40.0], [-100.0]);"
        "after = [m for m in ('torch', 'geoclip', 'torchvision', 'transformers') if m in sys.modules];"
        "print(before, after)"
    )
    assert loaded.strip() == "[] ['torch']"


@pytest.mark.parametrize(
    ("lat", "lon", "message"),
    [
        ([0.0, 95.0], [0.0, 0.0], "lat 95 at position 1 is not in -90..90"),
        ([-115.4683], [32.6245], "lat -115.468 at position 0 is not in -90..90; are lat and lon swapped"),
        ([32.6], [244.5], "lon 244.5 at position 0 is not in -180..180; subtract 360"),
        ([np.nan], [0.0], "lat nan at position 0"),
        ([0.0], [np.inf], "lon inf at position 0"),
        ([0.0, 1.0], [0.0], "two 1-D arrays of the same length"),
    ],
)
def test_impossible_places_are_named(geoclip, lat, lon, message):
    with pytest.raises(InputError, match=message):
        geoclip.embed(lat, lon)


def test_bad_requests_are_named(monkeypatch):
    with pytest.raises(InputError, match="unknown name 'geoclap'; known: geoclip"):
        encoders.load("geoclap")
    with pytest.raises(InputError, match="encoder geoclip: unknown option checkpoint"):
        encoders.fingerprint("geoclip", checkpoint="x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install geoclip"):
        encoders.load("geoclip")
    with pytest.raises(InputError, match="encoder table: give path="):
        encoders.load("table")
    with pytest.raises(InputError, match="encoder random: unknown option size; it takes dim, seed"):
        encoders.load("random", size=3)
    with pytest.raises(InputError, match="encoder random: dim is 0; a whole number from 1"):
        encoders.load("random", dim=0)
    with pytest.raises(InputError, match="encoder random: seed is -1; a whole number from 0"):
        encoders.load("random", seed=-1)
    with pytest.raises(InputError, match="encoder random: unknown option size"):
        encoders.load("shuffled", of="random", size=3)
    with pytest.raises(InputError, match="shuffles twice"):
        encoders.load("shuffled", of="shuffled")
    with pytest.raises(InputError, match="unknown name 'nope'"):
        encoders.fingerprint("shuffled", of="nope")


# table

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
    with pytest.raises(InputError, match="keyed by site_id; pass the site_id"):
        table.embed(ORDER.lat, ORDER.lon)
    with pytest.raises(InputError, match=r"3 places, but site_id has shape \(2,\)"):
        table.embed(ORDER.lat, ORDER.lon, ["a", "b"])
    with pytest.raises(InputError, match="site_id 60371103 is no text"):
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
    with pytest.raises(
        InputError, match=r"2 of the places have no vector within 0.0001 degrees: \(34.0665, -118"
    ):
        table.embed(ORDER.lat + 1.1e-4, ORDER.lon)
    with pytest.raises(InputError, match="2 of the places have no vector"):
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
    with pytest.raises(InputError, match=r"8 of the places have no vector: 00, 01, 02, 03, 04, \.\.\.; fix"):
        table.embed(np.zeros(16), np.zeros(16), ids)


LISTS = SITES[["site_id"]].assign(embedding=[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.concat([SITES, SITES[:1]]), "1 places have two rows for one vector: 06-037-1103"),
        (pd.concat([SITES, SITES[:1]]).drop(columns="site_id"), r"two rows for one vector: \(34.0664, -118"),
        (pd.concat([monthly(), monthly()[5:6]]), "1 places have two rows for one vector: 06-037-1103"),
        (monthly()[1:], "1 places lack some of the 12 months: 06-037-1103"),
        (SITES.assign(month=13), "month 13 at 06-037-1103 is not 1..12"),
        (SITES.assign(month=1.5), "month 1.5 at"),
        (
            SITES.assign(b=[1.0, np.nan, np.inf]),
            "2 values are missing or not finite, the first at 06-037-4006, value 1",
        ),
        (SITES.assign(b=1e39), "3 values are missing or not finite"),  # beyond float32
        (SITES.assign(b=["x", "y", "z"]), "column b is .*string; numbers are needed"),
        (SITES.assign(b=[True, False, True]), "column b is bool"),
        (SITES.assign(site_id=[60371103, 2, 3]), "site_id is int64 with 0 missing; text is needed"),
        (SITES.assign(site_id=["a", None, "c"]), "with 1 missing; text is needed"),
        (
            SITES.drop(columns=["site_id", "lat"]),
            "no column site_id, nor lat and lon; its columns: lon, b, a",
        ),
        (SITES.drop(columns=["site_id"]).assign(lat=[1.0, np.nan, 2.0]), "t.parquet: lat nan at position 1"),
        (SITES.drop(columns=["site_id"]).assign(lon=200), "t.parquet: lon 200 at position 0"),
        (SITES[["site_id", "lat", "lon"]], "found neither"),
        (SITES[:0], "it has no rows"),
        (
            LISTS.assign(year=2021),
            "one list column named embedding, or columns of numbers; found embedding, year",
        ),
        (LISTS.rename(columns={"embedding": "e"}), "one list column named embedding"),
        (LISTS.assign(embedding=[[1.0], [1.0, 2.0], [3.0]]), "differ in length or are missing: 1, 2"),
        (LISTS.assign(embedding=[[1.0], None, [3.0]]), "differ in length or are missing: 1, None"),
        (LISTS.assign(embedding=[[], [], []]), "differ in length or are missing|numbers are needed"),
        (LISTS.assign(embedding=[["x"], ["y"], ["z"]]), "column embedding is .*string; numbers are needed"),
        (
            LISTS.assign(embedding=[[1.0, 2.0], [3.0, np.nan], [5.0, 6.0]]),
            "first at 06-037-4006, value 2 of 2",
        ),
    ],
)
def test_a_wrong_table_is_named_in_one_line(tmp_path, frame, message):
    with pytest.raises(InputError, match=message) as caught:
        encoders.load("table", path=write(tmp_path, frame))
    assert "\n" not in str(caught.value)
    assert "t.parquet" in str(caught.value)


def test_a_wrong_request_for_a_table_is_named(tmp_path):
    path = write(tmp_path, SITES)
    with pytest.raises(InputError, match=r"gone.parquet: cannot be read: No such file"):
        encoders.fingerprint("table", path=tmp_path / "gone.parquet")
    (tmp_path / "t.csv").write_text("site_id,a\n1,2\n")
    with pytest.raises(InputError, match=r"t.csv: not a Parquet file"):
        encoders.fingerprint("table", path=tmp_path / "t.csv")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1" + path.read_bytes()[300:])
    with pytest.raises(InputError, match=r"cut.parquet: "):
        encoders.load("table", path=tmp_path / "cut.parquet")
    with pytest.raises(InputError, match="tolerance_deg means nothing for a table keyed by site_id"):
        encoders.fingerprint("table", path=path, tolerance_deg=1e-4)
    by_place = write(tmp_path, SITES.drop(columns="site_id"), "p.parquet")
    for tolerance in (-1, float("nan"), "x", True):
        with pytest.raises(InputError, match="tolerance_deg is"):
            encoders.fingerprint("table", path=by_place, tolerance_deg=tolerance)
    with pytest.raises(InputError, match="trained_on_target is 'no'; true or false"):
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


# controls


def test_a_random_vector_depends_on_its_place_and_seed_only():
    rng = np.random.default_rng(1)
    lat, lon = rng.uniform(25, 49, 50), rng.uniform(-124, -67, 50)
    encoder = encoders.load("random", dim=16, seed=3)
    together = encoder.embed(lat, lon)
    assert (together.shape, together.dtype, encoder.dim) == ((50, 16), np.float32, 16)
    alone = np.concatenate([encoder.embed(lat[i : i + 1], lon[i : i + 1]) for i in range(50)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(encoder.embed(lat[::-1], lon[::-1]), together[::-1])
    np.testing.assert_array_equal(encoder.embed(lat.round(6), lon.round(6)), together)
    assert not np.isin(encoder.embed(lat + 2e-6, lon), together).any()
    assert not np.isin(encoders.load("random", dim=16, seed=4).embed(lat, lon), together).any()
    assert not np.isin(encoder.embed([40.0], [30.0]), encoder.embed([30.0], [40.0])).any()


def test_random_vectors_are_the_same_bytes_on_every_machine():
    vector = encoders.load("random", dim=4).embed([40.0], [-100.0])[0]
    np.testing.assert_allclose(vector, [0.004652301, 0.176681921, -0.240544736, -0.024438851], rtol=1e-6)


def test_random_vectors_have_the_length_of_geoclips(geoclip):
    lat, lon = (grid.ravel() for grid in np.meshgrid(np.linspace(26, 48, 20), np.linspace(-122, -70, 20)))
    ours = encoders.load("random").embed(lat, lon)
    theirs = np.linalg.norm(geoclip.embed(lat, lon), axis=1)
    assert np.linalg.norm(ours, axis=1).mean() == pytest.approx(0.25, rel=0.01)
    assert np.linalg.norm(ours, axis=1).mean() == pytest.approx(theirs.mean(), rel=0.2)
    assert np.linalg.norm(encoders.load("random", dim=64).embed(lat, lon), axis=1).mean() == pytest.approx(
        0.25, rel=0.02
    )
    assert abs(np.corrcoef(ours[:, 0], lat)[0, 1]) < 0.15  # no geography: 3 standard errors of 400


def test_random_vectors_of_all_monitors_take_less_than_a_second():
    rng = np.random.default_rng(1)
    started = time.perf_counter()
    encoders.load("random").embed(rng.uniform(25, 49, 1414), rng.uniform(-124, -67, 1414))
    assert time.perf_counter() - started < 1


def rows(vectors: np.ndarray) -> list[bytes]:
    return sorted(vector.tobytes() for vector in vectors)


@pytest.mark.parametrize("of", ["geoclip", "random"])
def test_shuffled_vectors_are_the_same_vectors_at_other_places(of):
    rng = np.random.default_rng(2)
    lat, lon = rng.uniform(25, 49, 40), rng.uniform(-124, -67, 40)
    own = encoders.load(of).embed(lat, lon)
    encoder = encoders.load("shuffled", of=of, seed=5)
    shuffled = encoder.embed(lat, lon)
    assert encoder.dim == own.shape[1]
    assert rows(shuffled) == rows(own)
    assert not (shuffled == own).all(axis=1).any()
    np.testing.assert_array_equal(encoders.load("shuffled", of=of, seed=5).embed(lat, lon), shuffled)
    assert (encoders.load("shuffled", of=of, seed=6).embed(lat, lon) != shuffled).any()
    # Rows in another order, and places that repeat, change nothing.
    again = rng.integers(0, 40, 200)
    again[:40] = np.arange(40)[::-1]
    np.testing.assert_array_equal(encoder.embed(lat[again], lon[again]), shuffled[again])


def test_shuffling_one_place_or_none_leaves_it():
    encoder = encoders.load("shuffled", of="random", dim=3)
    own = encoders.load("random", dim=3).embed([40.0], [-100.0])
    np.testing.assert_array_equal(encoder.embed([40.0], [-100.0]), own)
    assert encoder.embed([], []).shape == (0, 3)


def test_a_shuffled_table_permutes_sites_even_where_two_share_a_place(tmp_path):
    frame = pd.concat([SITES, SITES[:1].assign(site_id="x", b=4.0)])
    path = write(tmp_path, monthly(frame))
    own = encoders.load("table", path=path).embed(frame.lat, frame.lon, frame.site_id)
    shuffled = encoders.load("shuffled", of="table", path=path).embed(frame.lat, frame.lon, frame.site_id)
    assert shuffled.shape == (4, 12, 2)
    assert rows(shuffled) == rows(own)
    assert not (shuffled == own).all(axis=(1, 2)).any()
    with pytest.raises(InputError, match="encoder shuffled: keyed by site_id; pass"):
        encoders.load("shuffled", of="table", path=path).embed(frame.lat, frame.lon)


def test_fingerprints_of_controls_cover_their_options_with_defaults_filled_in():
    print_of = encoders.fingerprint
    assert print_of("random") == print_of("random", dim=512, seed=0) == encoders.load("random").fingerprint
    assert print_of("shuffled") == print_of("shuffled", of="geoclip", seed=0)
    different = {
        print_of("geoclip"),
        print_of("random"),
        print_of("random", dim=8),
        print_of("random", seed=1),
        print_of("shuffled"),
        print_of("shuffled", seed=1),
        print_of("shuffled", of="random"),
        print_of("shuffled", of="random", dim=8),
    }
    assert len(different) == 8
    assert encoders.load("shuffled", of="random", dim=8).fingerprint in different
