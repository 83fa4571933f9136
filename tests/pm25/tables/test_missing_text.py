"""Text that can only mean a missing value is read as one, and other text among numbers is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.panel import from_table, read
from pm25.tables.check import check
from tests.errors import refuses
from tests.pm25.tables.frames import frame, table

FORMS = ["NA", "N/A", "n/a", "", "-", "--", "nan", "NaN", "null", "None", " NA ", ".", "missing", "#N/A"]


@given(
    form=st.sampled_from(FORMS),
    rows=st.sampled_from([[0], [224], [2, 3, 90], [*range(160)]]),
    column=st.sampled_from(["pm25", "tmax_c"]),
    dtype=st.sampled_from(["str", "category"]),
)
@settings(max_examples=30, deadline=None)
def test_text_for_a_missing_value_is_read_as_one(form, rows, column, dtype):
    df = frame()
    values = df[column].copy()
    df[column] = df[column].astype(str)
    df.loc[rows, column] = form
    df[column] = df[column].astype(dtype) if dtype == "category" else df[column]
    made = from_table(table(df), "toy")
    values.loc[rows] = np.nan
    expected = from_table(table(frame().assign(**{column: values})), "toy", made.channels)
    assert made.fingerprint == expected.fingerprint
    notice = check(table(df), "toy").doubts[0]
    assert notice.column == column
    assert notice.what == f"{form!r} is read as a missing value in {len(rows)} row{'s' * (len(rows) > 1)}"
    assert notice.rows.tolist() == [row + 1 for row in rows]


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary", "run_end"])
def test_the_same_in_every_type_of_text(kind):
    numbers = frame()["tmax_c"].astype(str).tolist()
    text = pa.array(["NA", " - ", *numbers[2:]])
    if kind == "dictionary":
        text = text.dictionary_encode()
    elif kind == "run_end":
        text = pc.run_end_encode(text)
    else:
        text = text.cast(getattr(pa, kind)())
    whole = table(frame())
    place = whole.column_names.index("tmax_c")
    made = from_table(whole.set_column(place, "tmax_c", text), "toy")
    expected = from_table(table(frame().assign(tmax_c=[np.nan, np.nan, *map(float, numbers[2:])])), "toy")
    assert made.fingerprint == expected.fingerprint
    assert made.doubts == ("tmax_c: 'NA', ' - ' are read as a missing value in 2 rows (row 1, 2)",)


@pytest.mark.parametrize("form", ["-", "--", "missing", "NA", ""])
def test_the_same_in_a_csv(form, tmp_path):
    df = frame().astype({"tmax_c": str})
    df.loc[[4, 9], "tmax_c"] = form
    df.to_csv(tmp_path / "t.csv", index=False)
    made = read(tmp_path / "t.csv")
    assert int(np.isnan(made.features[:, :, made.channels.index("tmax_c")]).sum()) == 2


@pytest.mark.parametrize("text", ["<MDL", "<0.5", "ND", "1,5", "high"])
def test_other_text_among_numbers_is_refused(text, tmp_path):
    df = frame().astype({"tmax_c": str})
    df.loc[[4, 9, 10], "tmax_c"] = text
    df.loc[[20], "tmax_c"] = "NA"
    with refuses("toy", "tmax_c", f"{text!r} is not a number", "(row 5, 10, 11)", "empty"):
        from_table(table(df), "toy")
    (problem,) = check(table(df), "toy", ["tmax_c"]).problems
    assert problem.rows.tolist() == [5, 10, 11]
    assert ("limit" in problem.fix) == text.startswith("<")


def test_several_texts_are_counted():
    df = frame().astype({"tmax_c": str})
    df.loc[[4, 9], "tmax_c"], df.loc[[5], "tmax_c"] = "<MDL", "bad"
    (problem,) = check(table(df), "toy").problems
    assert problem.what == "'<MDL' (2 times), 'bad' (1 times) are not numbers"


@pytest.mark.parametrize("text", ["inf", "-inf", "Infinity"])
def test_infinity_as_text_is_refused(text):
    df = frame().astype({"tmax_c": str})
    df.loc[[4], "tmax_c"] = text
    with refuses("toy", "tmax_c", "infinite", "(row 5)"):
        from_table(table(df), "toy", ["tmax_c"])


def test_a_column_of_nothing_but_missing_text_is_no_channel():
    found = check(table(frame().assign(rh="NA")), "toy")
    assert [p.column for p in found.left_out] == ["rh"]
    assert found.problems == []


def test_labels_and_codes_as_text_stay_as_they_are():
    few = np.arange(225) % 9 == 0
    df = frame().assign(use=np.where(few, "N/A", "forest"), fips=np.where(few, "NA", "06037"))
    found = check(table(df), "toy")
    assert found.problems == found.doubts == []
    assert {"use", "fips"}.isdisjoint(channel.name for channel in found.channels)
