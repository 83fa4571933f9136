"""Missing codes and impossible numbers are named with value, count and rows; good columns are not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.panel import from_table
from pm25.tables.check import check
from pm25.tables.values import find_codes
from tests.errors import refuses
from tests.pm25.tables.frames import frame, table

CODES = [
    -99,
    -999,
    -9999,
    -99999,
    -999.9,
    -8888,
    -32768,
    9999,
    99999,
    9.969209968386869e36,
    1e20,
    -1e30,
    3.4028234e38,
]
POSITIONS = {"first": [0], "last": [224], "some": [3, 50, 51, 120, 224], "most": [*range(150)]}


@given(
    code=st.sampled_from(CODES),
    position=st.sampled_from(sorted(POSITIONS)),
    dtype=st.sampled_from(["float32", "float64"]),
    column=st.sampled_from(["pm25", "tmax_c"]),
)
@settings(max_examples=50, deadline=None)
def test_a_missing_code_is_named_with_its_value_count_and_rows(code, position, dtype, column):
    rows = POSITIONS[position]
    df = frame().astype({column: dtype})
    df.loc[rows, column] = np.dtype(dtype).type(code)
    found = check(table(df), "toy")
    (named,) = [
        p for p in (*found.problems, *found.doubts) if p.column == column and "missing code" in p.what
    ]
    text = "3.40282e+38" if code > 3e38 else "9.96921e+36" if code == 9.969209968386869e36 else f"{code:.6g}"
    assert named.what.startswith(f"{text} in {len(rows)} row")
    assert named.rows.tolist() == [row + 1 for row in rows]
    assert "the other values are" in named.what
    assert "leave the value empty" in named.fix
    assert not any("clean air" in notice.what for notice in found.notices)


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64"])
def test_a_missing_code_among_whole_numbers_is_refused(dtype):
    df = frame()
    df["rh"] = (50 + df.index % 37).where(df.index % 10 != 4, -9999).astype(dtype)
    with refuses("toy", "rh", "-9999 in 23 rows is a missing code", "50 to 86"):
        from_table(table(df), "toy")
    with refuses("toy", "rh", "-9999"):
        from_table(table(df), "toy", ["rh"])
    assert from_table(table(df), "toy", ["tmax_c"]).doubts == ()


def test_several_codes_in_one_column_are_all_named():
    df = frame()
    df.loc[[1, 2], "tmax_c"], df.loc[[5], "tmax_c"], df.loc[[9, 10, 11], "tmax_c"] = -9999, -9998, 9999
    found = check(table(df), "toy")
    named = {p.what.split(" in ")[0]: len(p.rows) for p in (*found.problems, *found.doubts)}
    assert named == {"-9999": 2, "-9998": 1, "9999": 3}


def test_a_repeated_value_far_off_the_rest_is_a_probable_code():
    df = frame()
    df.loc[[1, 8, 20, 33], "tmax_c"] = -1234.5
    found = check(table(df), "toy")
    assert found.problems == []
    (doubt,) = found.doubts
    assert doubt.what.startswith("-1234.5 in 4 rows may be a missing code")
    assert from_table(table(df), "toy").doubts == (str(doubt),)


@pytest.mark.parametrize("value", [3.5e38, -1e300])
def test_a_number_that_float32_cannot_hold_is_refused(value):
    for column in ("tmax_c", "pm25"):
        df = frame()
        df.loc[7, column] = value
        with refuses("toy", column, "does not fit a 32-bit number", "(row 8)"):
            from_table(table(df), "toy")


rng = np.random.default_rng(0)
N = 4000
HARMLESS = {
    "normal": rng.normal(15, 10, N),
    "one outlier": np.append(rng.normal(15, 10, N), 400.0),
    "rain": np.where(rng.random(N) < 0.7, 0, rng.gamma(0.4, 20, N)),
    "rare fires": np.where(rng.random(N) < 0.99, 0, np.exp(rng.normal(4, 3, N))),
    "one long fire": np.append(np.where(rng.random(N) < 0.98, 0, rng.integers(1, 90, N)), [13288.7] * 40),
    "flags": rng.integers(0, 2, N),
    "flag of few": np.append(np.zeros(N), [1.0] * 5),
    "capped": np.minimum(2000.0, rng.exponential(900, N)),
    "tiny smoke": np.where(rng.random(N) < 0.6, 0, np.exp(rng.normal(-20, 4, N))),
    "columns of molecules": np.where(rng.random(N) < 0.1, 0, rng.lognormal(35, 1, N)),
    "fahrenheit": rng.normal(60, 25, N).round(),
    "elevation": np.repeat(rng.gamma(0.6, 700, 40).round() - 67, 100),
    "population": np.repeat(np.exp(rng.normal(10, 3, 40)).round(), 100),
    "hundreds": rng.integers(0, 1200, N),
    "around a code": rng.normal(-999, 300, N).round(),
    "pressure": rng.normal(990, 25, N).round(),
}
"""Columns without a missing code, by what they are."""


@pytest.mark.parametrize("what", HARMLESS)
def test_a_good_column_has_no_code(what):
    assert find_codes(HARMLESS[what].astype(np.float64)) == []


def test_slightly_negative_pm25_is_kept_and_explained():
    df = frame()
    df.loc[[3, 4], "pm25"] = -0.5, -4.0
    found = check(table(df), "toy")
    assert found.problems == found.doubts == []
    (notice,) = found.notices
    assert notice.what.startswith("2 negative values, the lowest -4, are kept")
    assert "clean air" in notice.what


PM25 = {
    "below the floor": (lambda y: y.where(y.index != 4, -40.0), "problem", "below -15", [5]),
    "below AQS": (lambda y: y.where(y.index != 4, -12.0), "doubt", "below -10", [5]),
    "beyond monitors": (lambda y: y.where(y.index != 4, 1250.0), "doubt", "above 1,000", [5]),
    "beyond any day": (lambda y: y.where(y.index != 4, 6200.0), "problem", "above 5,000", [5]),
    "ng/m3": (lambda y: y * 1000, "problem", "ng/m3", []),
    "doubtful unit": (lambda y: y * 50, "doubt", "ng/m3", []),
    "mg/m3": (lambda y: y / 1000, "problem", "mg/m3", []),
    "standardised": (lambda y: (y - y.mean()) / y.std(), "doubt", "negative", []),
}
"""Changes of the target by name, with the kind of finding, its text and its rows."""


@pytest.mark.parametrize("what", PM25)
def test_impossible_pm25_is_refused_and_doubtful_pm25_noticed(what):
    change, kind, text, rows = PM25[what]
    df = frame()
    df["pm25"] = change(df.pm25)
    found = check(table(df), "toy")
    listed, other = (found.problems, found.doubts) if kind == "problem" else (found.doubts, found.problems)
    (named,) = listed
    assert other == []
    assert named.column == "pm25"
    assert text in named.what
    assert named.rows.tolist() == rows
    assert named.fix
    if not what.startswith("standard"):
        assert not any("clean air" in notice.what for notice in found.notices)


@pytest.mark.parametrize("value", [0.0, 9.5])
def test_a_target_of_one_value_is_noticed(value):
    found = check(table(frame().assign(pm25=value)), "toy")
    (doubt,) = found.doubts
    assert doubt.column == "pm25"
    assert f"its only value is {value:g}" in doubt.what
