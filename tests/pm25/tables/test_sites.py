"""Places and names of sites: rounding, moves, spellings, wrong coordinates and several sites at one place."""

from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.geo import great_circle_km
from pm25.leakage import audit, refuse_shared_places
from pm25.panel import from_table
from pm25.splits import CheckerboardSplit, RandomSplit, SpatialSplit, SplitIndices, TemporalSplit, cut
from pm25.tables.check import check
from pm25.tables.schema import Check, Problem
from pm25.tables.sites import site_places
from tests import worlds
from tests.errors import refuses

DAYS = 24


def frame(sites: int = 5) -> pd.DataFrame:
    """One row for each site and day, with places of four decimals inside CONUS."""
    site, day = np.divmod(np.arange(sites * DAYS), DAYS)
    return pd.DataFrame(
        {
            "site_id": np.array([f"K{s:03}" for s in range(sites)])[site],
            "date": (np.datetime64("2021-02-20") + day).astype("datetime64[s]"),
            "lat": np.round(31.2345 + 2.1 * site, 4),
            "lon": np.round(-118.4321 + 6.7 * site, 4),
            "pm25": 5.0 + site + 0.5 * (day % 7),
            "wind": np.sin(np.arange(sites * DAYS) * 1.7),
        }
    )


def found(df: pd.DataFrame) -> Check:
    return check(pa.Table.from_pandas(df, preserve_index=False), "t")


def make(df: pd.DataFrame):
    return from_table(pa.Table.from_pandas(df, preserve_index=False), "t")


def of_column(listed: list[Problem], column: str) -> list[Problem]:
    return [one for one in listed if one.column == column]


# --- One site, several coordinates -------------------------------------------------------------------


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_rounding_of_any_rows_is_one_site_in_any_order_of_rows(data):
    df = frame()
    rows = data.draw(st.lists(st.integers(0, len(df) - 1), min_size=1, max_size=60, unique=True))
    steps = st.tuples(*[st.floats(-9.9e-5, 9.9e-5) | st.just(1e-7)] * 2)
    moved = np.array(data.draw(st.lists(steps, min_size=len(rows), max_size=len(rows))))
    df.loc[rows, "lat"] += moved[:, 0]
    df.loc[rows, "lon"] += moved[:, 1]
    code = df.site_id.str[1:].astype(int).to_numpy()
    lat, lon = site_places(df.lat.to_numpy(), df.lon.to_numpy(), code, 5)
    # The most frequent place by hand; of equals the first in the order of latitude and longitude.
    for site, rows_of_site in df.groupby("site_id"):
        count = rows_of_site.groupby(["lat", "lon"]).size()
        assert (lat[int(site[1:])], lon[int(site[1:])]) == count[count == count.max()].index.min()
    result = found(df)
    far = np.abs(df.lat - lat[code]).gt(1.000001e-4) | np.abs(df.lon - lon[code]).gt(1.000001e-4)
    assert bool(result.problems) == bool(far.any())
    if far.any():
        return
    made = make(df)
    assert make(df.sample(frac=1, random_state=len(rows))).fingerprint == made.fingerprint
    assert np.array_equal(made.lat, lat)
    differs = (df.lat != lat[code]) | (df.lon != lon[code])
    notices = [n for n in of_column(result.notices, "lat, lon") if "rounding" in n.what]
    assert len(notices) == bool(differs.any())
    if notices:
        assert notices[0].rows.tolist() == [*np.flatnonzero(differs) + 1]
        assert f"of {code[differs].size and len(set(code[differs]))} site" in notices[0].what


def test_rounding_is_told_with_the_largest_distance():
    df = frame()
    df.loc[3, "lat"] += 1e-7
    df.loc[30, "lat"] += 5e-5
    (notice,) = found(df).notices
    assert notice.rows.tolist() == [4, 31]
    for text in ("2 sites (K000, K001)", "5.56 m", "0.0001 degrees"):
        assert text in notice.what
    assert make(df).fingerprint == make(frame()).fingerprint


@given(st.integers(0, 119), st.floats(3e-4, 3), st.sampled_from([-1, 1]), st.sampled_from(["lat", "lon"]))
@settings(max_examples=40, deadline=None)
def test_a_move_is_told_with_its_distance_and_both_places(row, degrees, sign, column):
    df = frame()
    df.loc[row, column] += sign * degrees
    (problem,) = found(df).problems
    assert (problem.column, problem.rows.tolist()) == ("lat, lon", [row + 1])
    old, new = frame().loc[row], df.loc[row]
    km = float(great_circle_km(old.lat, old.lon, new.lat, new.lon))
    text = problem.what.split(" apart: ")
    number, unit = text[0].split(", ")[-1].split()
    assert float(number) * {"km": 1, "m": 1e-3}[unit] == pytest.approx(km, rel=0.01)
    for place in (old, new):
        assert f"({place.lat:.5f}".rstrip("0") in text[1]
        assert f"{place.lon:.5f}".rstrip("0") in text[1]
    assert str(old.site_id) in problem.what


# --- Names -------------------------------------------------------------------------------------------


@given(
    st.sets(st.integers(0, 119), min_size=1, max_size=80),
    st.sampled_from([" {}", "{} ", "{}\t", "{}\u00a0", "\u200b{}", "K {0}"]),
)
@settings(max_examples=40, deadline=None)
def test_names_that_differ_by_blanks_are_refused(rows, form):
    df = frame()
    chosen = df.index.isin(rows)
    whole = {name for name, part in df.groupby("site_id") if chosen[part.index].all()}
    df.loc[chosen, "site_id"] = [
        form.format(name[1:] if form.startswith("K") else name) for name in df.site_id[chosen]
    ]
    problems = of_column(found(df).problems, "site_id")
    mixed = set(frame().site_id[chosen]) - whole
    assert len(problems) == bool(mixed)
    if mixed:
        first = sorted(mixed)[0]
        assert repr(first) in problems[0].what
        assert problems[0].fix
        spelled = set(df.site_id.iloc[problems[0].rows - 1])
        assert {frame().site_id[row - 1] for row in problems[0].rows} == mixed
        assert all((name in mixed) or (name not in set(frame().site_id)) for name in spelled)


def test_names_that_differ_by_case_are_refused_at_one_place_only():
    df = frame()
    df.loc[::2, "site_id"] = df.site_id.str.lower()
    (problem,) = found(df).problems
    assert "'K000' and 'k000'" in problem.what
    assert "5 sites" in problem.what
    df = frame()
    df.loc[df.site_id == "K001", "site_id"] = "k000"
    result = found(df)
    assert result.problems == []
    (notice,) = result.notices
    assert "different places" in notice.what


@pytest.mark.parametrize("name", ["", " ", "\u00a0\t"])
def test_a_blank_name_is_refused(name):
    df = frame()
    df.loc[df.site_id == "K002", "site_id"] = name
    (problem,) = found(df).problems
    assert (problem.column, len(problem.rows)) == ("site_id", DAYS)


# --- Coordinates -------------------------------------------------------------------------------------


SPOILED = {
    "no sign": (lambda lat, lon: (lat, -lon), "lon"),
    "0 to 360": (lambda lat, lon: (lat, lon + 360), "lon"),
    "swapped": (lambda lat, lon: (lon, lat), "lat, lon"),
    "null island": (lambda lat, lon: (lat * 0, lon * 0), "lat, lon"),
    "no longitude": (lambda lat, lon: (lat, lon * 0), "lat, lon"),
}


@pytest.mark.parametrize("what", SPOILED)
@given(sites=st.sets(st.integers(0, 4), min_size=1, max_size=4))
@settings(max_examples=10, deadline=None)
def test_wrong_coordinates_of_some_sites_are_refused(what, sites):
    df = frame()
    rows = df.site_id.isin([f"K{s:03}" for s in sites])
    spoil, column = SPOILED[what]
    lat, lon = spoil(df.lat[rows], df.lon[rows])
    df.loc[rows, "lat"], df.loc[rows, "lon"] = lat, lon
    (problem,) = found(df).problems
    assert (problem.column, bool(problem.fix)) == (column, True)
    assert problem.rows.tolist() == [*np.flatnonzero(rows) + 1]


@pytest.mark.parametrize("what", ["no sign", "0 to 360", "swapped", "null island"])
def test_wrong_coordinates_of_all_sites_are_refused(what):
    df = frame()
    df["lat"], df["lon"] = SPOILED[what][0](df.lat, df.lon)
    problems = of_column(found(df).problems, SPOILED[what][1])
    assert problems[0].rows.tolist() == [*range(1, len(df) + 1)]


def test_a_network_in_china_is_not_refused():
    df = frame()
    df["lat"], df["lon"] = 39.1234 + 0.1 * df.lat % 1, 116.1234 + 0.01 * df.lon % 1
    result = found(df)
    assert result.problems == []
    assert [n.column for n in result.notices][:1] == ["lon"]
    df["site_id"] = "06-001-0" + df.site_id.str[1:]  # a name of EPA
    (problem,) = found(df).problems
    assert problem.column == "lon"
    world = frame()  # with sites elsewhere, the place in Asia is none of the US
    world.loc[world.site_id == "K000", ["lat", "lon"]] = 48.8566, 2.3522
    world.loc[world.site_id == "K001", ["lat", "lon"]] = 39.9042, 116.4074
    assert found(world).problems == []


@pytest.mark.parametrize("kind", [float, int])
def test_whole_degrees_are_told(kind):
    df = frame()
    df["lat"], df["lon"] = np.trunc(df.lat).astype(kind), np.trunc(df.lon).astype(kind)
    result = found(df)
    assert result.problems == []
    (notice,) = result.notices
    assert (notice.column, "whole degrees" in notice.what) == ("lat, lon", True)
    near = frame()
    near["lat"], near["lon"] = 36 + near.lat % 1, -119 - near.lon % 1
    near["lat"], near["lon"] = np.trunc(near.lat).astype(kind), np.trunc(near.lon).astype(kind)
    (problem,) = found(near).problems
    assert problem.column == "lat, lon"


# --- Several sites at one place ----------------------------------------------------------------------


def collocated(apart: float = 0.0) -> pd.DataFrame:
    df = frame(8)
    twin = df[df.site_id == "K002"].assign(site_id="K002-2", lat=lambda d: d.lat + apart)
    return pd.concat([df, twin], ignore_index=True)


@given(st.floats(0, 9.9e-5))
@settings(max_examples=20, deadline=None)
def test_sites_at_one_place_are_told_before_a_run(apart):
    result = found(collocated(apart))
    assert result.problems == []
    (notice,) = result.notices
    assert (notice.column, bool(notice.fix)) == ("site_id", True)
    assert "K002, K002-2" in notice.what
    assert len(notice.rows) == 2 * DAYS


def test_sites_11_m_apart_and_sites_without_targets_are_not_told():
    assert found(collocated(1.1e-4)).notices == []
    df = collocated()
    df.loc[df.site_id == "K002-2", "pm25"] = np.nan
    assert [n.column for n in found(df).notices] == ["pm25"]


@pytest.mark.parametrize(
    "split", [SpatialSplit(folds=3), RandomSplit(folds=3), TemporalSplit(test_from=date(2021, 3, 10))]
)
def test_a_split_is_refused_where_its_audit_would_fail(split):
    made = make(collocated(2e-5))
    refused = []
    for fold in range(split.n_folds):
        indices = cut(split, fold, made, 3)
        marked = audit(split, indices, made, 3, fold=fold, fitted={}, encoder_trained_on_target=False)[
            "failed"
        ]
        if "shared_places" in marked:
            refused.append(fold)
            with refuses("t.csv", "site_id", "K002", "K002-2", "2.22 m"):
                refuse_shared_places(split, indices, made, fold=fold, source="t.csv")
        else:
            refuse_shared_places(split, indices, made, fold=fold, source="t.csv")
    assert bool(refused) == isinstance(split, SpatialSplit)


def test_a_within_region_test_at_the_place_of_training_fails_its_audit():
    made = worlds.panel(
        np.zeros((3, 8, 1)) + np.arange(3)[:, None, None],
        np.arange(24.0).reshape(3, 8),
        [30.0, 30.00001, 45.0],
        [-100.0, -100.0, -100.0],
    )
    train, test, wr = (np.array([site * 8 + 5]) for site in (0, 2, 1))
    indices = SplitIndices(train, np.empty(0, int), test, wr)
    split = CheckerboardSplit(degrees=16)
    got = audit(split, indices, made, 3, fold=0, fitted={}, encoder_trained_on_target=False)
    assert got["failed"] == ["shared_places"]
    with refuses("t", "site_id", "s000", "s001"):
        refuse_shared_places(split, indices, made, fold=0, source="t")
