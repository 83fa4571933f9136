"""Hand-computed means, spreads and paired differences; a cell that is not done is never a number."""

import math

import pandas as pd
import pytest

from sweeps import tables

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
        "seed": seed,
        "state": state,
        "n_train": 70.0,
        "n_val": 10.0,
        "n_test": 20.0,
        "n_wr": 5.0 if not math.isnan(wr) else NAN,
    }
    row |= {f"test_{metric}": test for metric in tables.METRICS}
    row |= {f"wr_{metric}": wr for metric in tables.METRICS}
    return row | {"best_epoch": 3.0, "epochs": 5.0, "seconds": 1.5, "error": error}


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


def line(compared, arm, split):
    (found,) = compared[(compared["arm"] == arm) & (compared["split"] == split)].to_dict("records")
    return found


def test_labels():
    assert tables.arm("none", None) == "none"
    assert tables.arm("latlon", NAN) == "lat/lon"
    assert tables.arm("sincos", None) == "sin/cos"
    assert tables.arm("geoclip", "hadamard") == "GeoCLIP · Hadamard"
    assert tables.arm("satclip", "concat") == "SatCLIP · concat"

    assert tables.arm("shuffled", "film") == "shuffled GeoCLIP · film"
    assert tables.arm("none", "hadamard") == "none · matched Hadamard"
    assert tables.arm("none", "gated") == "none · matched gated"
    assert tables.arm("none", "") == "none"


def test_means_and_spreads(rows):
    compared = tables.comparison(rows)
    assert list(dict.fromkeys(compared["arm"])) == ["none", "GeoCLIP · Hadamard", "lat/lon"]
    none = line(compared, "none", "random")
    assert (none["mean"], none["sd"], none["n"], none["n_expected"]) == (6.0, 2.0, 3, 3)
    assert (none["regime"], none["metric"]) == ("WR", "rmse")
    board = line(compared, "none", "checkerboard-16")
    assert board["regime"] == "OoR"
    assert board["mean"] == 11.0
    assert board["sd"] == pytest.approx(math.sqrt(2))  # ddof=1: (1 + 1) / 1
    assert (board["wr_mean"], board["wr_sd"]) == (7.5, pytest.approx(math.sqrt(0.5)))


def test_paired_differences(rows):
    compared = tables.comparison(rows)
    geoclip = line(compared, "GeoCLIP · Hadamard", "random")
    # Pairs (3 - 4) and (7 - 6); the failed third is in neither.
    assert (geoclip["diff_mean"], geoclip["n_pairs"], geoclip["n_better"]) == (0.0, 2, 1)
    assert geoclip["diff_sd"] == pytest.approx(math.sqrt(2))
    board = line(compared, "GeoCLIP · Hadamard", "checkerboard-16")
    assert (board["diff_mean"], board["n_pairs"], board["n_better"]) == (-1.5, 2, 2)  # 9-10, 10-12
    assert (board["wr_diff_mean"], board["wr_n_better"]) == (-0.25, 1)  # 7.5-7, 7-8
    lonely = line(compared, "lat/lon", "random")
    assert math.isnan(lonely["diff_mean"])
    assert lonely["n_pairs"] == 0


def test_the_gap_is_paired(rows):
    gap = line(tables.comparison(rows), "none", "checkerboard-16")
    assert (gap["gap_mean"], gap["gap_n"]) == (3.5, 2)  # 10-7, 12-8
    assert gap["gap_sd"] == pytest.approx(math.sqrt(0.5))
    half = frame(
        cell("none", "checkerboard-16", 0, 0, 10.0, 7.0), cell("none", "checkerboard-16", 1, 0, 12.0)
    )
    gap = line(tables.comparison(half), "none", "checkerboard-16")
    assert (gap["gap_mean"], gap["gap_n"], gap["n"], gap["wr_n"]) == (3.0, 1, 2, 1)


def test_a_cell_that_is_not_done_is_counted_and_has_no_number(rows):
    compared = tables.comparison(rows)
    geoclip = line(compared, "GeoCLIP · Hadamard", "random")
    assert (geoclip["mean"], geoclip["n"], geoclip["n_expected"], geoclip["n_failed"]) == (5.0, 2, 3, 1)
    board = line(compared, "lat/lon", "checkerboard-16")
    assert (board["n"], board["n_failed"], board["n_missing"]) == (0, 1, 1)
    assert math.isnan(board["mean"])
    assert tables.measured(rows)["test_rmse"].isna().sum() == 6


def test_wide_shows_what_is_missing(rows):
    wide = tables.wide(tables.comparison(rows))
    board = "checkerboard-16"
    assert list(wide.columns) == [("WR", "random"), ("WR", board), ("OoR", board), ("OoR − WR", board)]
    assert wide.loc["none", ("WR", "random")] == "6.00 ± 2.00 (n=3)"
    assert wide.loc["none", ("WR", board)] == "7.50 ± 0.71 (n=2)"
    assert wide.loc["none", ("OoR", board)] == "11.00 ± 1.41 (n=2)"
    assert wide.loc["none", ("OoR − WR", board)] == "+3.50 ± 0.71 (n=2)"
    assert wide.loc["GeoCLIP · Hadamard", ("WR", "random")] == "5.00 ± 2.83 (n=2/3)"
    assert wide.loc["lat/lon", ("WR", "random")] == "missing (0/3)"
    assert wide.loc["lat/lon", ("OoR", board)] == "failed (1/2)"


def test_a_done_cell_without_a_finite_metric_is_undefined():
    rows = frame(cell("none", "random", 0, 0, math.inf), cell("none", "random", 1, 0, NAN))
    assert tables.wide(tables.comparison(rows)).iloc[0, 0] == "undefined (0/2)"


def test_one_seed_has_no_spread():
    wide = tables.wide(tables.comparison(frame(cell("none", "random", 0, 0, 7.424))))
    assert wide.loc["none", ("WR", "random")] == "7.42 ± – (n=1)"


def test_digits_belong_to_the_metric():
    rows = frame(cell("none", "random", 0, 0, -0.0004), cell("none", "random", 1, 0, -0.0004))
    assert tables.wide(tables.comparison(rows, "r2")).iloc[0, 0] == "0.000 ± 0.000 (n=2)"
    assert tables.wide(tables.comparison(rows, "mbe")).iloc[0, 0] == "0.00 ± 0.00 (n=2)"
    assert tables.number(3.2e7, "rmse") == "3.20e+07"


def test_a_study_without_baseline_has_no_differences():
    compared = tables.comparison(
        frame(cell("latlon", "random", 0, 0, 5.0), cell("sincos", "random", 0, 0, 4.0))
    )
    assert compared["diff_mean"].isna().all()
    assert (compared["n_pairs"] == 0).all()
    assert tables.differences(compared).loc["lat/lon", ("WR", "random")] == "no pairs"


def test_the_best_is_the_best_of_the_whole_arms(rows):
    mask = tables.best(tables.comparison(rows))
    # GeoCLIP's 5.00 on random lacks a cell, so nothing is best there: 'none' has no rival.
    assert not mask[("WR", "random")].any()
    assert list(mask.index[mask[("OoR", "checkerboard-16")]]) == ["GeoCLIP · Hadamard"]
    assert not mask[("OoR − WR", "checkerboard-16")].any()


@pytest.mark.parametrize(("metric", "best"), [("rmse", "sin/cos"), ("r2", "none"), ("mbe", "lat/lon")])
def test_best_means_low_error_high_r2_and_little_bias(metric, best):
    rows = frame(
        cell("none", "random", 0, 0, 0.9),
        cell("latlon", "random", 0, 0, 0.1),
        cell("sincos", "random", 0, 0, -0.5),
    )
    rows["test_rmse"] = [3.0, 2.0, 1.0]
    mask = tables.best(tables.comparison(rows, metric))
    assert list(mask.index[mask[("WR", "random")]]) == [best]


def test_each_direction_on_its_own(rows):
    wide = tables.wide(tables.comparison(tables.directions(rows)))
    held_out = "checkerboard-16 · colour 1 held out"
    assert wide.loc["none", ("OoR", held_out)] == "12.00 ± – (n=1)"
    assert wide.loc["none", ("WR", held_out)] == "8.00 ± – (n=1)"
    assert wide.loc["lat/lon", ("OoR", "checkerboard-16 · colour 0 held out")] == "failed (1/1)"


def test_completeness_and_sizes(rows):
    counts = tables.completeness(rows)
    assert counts.loc["GeoCLIP · Hadamard", "random"] == "2 done, 1 failed"
    assert counts.loc["lat/lon", "checkerboard-16"] == "1 failed, 1 missing"
    assert list(tables.sizes(rows).loc["checkerboard-16"]) == ["70", "10", "20", "5"]
    assert tables.sizes(rows).loc["random", "WR test"] == "–"


def test_one_cell_twice_is_refused(rows):
    with pytest.raises(ValueError, match=r"two rows for one cell.*'split': 'random'"):
        tables.comparison(pd.concat([rows, rows.iloc[:1]], ignore_index=True))


def test_a_split_that_an_arm_does_not_plan(rows):
    some = rows[~((rows["variant"] == "latlon") & (rows["split"] == "random"))]
    compared = tables.comparison(some)
    assert len(compared) == 5
    assert tables.wide(compared).loc["lat/lon", ("WR", "random")] == "not planned"


# Two heads of 'none'


def test_the_baseline_is_the_plain_none_alone(rows):
    """The matched head is an arm like any other: 2 better everywhere, and GeoCLIP is not held against it."""
    matched = [
        cell("none", "random", 0, 0, 2.0, fusion="hadamard"),
        cell("none", "random", 0, 1, 4.0, fusion="hadamard"),
        cell("none", "random", 1, 0, 6.0, fusion="hadamard"),
    ]
    compared = tables.comparison(pd.concat([frame(*matched), rows], ignore_index=True))
    arms = ["none · matched Hadamard", "none", "GeoCLIP · Hadamard", "lat/lon"]
    assert list(dict.fromkeys(compared["arm"])) == arms
    head = line(compared, "none · matched Hadamard", "random")
    assert (head["variant"], head["fusion"]) == ("none", "hadamard")
    assert (head["mean"], head["diff_mean"], head["n_pairs"], head["n_better"]) == (4.0, -2.0, 3, 3)
    none = line(compared, "none", "random")
    assert (none["mean"], none["diff_mean"], none["n_pairs"], none["n_better"]) == (6.0, 0.0, 3, 0)
    alone = tables.comparison(rows)
    pd.testing.assert_frame_equal(
        compared[compared["arm"] != "none · matched Hadamard"].reset_index(drop=True),
        alone[alone["arm"].isin(arms)].reset_index(drop=True),
    )
    differences = tables.differences(compared)
    assert list(differences.index) == ["none · matched Hadamard", "GeoCLIP · Hadamard", "lat/lon"]
    assert differences.loc["none · matched Hadamard", ("WR", "random")] == "-2.00 ± 0.00 (better in 3 of 3)"


def test_a_matched_head_alone_is_no_baseline():
    only = frame(
        cell("none", "random", 0, 0, 2.0, fusion="hadamard"),
        cell("geoclip", "random", 0, 0, 1.0, fusion="hadamard"),
    )
    compared = tables.comparison(only)
    assert (compared["n_pairs"] == 0).all()
    assert list(tables.differences(compared).index) == ["none · matched Hadamard", "GeoCLIP · Hadamard"]


# Marks


def marked(rows, *keys, what="shared_sites"):
    rows = rows.copy()
    rows["marked"] = ["; ".join([what]) if key in keys else "" for key in rows["key"]]
    return rows


def test_a_mean_with_a_marked_cell_is_marked(rows):
    board = "checkerboard-16"
    compared = tables.comparison(
        marked(rows, "nonehadamardx", "noneNonerandom01", f"geocliphadamard{board}10")
    )
    assert line(compared, "none", "random")["n_marked"] == 1
    assert line(compared, "none", board)["n_marked"] == 0
    assert line(compared, "GeoCLIP · Hadamard", board)["n_marked"] == 1
    assert compared["n_marked"].sum() == 2
    wide = tables.wide(compared)
    assert wide.loc["none", ("WR", "random")] == "6.00 ± 2.00† (n=3)"
    assert wide.loc["none", ("OoR", board)] == "11.00 ± 1.41 (n=2)"
    # One model makes both numbers of a checkerboard, and their gap.
    assert wide.loc["GeoCLIP · Hadamard", ("OoR", board)] == "9.50 ± 0.71† (n=2)"
    assert wide.loc["GeoCLIP · Hadamard", ("WR", board)] == "7.25 ± 0.35† (n=2)"
    assert wide.loc["GeoCLIP · Hadamard", ("OoR − WR", board)] == "+2.25 ± 1.06† (n=2)"
    assert wide.loc["lat/lon", ("WR", "random")] == "missing (0/3)"
    assert "9.50 ± 0.71† (n=2)" in tables.markdown(wide)


def test_a_mark_changes_no_number(rows):
    plain = tables.comparison(rows)
    every = tables.comparison(marked(rows, *rows["key"]))
    assert (every["n_marked"] == every["n_expected"]).all()
    pd.testing.assert_frame_equal(every.drop(columns="n_marked"), plain.drop(columns="n_marked"))
    pd.testing.assert_frame_equal(tables.best(every), tables.best(plain))


@pytest.mark.parametrize("empty", ["", None, NAN])
def test_rows_without_marks_are_not_marked(rows, empty):
    assert "marked" not in rows
    plain = tables.comparison(rows)
    assert (plain["n_marked"] == 0).all()
    assert not tables.wide(plain).map(lambda text: tables.MARK in text).any(axis=None)
    pd.testing.assert_frame_equal(tables.comparison(rows.assign(marked=empty)), plain)


# Fair contrasts


def test_an_unfair_difference_is_marked_and_its_reasons_are_counted(rows):
    board = "checkerboard-16"
    torch = "torch 2.12.0 against 2.13.0"
    plain = tables.comparison(rows)
    unfair = {
        "geocliphadamardrandom00": torch,
        "geocliphadamardrandom10": torch,  # it failed: no pair
        f"geocliphadamard{board}00": torch,
        f"geocliphadamard{board}10": f"threads 2 against 1; {torch}",
    }
    tuned = {f"geocliphadamard{board}00": "model.width 64 against 32"}
    texts = {"unfair": rows["key"].map(unfair), "tuned": rows["key"].map(tuned)}
    compared = tables.comparison(rows.assign(**texts))
    random, on_board = (line(compared, "GeoCLIP · Hadamard", split) for split in ("random", board))
    assert (random["n_unfair"], random["unfair"], random["tuned"]) == (1, f"in 1 of 2 pairs: {torch}", "")
    assert on_board["n_unfair"] == 2
    assert on_board["unfair"] == f"in every pair: {torch}; in 1 of 2 pairs: threads 2 against 1"
    assert on_board["tuned"] == "in 1 of 2 pairs: model.width 64 against 32"
    assert compared["n_unfair"].sum() == 3

    apart = tables.differences(compared)
    assert apart.loc["GeoCLIP · Hadamard", ("WR", "random")] == "+0.00 ± 1.41‡ (better in 1 of 2)"
    # Both numbers of a checkerboard come from the same two models.
    assert apart.loc["GeoCLIP · Hadamard", ("WR", board)] == "-0.25 ± 1.06‡ (better in 1 of 2)"
    assert apart.loc["GeoCLIP · Hadamard", ("OoR", board)] == "-1.50 ± 0.71‡ (better in 2 of 2)"
    assert apart.loc["lat/lon", ("WR", "random")] == "no pairs"
    pd.testing.assert_frame_equal(tables.wide(compared), tables.wide(plain))  # a mean is nobody's contrast
    added = ["n_unfair", "unfair", "tuned"]
    pd.testing.assert_frame_equal(compared.drop(columns=added), plain.drop(columns=added))


def test_each_direction_has_its_own_reasons(rows):
    at = rows["key"] == "geocliphadamardcheckerboard-1610"
    cells = rows.assign(unfair=at.map({True: "threads 2 against 1", False: ""}))
    compared = tables.comparison(tables.directions(cells))
    assert compared.loc[compared["n_unfair"] > 0, "split"].tolist() == ["checkerboard-16 · colour 1 held out"]


def test_reasons_are_listed_once(rows):
    torch = "torch 2.12.0 against 2.13.0"
    some = rows.assign(unfair=rows["variant"].map({"geoclip": torch}))
    listed = tables.unfair(tables.comparison(some))
    assert listed.to_numpy().tolist() == [
        ["GeoCLIP · Hadamard", "random, checkerboard-16", f"in every pair: {torch}"]
    ]


@pytest.mark.parametrize("empty", ["", None, NAN])
def test_a_fair_contrast_is_not_marked(rows, empty):
    plain = tables.comparison(rows)
    assert (plain["n_unfair"] == 0).all()
    assert not tables.differences(plain).map(lambda text: tables.UNFAIR in text).any(axis=None)
    assert tables.unfair(plain).empty
    pd.testing.assert_frame_equal(tables.comparison(rows.assign(unfair=empty, tuned=empty)), plain)


def test_markdown_and_csv(rows):
    compared = tables.comparison(rows)
    text = tables.markdown(tables.wide(compared)[["OoR"]], tables.best(compared)[["OoR"]])
    assert [part.strip() for part in text.splitlines()[3].split("|")] == [
        "", "GeoCLIP · Hadamard", "**9.50 ± 0.71 (n=2)**", ""
    ]  # fmt: skip
    assert "OoR · checkerboard-16" in text
    hostile = pd.DataFrame({"a|b": ["<script>|\n*x*"]}, index=["k"])
    assert "&lt;script&gt;\\| \\*x\\*" in tables.markdown(hostile)
    assert tables.csv(compared).splitlines()[1].startswith("none,none,,random,WR,rmse,6.0,2.0,3,3,0,0,0,")
