"""What stands in each place of a table; a cell that is not done is never a number."""

import csv
import io
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm25.metrics import SCORES
from sweeps.analysis import inference
from sweeps.report import tables
from sweeps.spec.claims import Analysis

NAN = math.nan


def cell(variant, split, fold, seed, test=NAN, wr=NAN, *, state="done", fusion=None, error=None):
    """A row of the grid whose four metrics are the same number."""
    row = {
        "key": f"{variant}{fusion}{split}{fold}{seed}",
        "variant": variant,
        "fusion": fusion,
        "split": split,
        "regime": "OoR" if split.startswith("checkerboard") else "WR",
        "fold": fold,
        "folds": 2,
        "kind": split.split("-")[0],
        "unit": 0 if split.startswith("checkerboard") else fold,
        "seed": seed,
        "state": state,
        "n_train": 70.0,
        "n_val": 10.0,
        "n_test": 20.0,
        "n_wr": 5.0 if not math.isnan(wr) else NAN,
    }
    row |= {f"test_{metric}": test for metric in SCORES}
    row |= {f"wr_{metric}": wr for metric in SCORES}
    row |= {"best_epoch": 3.0, "epochs": 5.0, "seconds": 1.5, "error": error}
    return row | {"marked": "", "unfair": "", "tuned": ""}


def frame(*cells):
    return pd.DataFrame(cells)


@pytest.fixture
def rows():
    board = "checkerboard-16"
    return frame(
        cell("none", "random", 0, 0, 4.0),
        cell("none", "random", 0, 1, 6.0),
        cell("none", "random", 1, 0, 8.0),
        cell("none", board, 0, 0, 10.0, 7.0),
        cell("none", board, 1, 0, 12.0, 8.0),
        cell("geoclip", "random", 0, 0, 3.0, fusion="hadamard"),
        cell("geoclip", "random", 0, 1, 7.0, fusion="hadamard"),
        # It failed with a number left behind: that is no number.
        cell("geoclip", "random", 1, 0, 0.001, fusion="hadamard", state="failed", error="E: x"),
        cell("geoclip", board, 0, 0, 9.0, 7.5, fusion="hadamard"),
        cell("geoclip", board, 1, 0, 10.0, 7.0, fusion="hadamard"),
        cell("latlon", "random", 0, 0, state="missing"),
        cell("latlon", "random", 0, 1, state="missing"),
        cell("latlon", "random", 1, 0, state="missing"),
        cell("latlon", board, 0, 0, state="failed", error="E: x"),
        cell("latlon", board, 1, 0, state="missing"),
    )


def means(rows, metric="rmse"):
    return inference.means(rows, Analysis(), metric)


def contrasts(rows, metric="rmse"):
    return inference.contrasts(rows, Analysis(), (), metric)


BOARD = "checkerboard-16"
COLUMNS = [
    ("WR", "random", "random", "test"),
    ("inside", BOARD, BOARD, "wr"),
    ("OoR", BOARD, BOARD, "test"),
]


def shown(table):
    return {label: [entry.line() for entry in entries] for label, entries in table.lines}


def test_means_show_what_is_missing(rows):
    table = tables.of_means(means(rows), COLUMNS)
    assert table.heads == [column[:2] for column in COLUMNS]
    found = shown(table)
    assert found["none"] == ["6.00 ± 2.00 (n=3)", "7.50 ± 0.71 (n=2)", "11.00 ± 1.41 (n=2)"]
    assert found["GeoCLIP · Hadamard"][0] == "5.00 ± 2.83 (n=2/3)"
    assert found["lat/lon"] == ["missing (0/3)", "failed (1/2)", "failed (1/2)"]
    none = dict(table.lines)["none"][0]
    assert none.source.startswith("3 of 3 cells, 2 folds, 2 seeds (cells.csv: arm none, split random")


def test_a_done_cell_without_a_finite_metric_is_undefined():
    rows = frame(cell("none", "random", 0, 0, math.inf), cell("none", "random", 1, 0, NAN))
    assert shown(tables.of_means(means(rows), COLUMNS[:1])) == {"none": ["undefined (0/2)"]}


def test_one_cell_has_neither_interval_nor_spread():
    rows = frame(cell("none", "random", 0, 0, 7.424))
    assert shown(tables.of_means(means(rows), COLUMNS[:1])) == {"none": ["7.42 (n=1)"]}


def test_a_split_that_an_arm_does_not_plan(rows):
    some = rows[~((rows["variant"] == "latlon") & (rows["split"] == "random"))]
    assert shown(tables.of_means(means(some), COLUMNS))["lat/lon"][0] == "not planned"


def line(**changed):
    """Of `inference.means`, and what of it `inference.contrasts` has as well."""
    blank = {
        "arm": "a",
        "other": "none",
        "split": "random",
        "part": "test",
        "metric": "rmse",
        "fold": pd.NA,
        "n": 5,
        "n_expected": 5,
        "n_units": 5,
        "n_seeds": 1,
        "n_failed": 0,
        "n_missing": 0,
        "n_marked": 0,
        "mean": 7.0,
        "sd": 0.5,
        "low": 6.5,
        "high": 7.5,
        "unit": "block of monitors",
        "diff": -0.25,
        "n_pairs": 5,
        "n_better": 4,
        "declared": True,
        "p_adjusted": 0.04,
        "unfair": "",
    }
    return blank | changed


def test_without_an_interval_the_spread_of_the_cells_is_shown():
    assert tables.mean(line()).line() == "7.00 [6.50, 7.50] (n=5)"
    assert tables.mean(line(low=NAN)).line() == "7.00 ± 0.50 (n=5)"
    assert tables.mean(line(mean=-0.5), sign=True).text == "−0.50"
    assert tables.mean(line(n_marked=1)).line() == "7.00† [6.50, 7.50] (n=5)"


def test_a_difference_is_marked_by_its_test_alone():
    assert tables.difference(line(low=-0.4, high=-0.1), 0.05).line() == "−0.25* [−0.40, −0.10] (n=5)"
    assert tables.difference(line(p_adjusted=0.06), 0.05).marks == ""
    assert tables.difference(line(declared=False, p_adjusted=NAN), 0.05).marks == ""
    assert tables.difference(line(unfair="in every pair: x"), 0.01).marks == "‡"
    assert tables.difference(line(n_pairs=0), 0.05).line() == "no pairs"
    assert "5 blocks of monitors" in tables.difference(line(), 0.05).source


def test_differences_of_one_other_name_it_in_the_corner(rows):
    table = tables.of_differences(contrasts(rows), COLUMNS, 0.05)
    assert table.corner == "arm minus 'none'"
    # Pairs (3 - 4) and (7 - 6) on random; the failed third is in neither.
    assert shown(table) == {
        "GeoCLIP · Hadamard": ["+0.00 (n=2)", "−0.25 (n=2)", "−1.50 (n=2)"],
        "lat/lon": ["no pairs", "no pairs", "no pairs"],
    }


def of_one_split(*values, expected=2, metric="rmse"):
    return pd.DataFrame(
        [
            {
                "arm": f"a{i}",
                "variant": "none",
                "metric": metric,
                "mean": value,
                "n": n,
                "n_expected": expected,
            }
            for i, (value, n) in enumerate(values)
        ]
    )


def test_the_best_and_the_second_of_the_whole_arms():
    assert tables.places(of_one_split((3.0, 2), (1.0, 1), (2.0, 2), (4.0, 2))) == {"a2": 1, "a0": 2}
    assert tables.places(of_one_split((3.0, 2), (1.0, 1))) == {}  # one whole arm has no rival
    # As far as two digits show: equals share their place, and two that are best leave no second.
    assert tables.places(of_one_split((1.001, 2), (1.004, 2), (2.0, 2))) == {"a0": 1, "a1": 1}
    assert tables.places(of_one_split((1.0, 2), (2.0, 2), (2.001, 2))) == {"a0": 1, "a1": 2, "a2": 2}
    assert tables.places(of_one_split((1.001, 2), (1.004, 2))) == {}


@pytest.mark.parametrize(("metric", "best"), [("rmse", "a1"), ("r2", "a0"), ("mbe", "a1")])
def test_best_means_low_error_high_r2_and_little_bias(metric, best):
    found = tables.places(of_one_split((0.9, 2), (0.1, 2), (-0.5, 2), metric=metric))
    assert [arm for arm, place in found.items() if place == 1] == [best]


def test_degrees_of_freedom_have_one_decimal_at_most():
    assert [tables.degrees_of_freedom(df) for df in (14.0, 11.27, NAN)] == ["14", "11.3", "–"]


def test_a_p_value_is_never_zero():
    assert [tables.p_value(p) for p in (0.0004, 0.0123, NAN)] == ["<0.001", "0.012", "–"]


def test_completeness_and_sizes(rows):
    counts = tables.completeness(rows)
    assert counts.loc["GeoCLIP · Hadamard", "random"] == "2 done, 1 failed"
    assert counts.loc["lat/lon", BOARD] == "1 failed, 1 missing"
    assert list(tables.sizes(rows).loc[BOARD]) == ["70", "10", "20", "5"]
    assert tables.sizes(rows).loc["random", "WR test"] == "–"


def test_markdown_and_csv(rows):
    entry = tables.Entry
    table = tables.Table(
        "arm",
        [("WR", "a|b"), ("", "c")],
        [("head", []), ("k", [entry("1", place=1), entry("2", "[1, 3]", "4", "†", place=2)])],
    )
    text = tables.in_markdown(table)
    cells = [[part.strip() for part in line.strip("|").split(" | ")] for line in text.splitlines()]
    assert cells[0] == ["arm", "WR · a\\|b", "c"]
    assert cells[2][0] == "**head**"
    assert cells[3] == ["k", "**1**", "*2† \\[1, 3\\] (n=4)*"]
    assert tables.notes_in_markdown(["Bold: x.", "Underlined: <y>"]) == "Bold: x. Italic: &lt;y&gt;"
    assert tables.escape("<script>|\n*x*") == "&lt;script&gt;\\| \\*x\\*"
    assert tables.csv(means(rows)).splitlines()[1].startswith("none,none,,random,test,WR,rmse,6.0,2.0,")


def test_a_plain_table():
    table = tables.plain(pd.DataFrame({"x": [1]}, index=["k"]), "corner", "Caption.")
    assert (table.corner, table.caption, shown(table)) == ("corner", "Caption.", {"k": ["1"]})


FORMULAS = [
    "=1+1",
    '=HYPERLINK("http://x","y")',
    "+SUM(A1)",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "＝1",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_begins_like_a_formula_is_a_text_in_csv(text: str) -> None:
    numbers = {"rmse": [-0.19, 1e-300, math.nan], "n": [1, -2, 3]}
    frame = pd.DataFrame({"split": [text, "random", None], **numbers})
    written = tables.csv(frame)
    read = pd.read_csv(io.StringIO(written))
    assert read["split"].tolist()[:2] == ["'" + text.replace("\r", "\n"), "random"]
    assert read["split"].isna().tolist() == [False, False, True]
    pd.testing.assert_frame_equal(read[["rmse", "n"]], frame[["rmse", "n"]])
    assert tables.csv(frame.rename(columns={"split": text})).splitlines()[0].lstrip('"').startswith("'")


def test_numbers_stay_numbers_in_csv() -> None:
    texts = {"text": ["-0.19", "+1e3", "-inf", "3"], "mixed": [1, "a", None, -2.5]}
    frame = pd.DataFrame(texts, dtype="object")
    frame["kind"] = pd.Series(["a", "-b", "a", "a"], dtype="category")
    assert tables.csv(frame) == "text,mixed,kind\n-0.19,1,a\n+1e3,a,'-b\n-inf,,a\n3,-2.5,a\n"


@given(st.lists(st.text(st.sampled_from("=+-@\t\r\n'\",;ab1.＝ "), min_size=1), min_size=1, max_size=5))
def test_no_cell_of_a_csv_is_a_formula(texts: list[str]) -> None:
    written = tables.csv(pd.DataFrame({"a": texts, "b": 1}))
    _, *rows = csv.reader(io.StringIO(written, newline=""))
    for (found, one), text in zip(rows, texts, strict=True):
        plain = text.replace("\r\n", "\n").replace("\r", "\n")
        assert (found in (plain, f"'{plain}"), one) == (True, "1")
        if found.startswith(tables.FORMULA):
            float(found)
