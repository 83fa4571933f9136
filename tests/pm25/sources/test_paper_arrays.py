"""Published arrays become site-days: a small world under each calendar convention, and every refusal."""

import io
import os
import pickle
import re
import tracemalloc
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pm25 import encoders, panel
from pm25.sources import paper_arrays
from pm25.sources.paper_arrays import CHANNELS
from pm25.tables import schema
from tests.errors import refuses

DAYS = 21
PLACES = np.array([[40.71274, -74.00597], [34.05223, -118.24368], [47.60621, -122.33207], [9.5, -80.0]])
SITES = ["40.71274,-74.00597", "34.05223,-118.24368", "47.60621,-122.33207", "9.50000,-80.00000"]
LAT, LON, YEAR = (CHANNELS.index(name) for name in ("lat", "lon", "year"))

CONVENTIONS = list(product(("year", 365, 366, 365.25), (0, 1), (0, 1)))


class World:
    """Sites with every day from `start`, and a window for each (site, last day), in random order."""

    def __init__(self, start="2021-01-15", days=60, convention=("year", 1, 1), dtype=np.float32) -> None:
        rng = np.random.default_rng(0)
        period, first_day, first_month = convention
        self.dates = pd.date_range(start, periods=days, freq="D", unit="us")
        length = 365 + self.dates.is_leap_year
        turn = (self.dates.day_of_year - 1 + first_day) / (length if period == "year" else period)
        month = (self.dates.month - 1 + first_month) / 12
        self.features = rng.normal(5, 9, (len(PLACES), days, len(CHANNELS))).astype(dtype)
        for name, values in {
            "day_cos": np.cos(2 * np.pi * turn),
            "day_sin": np.sin(2 * np.pi * turn),
            "month_cos": np.cos(2 * np.pi * month),
            "month_sin": np.sin(2 * np.pi * month),
            "year": self.dates.year,
        }.items():
            self.features[:, :, CHANNELS.index(name)] = np.asarray(values, dtype)
        self.features[:, :, [LAT, LON]] = PLACES[:, None]
        self.features[1, 10, CHANNELS.index("aod_047")] = np.nan
        self.pm25 = rng.gamma(2, 5, (len(PLACES), days)).astype(dtype)
        site, day = (a.ravel() for a in np.meshgrid(range(len(PLACES)), range(DAYS - 1, days)))
        order = rng.permutation(len(site))
        self.site, self.day = site[order], day[order]
        self.x = np.stack(
            [self.features[s, d - DAYS + 1 : d + 1] for s, d in zip(self.site, self.day, strict=True)]
        )
        self.y = self.pm25[self.site, self.day]

    def save(self, folder: Path) -> tuple[Path, Path]:
        np.save(folder / "X.npy", self.x)
        np.save(folder / "y.npy", self.y)
        return folder / "X.npy", folder / "y.npy"

    def ends(self, folder: Path) -> Path:
        np.save(folder / "dates.npy", self.dates.to_numpy()[self.day].astype("datetime64[D]"))
        return folder / "dates.npy"

    @property
    def table(self) -> pd.DataFrame:
        """Expected table, from the features and not from the windows."""
        kept = [c for c in CHANNELS if c not in ("lat", "lon", "knnidw_distance", "knnidw_pm25")]
        rows = []
        for s, site_id in sorted(enumerate(SITES), key=lambda pair: pair[1]):
            covered, ends = set(), set(self.day[self.site == s])
            for end in ends:
                covered |= set(range(end - DAYS + 1, end + 1))
            for d in sorted(covered):
                pm25 = self.pm25[s, d] if d in ends else np.nan
                features = {c: self.features[s, d, CHANNELS.index(c)] for c in kept}
                place = dict(zip(("lat", "lon"), PLACES[s], strict=True))
                rows.append({"site_id": site_id, "date": self.dates[d], **place, "pm25": pm25, **features})
        types = dict.fromkeys(["pm25", *kept], self.x.dtype)
        return pd.DataFrame(rows).astype({"date": "datetime64[us]", **types})

    def keep(self, samples) -> "World":
        self.x, self.y = self.x[samples], self.y[samples]
        self.site, self.day = self.site[samples], self.day[samples]
        return self


def same(found: pd.DataFrame, world: World) -> None:
    pd.testing.assert_frame_equal(found, world.table, check_exact=True)


@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
@pytest.mark.parametrize("start", ["2021-01-15", "2020-12-01", "2020-12-20"])
def test_every_convention_gives_the_site_days_back(tmp_path, convention, start):
    """The last two cross the New Year after a leap year, where day 366 of period 365 is day 1."""
    world = World(start, convention=convention)
    same(paper_arrays.to_table(*world.save(tmp_path)), world)


@pytest.mark.parametrize("start", ["2020-01-01", "2019-12-05", "2020-12-11"])
@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
def test_a_year_and_more(tmp_path, convention, start):
    world = World(start, 420, convention).keep(slice(None, None, 3))
    same(paper_arrays.to_table(*world.save(tmp_path)), world)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_chunks_precision_and_a_column_of_targets(tmp_path, monkeypatch, dtype, chunk):
    monkeypatch.setattr(paper_arrays, "CHUNK", chunk)
    world = World(dtype=np.dtype(dtype).newbyteorder("="))
    expected = world.table
    world.x, world.y = np.asfortranarray(world.x.astype(dtype)), world.y[:, None].astype(dtype)
    pd.testing.assert_frame_equal(paper_arrays.to_table(*world.save(tmp_path)), expected, check_exact=True)


def test_noise_within_the_tolerance_gives_the_first_sample_whatever_the_chunk(tmp_path, monkeypatch):
    world = World()
    world.x[..., CHANNELS.index("tmax")] *= 1 + 2e-5 * np.random.default_rng(1).random((len(world.x), 1))
    files = world.save(tmp_path)
    whole = paper_arrays.to_table(*files)
    monkeypatch.setattr(paper_arrays, "CHUNK", 3)
    pd.testing.assert_frame_equal(paper_arrays.to_table(*files), whole, check_exact=True)
    tmax = CHANNELS.index("tmax")
    day = 30
    sample = int(np.argmax((world.site == 1) & (world.day >= day) & (world.day < day + DAYS)))
    row = whole[(whole["site_id"] == SITES[1]) & (whole["date"] == world.dates[day])].iloc[0]
    assert row["tmax"] == world.x[sample, DAYS - 1 - (world.day[sample] - day), tmax]
    assert row["tmax"] != world.features[1, day, tmax]


def test_memory_is_a_chunk_and_the_result(tmp_path, monkeypatch):
    """X is 27 MB; the table 1.2 MB."""
    world = World(days=420)
    world.x, world.y = np.tile(world.x, (9, 1, 1)), np.tile(world.y, 9)
    files = world.save(tmp_path)
    size = world.x.nbytes
    expected = world.table
    del world
    monkeypatch.setattr(paper_arrays, "CHUNK", 256)
    tracemalloc.start()
    try:
        found = paper_arrays.to_table(*files)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert size > 25e6
    assert peak < 6e6


def test_windows_of_the_panel_are_x(tmp_path):
    world = World("2020-12-20")
    table = paper_arrays.to_table(*world.save(tmp_path))
    channels = [c for c in CHANNELS if c in table and c not in ("lat", "lon")]
    data = panel.from_table(pa.Table.from_pandas(table), "X.npy", channels)
    assert list(data.site_id) == sorted(SITES)
    site, day = data.samples(DAYS)
    windows = np.stack([data.features[s, d - DAYS + 1 : d + 1] for s, d in zip(site, day, strict=True)])
    at = {key: i for i, key in enumerate(zip(data.site_id[site], data.dates[day], strict=True))}
    ends = world.dates.to_numpy()[world.day].astype("datetime64[D]")
    rows = [at[SITES[s], end] for s, end in zip(world.site, ends, strict=True)]
    assert sorted(rows) == list(range(len(world.x)))
    np.testing.assert_array_equal(windows[rows], world.x[..., [CHANNELS.index(c) for c in channels]])
    np.testing.assert_array_equal(data.target[site, day][rows], world.y)
    np.testing.assert_array_equal(data.lat[site[rows]].astype(np.float32), world.x[:, -1, LAT])
    assert len(panel.from_table(pa.Table.from_pandas(table), "X.npy").channels) == 19


def test_through_parquet(tmp_path):
    world = World()
    paper_arrays.to_table(*world.save(tmp_path)).to_parquet(tmp_path / "p.parquet", index=False)
    assert panel.read(tmp_path / "p.parquet").observed == len(world.x)


def test_padding_has_no_row(tmp_path):
    world = World(days=22).keep([0])
    world.x[0, :4] = -1
    found = paper_arrays.to_table(*world.save(tmp_path))
    assert len(found) == 17
    assert found["date"].iloc[0] == world.dates[world.day[0] - 16]


def test_a_day_padded_in_one_window_is_taken_from_another(tmp_path):
    world = World()
    world.x[world.day == world.day.max(), :20] = -1
    same(paper_arrays.to_table(*world.save(tmp_path)), world)


def test_a_sample_given_twice_counts_once_and_a_missing_target_stays_missing(tmp_path):
    world = World()
    world.y[3] = world.pm25[world.site[3], world.day[3]] = np.nan
    world.x, world.y = np.concatenate([world.x, world.x[:9]]), np.concatenate([world.y, world.y[:9]])
    same(paper_arrays.to_table(*world.save(tmp_path)), world)


def test_other_channels_by_name(tmp_path):
    world = World()
    order = [YEAR, LAT, *(i for i in range(23) if i not in (YEAR, LAT))]
    expected = world.table
    world.x = world.x[..., order]
    found = paper_arrays.to_table(*world.save(tmp_path), channels=[CHANNELS[i] for i in order])
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_exact=True)


def test_one_wrong_day_in_a_thousand_is_borne(tmp_path):
    world = World(days=420)
    lone = [CHANNELS.index(c) for c in ("month_cos", "month_sin")]
    world.features[0, 0, lone] = 1, 0  # January of the second convention; this day stands in one window
    world.x[(world.site == 0) & (world.day == DAYS - 1), 0, lone[0]] = world.features[0, 0, lone[0]]
    world.x[(world.site == 0) & (world.day == DAYS - 1), 0, lone[1]] = world.features[0, 0, lone[1]]
    same(paper_arrays.to_table(*world.save(tmp_path)), world)


def test_two_wrong_days_in_a_thousand_are_not(tmp_path):
    world = World(days=420)
    wrong = np.random.default_rng(0).permutation(world.x.shape[0] * DAYS)[: len(world.x) * DAYS // 500]
    world.x.reshape(-1, 23)[wrong, YEAR] = np.nan
    with refuses("X.npy", "date", "99.8%", "99.9%"):
        convert(tmp_path, world)


def test_noise_about_january_1(tmp_path):
    """An angle just below 0 is not day 365."""
    world = World("2020-12-20", convention=(365, 0, 0))
    for name in ("day_sin", "month_sin"):
        world.x[..., CHANNELS.index(name)] -= 1e-6
        world.features[..., CHANNELS.index(name)] -= 1e-6
    same(paper_arrays.to_table(*world.save(tmp_path)), world)


def test_dates_given(tmp_path):
    """A month without its ends does not determine if January 1 is day 0 or 1; `dates` needs no calendar."""
    world = World("2021-03-03", 25)
    files = world.save(tmp_path)
    with refuses("X.npy", "sample 0", "2021-03-", "dates=") as refused:
        paper_arrays.to_table(*files)
    assert len(set(re.findall(r"2021-03-\d\d", refused.value.problem))) == 2
    same(paper_arrays.to_table(*files, dates=world.ends(tmp_path)), world)
    expected = world.table.drop(columns=[*schema.CALENDAR, "year"])
    calendar = [CHANNELS.index(c) for c in (*schema.CALENDAR, "year")]
    world.x = np.delete(world.x, calendar, axis=2)
    names = [c for i, c in enumerate(CHANNELS) if i not in calendar]
    files = world.save(tmp_path)
    found = paper_arrays.to_table(*files, names, world.ends(tmp_path))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    with refuses("X.npy", ", ".join([*schema.CALENDAR, "year"]), "dates="):
        paper_arrays.to_table(*files, names)


def convert(folder: Path, world: World, **options) -> pd.DataFrame:
    return paper_arrays.to_table(*world.save(folder), **options)


def test_dates_that_fit_no_convention(tmp_path):
    world = World(days=100)
    world.x[..., CHANNELS.index("month_cos")] *= -1  # January is July's
    with refuses("X.npy", "date", "99.9%", "year of sample 0: 2021", "dates="):
        convert(tmp_path, world)
    same(
        paper_arrays.to_table(tmp_path / "X.npy", tmp_path / "y.npy", dates=world.ends(tmp_path)),
        _flip(world),
    )


def _flip(world: World) -> World:
    world.features[..., CHANNELS.index("month_cos")] *= -1
    return world


def test_days_that_do_not_follow_each_other(tmp_path):
    world = World(days=100)
    world.x = world.x[:, ::-1]
    with refuses("X.npy", "date", "99.9%"):
        convert(tmp_path, world)


@pytest.mark.parametrize("name", ["day", "month"])
def test_angles_off_the_circle(tmp_path, name):
    world = World(days=100)
    world.x[..., [CHANNELS.index(f"{name}_cos"), CHANNELS.index(f"{name}_sin")]] *= 0.5
    with refuses("X.npy", "date", "fits 0.0%"):
        convert(tmp_path, world)


def test_a_sample_without_any_date(tmp_path):
    world = World(days=420)
    world.x[5, :, YEAR] = np.nan  # 1 of 1600 samples
    with refuses("X.npy", "sample 5", "dates="):
        convert(tmp_path, world)


@pytest.mark.parametrize(
    ("channel", "value", "limits"),
    [(LAT, 90.5, "-90..90"), (LAT, np.nan, "-90..90"), (LON, -181, "-180..180")],
)
def test_places_in_degrees(tmp_path, channel, value, limits):
    world = World()
    world.x[2, :, channel] = value
    with refuses("X.npy", f"sample 2, {CHANNELS[channel]}", value, limits):
        convert(tmp_path, world)


def test_swapped_places(tmp_path):
    world = World()
    world.x[..., [LAT, LON]] = world.x[..., [LON, LAT]]
    with refuses("X.npy", "sample 2, lat", -118.244, "-90..90"):
        convert(tmp_path, world)


@pytest.mark.parametrize("scale", ["minmax", "standard"])
@pytest.mark.parametrize("dated", [False, True])
def test_scaled_arrays(tmp_path, scale, dated):
    """Their places look like degrees of the Gulf of Guinea."""
    world = World("2020-12-10")
    flat = np.nan_to_num(world.x.reshape(-1, 23))
    low, span = (flat.min(0), np.ptp(flat, 0)) if scale == "minmax" else (flat.mean(0), flat.std(0))
    world.x = (world.x - low) / span
    options = {"dates": world.ends(tmp_path)} if dated else {}
    with refuses("X.npy", None, "unscaled"):
        convert(tmp_path, world, **options)


def test_a_window_of_two_places(tmp_path):
    world = World()
    world.x[3, 4, LON] += 0.01
    with refuses("X.npy", "sample 3"):
        convert(tmp_path, world)


def test_windows_that_disagree(tmp_path):
    world = World()
    sample = int(np.flatnonzero((world.site == 1) & (world.day == 40))[0])
    world.x[sample, -1, CHANNELS.index("srad")] = 77
    right = f"{world.features[1, 40, CHANNELS.index('srad')]:.7g}"
    field = f"site {SITES[1]}, 2021-02-24, srad"
    with refuses("X.npy", field, right, 77):
        convert(tmp_path, world)
    world.x[sample, -1, CHANNELS.index("srad")] = world.features[1, 40, CHANNELS.index("srad")] * 1.0005
    with refuses("X.npy", field, right):
        convert(tmp_path, world)
    world.x[sample, -1, CHANNELS.index("srad")] = np.nan
    with refuses("X.npy", field, right, "nan"):
        convert(tmp_path, world)


def test_dropped_channels_may_disagree(tmp_path):
    world = World()
    for name in paper_arrays.DROPPED:
        world.x[0, 3, CHANNELS.index(name)] = 77
    same(paper_arrays.to_table(*world.save(tmp_path)), world)


def test_targets_that_disagree(tmp_path):
    world = World()
    world.x, world.y = np.concatenate([world.x, world.x[:1]]), np.append(world.y, np.float32(99.5))
    field = f"site {SITES[world.site[0]]}, {world.dates[world.day[0]]:%Y-%m-%d}"
    with refuses("y.npy", field, f"{world.y[0]:g} and 99.5 ug/m3"):
        convert(tmp_path, world)
    world.y[-1] = np.nan
    with refuses("y.npy", field, "nan"):
        convert(tmp_path, world)


def test_last_day_padded(tmp_path):
    world = World()
    world.x[6, -1] = -1
    with refuses("X.npy", "sample 6", -1):
        convert(tmp_path, world)


def test_an_infinite_target(tmp_path):
    world = World()
    world.y[6] = np.inf
    with refuses("y.npy", "sample 6", "NaN"):
        convert(tmp_path, world)


@pytest.mark.parametrize(
    ("x", "y", "file", "field", "values"),
    [
        (np.ones((4, 21), "f4"), np.ones(4), "X.npy", "shape", ((4, 21), "(samples, days, channels)")),
        (np.ones((0, 21, 23), "f4"), np.ones(0), "X.npy", "shape", ((0, 21, 23),)),
        (np.ones((4, 21, 22), "f4"), np.ones(4), "X.npy", "shape", ((4, 21, 22), 23)),
        (np.ones((4, 21, 23), "f2"), np.ones(4), "X.npy", "dtype", ("float16", "float32", "float64")),
        (np.ones((4, 21, 23), int), np.ones(4), "X.npy", "dtype", ("int64",)),
        (np.full((4, 21, 23), "a"), np.ones(4), "X.npy", "dtype", ("<U1",)),
        (np.ones((4, 21, 23), "f4"), np.ones(5), "y.npy", "shape", (5, 4, "X.npy")),
        (np.ones((4, 21, 23), "f4"), np.ones((4, 2)), "y.npy", "shape", ((4, 2), "(N, 1)")),
        (np.ones((4, 21, 23), "f4"), np.ones((1, 4)), "y.npy", "shape", ((1, 4),)),
        (np.ones((4, 21, 23), "f4"), np.float64(1), "y.npy", "shape", ((),)),
    ],
)
def test_shapes_and_types(tmp_path, x, y, file, field, values):
    np.save(tmp_path / "X.npy", x)
    np.save(tmp_path / "y.npy", y)
    with refuses(file, field, *values):
        paper_arrays.to_table(tmp_path / "X.npy", tmp_path / "y.npy")


@pytest.mark.parametrize(
    ("channels", "field", "values"),
    [
        ([*CHANNELS[:-1], "dem"], "year", ("dates=",)),
        (["dem", *CHANNELS[1:]], "dem", ()),
        (["pm25", *CHANNELS[1:]], "pm25", ()),
        ([c if c != "lat" else "x" for c in CHANNELS], "lat", ()),
        ([*CHANNELS, "more"], "shape", (24, 23)),
    ],
)
def test_wrong_names_of_channels(tmp_path, channels, field, values):
    with refuses("X.npy", field, *values) as refused:
        convert(tmp_path, World(), channels=channels)
    assert ("dates=" in refused.value.fix) == (field == "year")  # dates do not replace a place


def test_a_renamed_channel(tmp_path):
    assert "a" in convert(tmp_path, World(), channels=["a", *CHANNELS[1:]])


@pytest.mark.parametrize(
    ("dates", "file", "field", "values"),
    [
        (
            np.array(["2021-01-01"], "datetime64[D]"),
            "dates.npy",
            "shape, dtype",
            ((1,), 160, "datetime64[D]"),
        ),
        (np.zeros(160), "dates.npy", "shape, dtype", ("float64", "datetime64[D]")),
        (np.full(160, "NaT", "datetime64[D]"), "dates.npy", "sample 0", ()),
        (np.full(160, "2019-03-01", "datetime64[D]"), "X.npy", "sample 0", (2021, "2019-03-01")),
        (np.full(160, "2021-03-01", "datetime64[D]"), ".npy", None, ()),
    ],
)
def test_dates_that_are_wrong(tmp_path, dates, file, field, values):
    world = World()
    assert len(world.x) == 160
    np.save(tmp_path / "dates.npy", dates)
    with refuses(file, field, *values):
        convert(tmp_path, world, dates=tmp_path / "dates.npy")


def test_more_than_a_century(tmp_path):
    world = World(days=200)
    names = [c if c != "year" else "other" for c in CHANNELS]
    ends = world.dates.to_numpy()[world.day].astype("datetime64[D]")
    ends[0] = np.datetime64("9999-01-01")
    np.save(tmp_path / "dates.npy", ends)
    with refuses("dates.npy", "date", "9999-01-01", schema.MAX_DAYS):
        convert(tmp_path, world, channels=names, dates=tmp_path / "dates.npy")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def _npz(path: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.ones(3))
    return file.getvalue()


def _objects(path: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Trap()], object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (None, ("numpy.save",)),
        (lambda path: b"", (".npy",)),
        (lambda path: b"hello there\nsecond line\n", (".npy", "magic string")),
        (lambda path: pickle.dumps(Trap()), (".npy", "magic string")),
        (_npz, (".npy", "magic string")),
        (_objects, (".npy", "Python objects in dtype")),
        (lambda path: path.read_bytes()[:-1], (".npy",)),
        (lambda path: path.read_bytes()[:40], (".npy",)),
    ],
)
@pytest.mark.parametrize("name", ["X.npy", "y.npy", "dates.npy", "e.npy"])
def test_files_that_are_not_arrays(tmp_path, name, content, values):
    world = World()
    x, y = world.save(tmp_path)
    dates, path = world.ends(tmp_path), tmp_path / name
    np.save(tmp_path / "e.npy", np.ones((3, 4), np.float32))
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content(path))
    read = paper_arrays.embeddings if name == "e.npy" else lambda _: paper_arrays.to_table(x, y, dates=dates)
    with refuses(str(path), "", *values):
        read(path)


def header(shape: str, descr: str = "'<f4'", order: bool = False) -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n".encode()


@pytest.mark.parametrize(
    "text",
    [
        header("(1000000000000, 3)"),
        header(f"({2**70}, 3)"),
        header("(-1, 3)"),
        header("(-2, -6)"),
        header("(True, 3)"),
        header("None"),
        header("(3, 4)", "'|O'"),
        header("(9, 4)"),
        b"(" * 9000,
        b"{",
        b'{\'descr\': """f4',
        b"",
    ],
    ids=repr,
)
def test_hostile_headers_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "e.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(48))
    with refuses("e.npy", "", ".npy"):
        paper_arrays.embeddings(path)


def test_a_header_of_a_gigabyte_is_not_read(tmp_path):
    path = tmp_path / "e.npy"
    path.write_bytes(b"\x93NUMPY\2\0" + (10**9).to_bytes(4, "little"))
    os.truncate(path, 10**9 + 12)  # without blocks on the disk
    tracemalloc.start()
    try:
        with refuses("e.npy", "", "1,000,000,000 bytes"):
            paper_arrays.embeddings(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10**8


def test_an_array_in_fortran_order_is_read_like_any_other(tmp_path):
    rows = np.array([[40.0, -100, 1, 2], [41, -101, 3, 4]], np.float32)
    np.save(tmp_path / "e.npy", np.asfortranarray(rows))
    np.testing.assert_array_equal(paper_arrays.embeddings(tmp_path / "e.npy").to_numpy(), rows)


def test_embeddings(tmp_path, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    place = np.array([0, 3, 1, 0, 2, 2, 0])
    np.save(tmp_path / "e.npy", np.hstack([PLACES, vectors])[place].astype(np.float32))
    monkeypatch.setattr(paper_arrays, "CHUNK", 2)
    table = paper_arrays.embeddings(tmp_path / "e.npy")
    assert list(table) == ["lat", "lon", *(f"v{i}" for i in range(6))]
    order = np.argsort(PLACES[:, 0])
    np.testing.assert_array_equal(table[["lat", "lon"]], PLACES[order])
    np.testing.assert_array_equal(table.iloc[:, 2:].to_numpy(), vectors[order])
    table.to_parquet(tmp_path / "e.parquet", index=False)
    encoder = encoders.load("table", path=tmp_path / "e.parquet")
    np.testing.assert_array_equal(encoder.embed(*PLACES.T), vectors)


@pytest.mark.parametrize(
    ("row", "column", "value", "field", "shown"),
    [
        (2, 4, 9.0, "row 2, v2", "(40, -90)"),
        (1, 3, np.nan, "row 1, v1", "(41, -90)"),
        (1, 3, -np.inf, "row 1, v1", "(41, -90)"),
        (1, 0, -120.0, "sample 1, lat", "-120"),
    ],
)
def test_embeddings_refused(tmp_path, monkeypatch, row, column, value, field, shown):
    monkeypatch.setattr(paper_arrays, "CHUNK", 2)
    values = np.array([[40, -90, 1, 2, 3], [41, -90, 4, 5, 6], [40, -90, 1, 2, 3]], float)
    values[row, column] = value
    np.save(tmp_path / "e.npy", values)
    with refuses("e.npy", field, shown):
        paper_arrays.embeddings(tmp_path / "e.npy")


@pytest.mark.parametrize("shape", [(3,), (3, 2), (0, 5), (2, 3, 4)])
def test_embeddings_of_another_shape(tmp_path, shape):
    np.save(tmp_path / "e.npy", np.ones(shape, np.float32))
    with refuses("e.npy", "shape", shape, "(N, 2 + d)"):
        paper_arrays.embeddings(tmp_path / "e.npy")
