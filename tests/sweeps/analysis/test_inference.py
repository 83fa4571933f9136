"""What a study's cells say: on frames whose answer is known, and on studies with nothing to find."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweeps.analysis import estimands, inference, judgement, labels, statistics, units
from sweeps.analysis.comparability import Comparisons
from sweeps.analysis.estimands import Sample
from sweeps.spec import claims as spec_claims
from sweeps.spec.claims import Analysis, Claim, Contrast
from sweeps.spec.design import Arm, Ladders

ANALYSIS = Analysis(rope=0.01)
NONE, GEOCLIP = ("none", None), ("geoclip", "hadamard")
# Differences of -0.4 on average with a sum of squares of 0.1: the sample variance over five folds is 0.025.
FOLD = [-0.4, -0.3, -0.5, -0.2, -0.6]
REGIONS = "clusters-5"
"""A split whose folds are its units, so that its test needs no predictions."""


def row(arm: tuple[str, str | None], split: str, fold: int, seed: int = 0, **more: Any) -> dict[str, Any]:
    kind = split.split("-")[0]
    board = kind.startswith("checkerboard")
    origin = 0 if kind == "checkerboard" else fold // (10 if "-rotate" in split else 2)
    return {
        "key": f"{arm[0]}-{arm[1]}-{split}-{fold}-{seed}",
        "variant": arm[0],
        "fusion": arm[1],
        "split": split,
        "regime": "WR" if kind in ("random", "spatial", "rolling") else "OoR",
        "fold": fold,
        "seed": seed,
        "state": "done",
        "folds": 2 if board else 5,
        "kind": kind,
        "unit": origin if board else fold,
        "n_test": 100,
        "n_wr": 20,
        "marked": "",
        "unfair": "",
        "tuned": "",
        **more,
    }


def study(differences: Sequence[float] = FOLD, split: str = REGIONS) -> pd.DataFrame:
    """'none' at 7 + fold, GeoCLIP so much apart from it, fold by fold."""
    cells = []
    for fold, difference in enumerate(differences):
        cells.append(row(NONE, split, fold, test_rmse=7.0 + fold, wr_rmse=6.0))
        cells.append(row(GEOCLIP, split, fold, test_rmse=7.0 + fold + difference, wr_rmse=6.0))
    return pd.DataFrame(cells)


def claim(**more: Any) -> Claim:
    of = {
        "claim": "GeoCLIP beats no location",
        "better": {"variant": "geoclip", "fusion": "hadamard"},
        "than": {"variant": "none"},
        "on": {"split": REGIONS},
        "metric": "rmse",
    }
    return Claim.model_validate(of | more)


def on_test(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["part"] == "test"]


def only(frame: pd.DataFrame) -> pd.Series:
    """The one line on a test set; those within region and of gaps have tests of their own."""
    frame = on_test(frame)
    assert len(frame) == 1
    return frame.iloc[0]


def test_a_contrast_by_hand() -> None:
    found = only(inference.contrasts(study(), ANALYSIS))
    se = math.sqrt((1 / 5 + 1 / 4) * 0.025)
    assert (found["arm"], found["other"], found["split"], found["part"]) == (
        "GeoCLIP · Hadamard",
        "none",
        REGIONS,
        "test",
    )
    assert found["diff"] == pytest.approx(-0.4)
    assert (found["mean_arm"], found["mean_other"]) == pytest.approx((8.6, 9.0))
    assert found["p"] == pytest.approx(2 * stats.t.sf(0.4 / se, 4))
    half = stats.t.ppf(0.975, 4) * se
    assert (found["low"], found["high"]) == pytest.approx((-0.4 - half, -0.4 + half))
    assert (found["se"], found["df"]) == (pytest.approx(se), 4)
    assert found["rope"] == pytest.approx(0.09)  # 1 % of 9
    assert found["p_better"] == pytest.approx(stats.t.cdf((0.4 - 0.09) / se, 4))
    assert found["p_better"] + found["p_equal"] + found["p_worse"] == pytest.approx(1)
    assert found["declared"]
    assert found["p_adjusted"] == found["p"]  # a family of one
    assert found["verdict"] == "better"
    assert (found["n_pairs"], found["n_units"], found["n_seeds"], found["n_better"]) == (5, 5, 1, 5)
    assert (found["unit"], found["test"], found["untested"]) == ("region", "corrected t over folds", "")
    assert found["keys_arm"].split("; ") == [f"geoclip-hadamard-{REGIONS}-{fold}-0" for fold in range(5)]
    assert found["keys_other"].split("; ") == [f"none-None-{REGIONS}-{fold}-0" for fold in range(5)]


def test_more_r2_is_better_and_less_error() -> None:
    cells = study([-d for d in FOLD])
    cells["test_r2"], cells["test_mae"] = cells["test_rmse"], cells["test_rmse"]
    verdict = {m: only(inference.contrasts(cells, ANALYSIS, (), m))["verdict"] for m in ("rmse", "r2", "mae")}
    assert verdict == {"rmse": "worse", "r2": "better", "mae": "worse"}
    r2 = only(inference.contrasts(cells, ANALYSIS, (), "r2"))
    assert r2["rope"] == 0.01
    assert r2["p_better"] > 0.95
    assert not r2["declared"], "the primary metric's are"
    assert math.isnan(r2["p_adjusted"])


def test_seeds_are_no_test_sets() -> None:
    """Ten seeds of two folds are two units, whatever their number: too few for a test."""
    cells = pd.DataFrame(
        row(arm, REGIONS, fold, seed, test_rmse=7 + fold + 0.01 * seed - (arm == GEOCLIP))
        for arm in (NONE, GEOCLIP)
        for fold in range(2)
        for seed in range(10)
    )
    found = only(inference.contrasts(cells, ANALYSIS))
    assert (found["n_pairs"], found["n_units"], found["n_seeds"]) == (20, 2, 10)
    assert found["verdict"] == "too few"
    assert math.isnan(found["p"])
    assert math.isnan(found["low"])
    assert found["diff"] == pytest.approx(-1)


def test_five_folds_with_many_seeds_have_four_degrees_of_freedom() -> None:
    cells = []
    for (fold, difference), seed in itertools.product(enumerate(FOLD), (0, 1)):
        noise = 0.05 if seed else -0.05
        cells.append(row(NONE, REGIONS, fold, seed, test_rmse=7.0 + fold))
        cells.append(row(GEOCLIP, REGIONS, fold, seed, test_rmse=7.0 + fold + difference + noise))
    found, plain = (only(inference.contrasts(frame, ANALYSIS)) for frame in (pd.DataFrame(cells), study()))
    for name in ("diff", "low", "high", "p"):
        assert found[name] == pytest.approx(plain[name])


def test_only_pairs_count() -> None:
    cells = study()
    cells.loc[cells["key"] == f"none-None-{REGIONS}-3-0", "state"] = "failed"
    cells.loc[cells["key"] == f"geoclip-hadamard-{REGIONS}-4-0", "state"] = "missing"
    found = only(inference.contrasts(cells, ANALYSIS))
    assert (found["n_pairs"], found["n_units"]) == (3, 3)
    assert found["diff"] == pytest.approx(-0.4)
    means = on_test(inference.means(cells, ANALYSIS)).set_index("arm")
    assert list(means["n"]) == [4, 4]
    assert list(means["n_failed"]) == [1, 0]
    assert list(means["n_missing"]) == [0, 1]
    assert means["low"].isna().all(), "an arm without all its cells has no interval beside others"


def test_a_number_beside_a_cell_that_is_not_done_is_none() -> None:
    cells = study()
    cells.loc[0, "state"] = "failed"  # its metric is still in the frame
    assert only(inference.contrasts(cells, ANALYSIS))["n_pairs"] == 4
    cells.loc[1, "test_rmse"] = math.inf
    assert only(inference.contrasts(cells, ANALYSIS))["n_pairs"] == 4


def test_means_by_hand() -> None:
    """Five folds from 7 to 11: a variance of 2.5, corrected for their shared training sites."""
    found = on_test(inference.means(study(), ANALYSIS)).set_index("arm")
    assert found.loc["none", "mean"] == 9
    assert found.loc["none", "sd"] == pytest.approx(math.sqrt(2.5))
    assert found.loc["none", "iqm"] == 9
    assert not found["pooled"].any()
    half = stats.t.ppf(0.975, 4) * math.sqrt((1 / 5 + 1 / 4) * 2.5)
    assert (found.loc["none", "low"], found.loc["none", "high"]) == pytest.approx((9 - half, 9 + half))


def test_the_arm_with_more_recall_comes_first() -> None:
    cells = study()
    recall = cells["variant"].map({"none": 0.1, "geoclip": 0.3}).fillna(0.2)
    frame = on_test(inference.means(cells.assign(test_tail_recall=recall), Analysis(), "tail_recall"))
    assert list(labels.complete(frame)["variant"]) == ["geoclip", "none"]


def test_a_checkerboard_has_two_parts_and_one_unit() -> None:
    cells = study(FOLD[:2], "checkerboard-16")
    frame = inference.contrasts(cells, ANALYSIS).set_index("part")
    assert list(frame.index) == ["test", "wr"], "its two parts are different sites, so it has no gap"
    assert list(frame["regime"]) == ["OoR", "WR"]
    assert frame["diff"].to_dict() == pytest.approx({"test": -0.35, "wr": 0.0})
    assert list(frame["verdict"]) == ["too few", "too few"]
    assert list(frame["n_units"]) == [1, 1]
    assert all("{kind: checkerboards, degrees: 16, origins: 15}" in text for text in frame["untested"])
    assert list(frame["declared"]) == [True, False]
    assert inference.means(cells, ANALYSIS)["low"].isna().all()


def test_a_gap_needs_a_rotation() -> None:
    """The gap is paired: equal numbers of training sites predict a site from within and from outside."""
    plain = inference.contrasts(study([0.0] * 10, "checkerboards-16"), ANALYSIS)
    assert list(plain["part"]) == ["test", "wr"]
    rotated = study(np.repeat(FOLD, 10).tolist(), "checkerboards-16-rotate")
    rotated["test_rmse"] -= rotated["fold"]  # as the five folds that test one colour have the same samples
    frame = inference.contrasts(rotated, ANALYSIS).set_index("part")
    assert list(frame.index) == ["test", "wr", "gap"]
    assert list(frame["regime"]) == ["OoR", "WR", "gap"]
    assert frame["diff"].to_dict() == pytest.approx({"test": -0.4, "wr": 0.0, "gap": -0.4})
    assert list(frame["n_units"]) == [5, 5, 5]
    se = math.sqrt((1 / 5 + 1) * 0.025)
    assert frame["p"].to_dict() == pytest.approx(
        {"test": 2 * stats.t.sf(0.4 / se, 4), "wr": 1.0} | {"gap": 2 * stats.t.sf(0.4 / se, 4)}
    )
    means = inference.means(rotated, ANALYSIS)
    gap = means[means["part"] == "gap"].set_index("arm")["mean"]
    assert gap["none"] == pytest.approx(7 - 6)


def test_without_none_only_claims_are_contrasts() -> None:
    cells = study()
    cells = cells[cells["variant"] != "none"]
    assert inference.contrasts(cells, ANALYSIS).empty
    assert len(on_test(inference.means(cells, ANALYSIS))) == 1
    assert only(inference.claims(cells, ANALYSIS, [claim()]))["verdict"] == "no cells"


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        (FOLD, "supported"),
        ([-d for d in FOLD], "refuted"),
        ([0.001, -0.001, 0.002, -0.002, 0.0], "refuted"),  # practically equal
        ([-0.05, -0.052, -0.048, -0.051, -0.049], "refuted"),  # not zero, and practically equal
        ([-0.1, -0.11, -0.09, -0.12, -0.08], "supported"),  # not zero, and around the region's end
        ([0.3, -0.4, 0.1, -0.2, 0.25], "undecided"),
        (FOLD[:2], "too few"),
    ],
)
def test_claims(differences: list[float], verdict: str) -> None:
    found = only(inference.claims(study(differences), ANALYSIS, [claim()]))
    assert found["verdict"] == verdict
    assert found["claim"] == "GeoCLIP beats no location"
    assert len(found["keys_arm"].split("; ")) == len(differences)


def test_a_claim_may_turn_a_contrast_round() -> None:
    turned = claim(better={"variant": "none"}, than={"variant": "geoclip", "fusion": "hadamard"})
    assert only(inference.claims(study(), ANALYSIS, [turned]))["verdict"] == "refuted"
    assert len(on_test(inference.contrasts(study(), ANALYSIS, [turned]))) == 2


def test_claims_of_all_metrics_are_one_family() -> None:
    cells = study()
    cells["test_r2"] = -cells["test_rmse"]
    declared = [claim(), claim(claim="by R2", metric="r2")]
    both = inference.claims(cells, ANALYSIS, declared)
    alone = inference.claims(cells, ANALYSIS, declared[:1])
    assert list(both["p_adjusted"]) == pytest.approx([2 * both["p"][0]] * 2)
    assert alone["p_adjusted"][0] == alone["p"][0]
    undeclared = inference.contrasts(cells, ANALYSIS, [declared[1]], "rmse")
    assert not undeclared["declared"].any()


def test_a_claim_on_one_fold_is_one_unit() -> None:
    found = only(inference.claims(study(), ANALYSIS, [claim(on={"split": REGIONS, "fold": 2})]))
    assert (found["fold"], found["n_pairs"], found["diff"]) == (2, 1, pytest.approx(-0.5))
    assert found["verdict"] == "too few"


def test_holm_is_over_the_declared_alone() -> None:
    cells = [study()]
    for i, variant in enumerate(("latlon", "sincos")):
        arm = study([d * (0.5 - 0.2 * i) for d in FOLD])
        cells.append(arm[arm["variant"] == "geoclip"].assign(variant=variant, fusion=None))
        cells[-1]["key"] = variant + cells[-1]["key"]
    frame = on_test(inference.contrasts(pd.concat(cells, ignore_index=True), ANALYSIS))
    assert frame["declared"].all()
    assert list(frame["p_adjusted"]) == pytest.approx(list(statistics.holm(frame["p"].tolist())))
    one = on_test(inference.contrasts(pd.concat(cells, ignore_index=True), ANALYSIS, [claim()]))
    one = one.set_index("arm")
    assert one["declared"].to_dict() == {"GeoCLIP · Hadamard": True, "lat/lon": False, "sin/cos": False}
    assert one["p_adjusted"].isna().to_dict() == {
        "GeoCLIP · Hadamard": False,
        "lat/lon": True,
        "sin/cos": True,
    }


def test_failed_cells_make_no_family_smaller() -> None:
    """Of two planned contrasts one has two units left: the other's p counts twice all the same."""
    other = study([d / 2 for d in FOLD])
    other = other[other["variant"] == "geoclip"].assign(variant="latlon", fusion=None)
    other["key"] = "latlon" + other["key"]
    other.loc[other["fold"] > 1, "state"] = "failed"
    frame = on_test(inference.contrasts(pd.concat([study(), other], ignore_index=True), ANALYSIS))
    frame = frame.set_index("arm")
    assert frame.loc["lat/lon", "verdict"] == "too few"
    assert math.isnan(frame.loc["lat/lon", "p_adjusted"])
    assert frame.loc["GeoCLIP · Hadamard", "p_adjusted"] == pytest.approx(
        2 * frame.loc["GeoCLIP · Hadamard", "p"]
    )
    # A checkerboard never has enough, so it takes no place.
    board = pd.concat([study(), study(FOLD[:2], "checkerboard-16")], ignore_index=True)
    regions = inference.contrasts(board, ANALYSIS).iloc[0]
    assert (regions["split"], regions["p_adjusted"]) == (REGIONS, regions["p"])


def test_a_bias_and_a_gap_have_no_better() -> None:
    cells = study()
    cells["test_mbe"] = np.where(cells["variant"] == "none", 1.0, -3.0 + 0.01 * cells["fold"])
    cells.loc[1, "test_mbe"] = -0.5
    found = only(inference.contrasts(cells, ANALYSIS, (), "mbe"))
    assert found["n_better"] == 1, "-3 is no better than 1"
    assert found["p"] < 0.05
    alike = np.repeat([-0.4, -0.39, -0.41, -0.38, -0.42], 10).tolist()
    rotated = study(alike, "checkerboards-16-rotate")
    rotated["test_rmse"] -= rotated["fold"]
    gap = inference.contrasts(rotated, ANALYSIS).set_index("part").loc["gap"]
    assert gap["p"] < 0.05
    for line in (found, gap):
        assert line["verdict"] == ""
        assert line[["rope", "p_better", "p_equal", "p_worse"]].isna().all()


def adaptive(seeds: int, differences: Sequence[float], **more: Any) -> pd.DataFrame:
    return pd.DataFrame(
        row(arm, REGIONS, fold, seed, test_rmse=7.0 + fold + (arm == GEOCLIP) * difference, **more)
        for arm in (NONE, GEOCLIP)
        for fold, difference in enumerate(differences)
        for seed in range(seeds)
    )


def test_repeated_looks_cost_their_number() -> None:
    once = only(inference.contrasts(adaptive(3, FOLD), ANALYSIS))
    found = only(inference.contrasts(adaptive(3, FOLD), ANALYSIS, looks=Ladders((3, 6, 12))))
    assert found["looks"] == 3
    assert found["p"] == pytest.approx(3 * once["p"])
    assert found["high"] - found["low"] > once["high"] - once["low"]


def test_a_contrast_is_judged_where_its_seeds_stopped() -> None:
    """It stopped at three; that another contrast asked for more of its cells changes nothing."""
    strong = [d - 1 for d in FOLD]
    cells = adaptive(6, strong)
    late = (cells["seed"] >= 3) & (cells["variant"] == "geoclip")
    cells.loc[late, "test_rmse"] += 9.0
    found = only(inference.contrasts(cells, ANALYSIS, looks=Ladders((3, 6))))
    assert (found["n_seeds"], found["verdict"]) == (3, "better")
    cells.loc[(cells["seed"] == 2) & (cells["variant"] == "none"), "state"] = "missing"
    assert only(inference.contrasts(cells, ANALYSIS, looks=Ladders((3, 6))))["n_seeds"] == 2, (
        "the look is not complete"
    )


class Sums:
    """Sixty sites, of which every cell has all on each of sixty days: a site's error is the same on all."""

    DAYS = 60
    lat, lon = (x.ravel() for x in np.meshgrid(np.linspace(26, 48, 5), np.linspace(-122, -69, 12)))

    def __init__(self, error: dict[str, np.ndarray], missing: str = "") -> None:
        self._error, self._missing = error, missing

    def of(self, key: str, part: str = "test") -> tuple[np.ndarray, np.ndarray] | None:
        if key == self._missing:
            return None
        error = np.broadcast_to(self._error[key.split("-")[0]], 60)
        if "broken" in key:
            error = error + 100
        columns = [np.ones(60), error, np.abs(error), error**2, np.full(60, 5.0), np.full(60, 30.0)]
        return np.arange(60, dtype=np.int32), np.stack(columns, axis=1)

    def by_day(self, key: str) -> tuple[np.ndarray, np.ndarray] | None:
        """A sixtieth of all sums on each day, but for a ripple."""
        if (found := self.of(key)) is None:
            return None
        ripple = 1 + 0.1 * np.sin(np.arange(self.DAYS) * 2.0)
        totals = found[1].sum(axis=0) / self.DAYS * ripple[:, None] / ripple.mean()
        totals[:, 0] = found[1][:, 0].sum() / self.DAYS
        return np.arange(self.DAYS) + 18628, totals


ERROR = np.random.default_rng(6).normal(0, 3, 60)
BOTH = {"none": ERROR, "geoclip": 0.8 * ERROR}
POOLED = float(np.sqrt(np.mean(ERROR**2)))


@pytest.mark.parametrize(
    ("split", "unit", "test"),
    [("random", "day", "corrected t over folds"), ("spatial", "block of monitors", "")],
)
def test_within_region_the_scores_of_all_predictions_are_compared(split: str, unit: str, test: str) -> None:
    """Their difference is not that of the records' scores, which are averaged over folds."""
    found = only(inference.contrasts(study(split=split), ANALYSIS, sums=Sums(BOTH)))
    assert found["diff"] == pytest.approx(-0.2 * POOLED)
    assert (found["mean_arm"], found["mean_other"]) == pytest.approx((0.8 * POOLED, POOLED))
    assert found["rope"] == pytest.approx(0.01 * POOLED)
    assert (found["unit"], found["untested"], found["n_pairs"]) == (unit, "", 5)
    assert found["n_units"] >= 8
    assert found["low"] < found["diff"] < found["high"]
    assert found["p"] <= found["p_adjusted"] < 1
    assert test in found["test"]
    assert pd.isna(found["more_seeds"]), "more seeds make neither days nor monitors"
    means = inference.means(study(split=split), ANALYSIS, sums=Sums(BOTH)).set_index("arm")
    assert means["pooled"].all()
    assert list(means["mean"]) == pytest.approx([POOLED, 0.8 * POOLED])
    assert (means["low"] < means["mean"]).all()
    assert (means["mean"] < means["high"]).all()


@pytest.mark.parametrize("split", ["random", "spatial"])
def test_without_predictions_within_region_nothing_is_tested(split: str) -> None:
    one = Sums(BOTH, missing=f"none-None-{split}-2-0")
    for sums in (None, one):
        found = only(inference.contrasts(study(split=split), ANALYSIS, sums=sums))
        assert (found["verdict"], found["n_pairs"]) == ("too few", 5)
        assert "predictions" in found["untested"]
        assert found["diff"] == pytest.approx(-0.4), "the mean over folds"
        assert math.isnan(found["p"])
        claimed = inference.claims(study(split=split), ANALYSIS, [claim(on={"split": split})], sums)
        assert only(claimed)["verdict"] == "too few"
    means = inference.means(study(split=split), ANALYSIS, sums=one).set_index("arm")
    assert list(means["pooled"]) == [False, True]
    assert math.isnan(means.loc["none", "low"])


def test_pooled_scores_are_of_the_pairs_alone() -> None:
    """A cell whose partner failed has predictions, which would change the sums."""
    cells = study(split="spatial")
    cells.loc[cells["key"] == "none-None-spatial-3-0", "state"] = "failed"
    cells.loc[cells["key"] == "geoclip-hadamard-spatial-3-0", "key"] = "geoclip-broken"
    found = only(inference.contrasts(cells, ANALYSIS, sums=Sums(BOTH)))
    assert (found["n_pairs"], found["diff"]) == (4, pytest.approx(-0.2 * POOLED))


def test_a_study_without_results_lacks_units() -> None:
    cells = study(split="random").assign(state="missing")
    found = only(inference.contrasts(cells, ANALYSIS))
    assert (found["n_pairs"], found["verdict"]) == (0, "too few")
    assert "predictions" not in found["untested"]


@pytest.mark.parametrize("given", [False, True])
def test_pairs_without_none_are_compared_with_each_other(given: bool) -> None:
    cells = study()
    other = cells[cells["variant"] == "geoclip"].assign(variant="latlon", fusion=None)
    other["key"] = "latlon-" + other["key"]
    torch = "torch 2.12 against 2.13"  # both have the same
    cells["unfair"] = np.where(cells["variant"] == "geoclip", f"threads 2 against 1; {torch}", "")
    other["unfair"] = f"device cuda against cpu; {torch}"
    rows = pd.concat([cells, other], ignore_index=True)

    def record(key: str) -> dict[str, Any]:
        cuda = key.startswith("latlon")
        own = {"device": "cuda", "threads": 1} if cuda else {"device": "cpu", "threads": 2}
        return {"cell": {"variant": key}, "versions": {"torch": "2.12"}, "counts": {}, "audit": {}, **own}

    records = {key: record(key) for key in rows["key"]} if given else None
    turned = claim(claim="turned", better={"variant": "latlon"}, than=claim().better.model_dump())
    found = inference.claims(
        rows, ANALYSIS, [claim(than={"variant": "latlon"}), turned], compared=records and Comparisons(records)
    )
    assert [set(text.split("; ")) for text in found["unfair"]] == [
        {"in every pair: device cpu against cuda", "in every pair: threads 2 against 1"},
        {"in every pair: device cuda against cpu", "in every pair: threads 1 against 2"},
    ]


def test_a_confounded_pair_is_named() -> None:
    cells = study()
    cells.loc[cells["variant"] == "geoclip", "unfair"] = "torch 2.12.0 against 2.13.0"
    assert only(inference.contrasts(cells, ANALYSIS))["unfair"] == (
        "in every pair: torch 2.12.0 against 2.13.0"
    )


def test_order_of_rows_changes_nothing() -> None:
    cells = pd.concat([study(), study(FOLD[:2], "checkerboard-16")], ignore_index=True)
    mixed = cells.sample(frac=1, random_state=0).reset_index(drop=True)
    by = ["arm", "split", "part"]
    for make in (inference.means, inference.contrasts):
        a, b = (make(frame, ANALYSIS).sort_values(by, ignore_index=True) for frame in (cells, mixed))
        pd.testing.assert_frame_equal(a, b)


# Studies in which there is nothing to find


FOLDS, SEEDS, STUDIES = 5, 4, 200
LOOKS = (2, 4)


def null_rmse(rng: np.random.Generator, n: int, columns: int, folds: int, seeds: int) -> np.ndarray:
    """(3 arms, folds, seeds): arms that differ in columns of pure noise alone, by ridge regression.

    The folds' trainings share samples and an arm's seeds share its test sets, as in a real study; a seed is a
    bootstrap of the training samples. With a third as many columns as samples, what an arm learns of its
    noise hangs on them, so that its folds err together: over 600 studies of 60 samples, 20 columns and five
    folds the differences of two folds are correlated by 0.17; the corrected test takes them for 1/5. With few
    columns they are not correlated at all, and any test that averages the seeds would do.
    """
    x, noise = rng.normal(size=(n, 3)), rng.normal(size=(3, n, columns))
    y = x @ rng.normal(size=3) + rng.normal(size=n)
    rmse = np.empty((3, folds, seeds))
    part = np.array_split(rng.permutation(n), folds)
    for arm, (fold, test) in itertools.product(range(3), enumerate(part)):
        inputs = np.concatenate([x, noise[arm]], axis=1)
        drawn = rng.choice(np.setdiff1d(np.arange(n), test), (seeds, n - len(test)))
        train = inputs[drawn].swapaxes(1, 2)  # (seeds, columns, samples)
        gram = train @ inputs[drawn] + np.eye(inputs.shape[1])
        weights = np.linalg.solve(gram, train @ y[drawn][..., None])[..., 0]
        rmse[arm, fold] = np.sqrt(np.mean((weights @ inputs[test].T - y[test]) ** 2, axis=1))
    return rmse


@pytest.fixture(scope="module")
def null_scores() -> np.ndarray:
    """RMSE (studies, arms, folds, seeds) of none, GeoCLIP and lat/lon."""
    rng = np.random.default_rng(20251125)
    return np.stack([null_rmse(rng, 60, 20, FOLDS, SEEDS) for _ in range(STUDIES)])


@pytest.fixture(scope="module")
def null_studies(null_scores: np.ndarray) -> list[pd.DataFrame]:
    arms = (NONE, GEOCLIP, ("latlon", None))
    places = [row(arms[a], REGIONS, *place) for a, *place in np.ndindex(null_scores.shape[1:])]
    grid = pd.DataFrame(places)
    return [grid.assign(test_rmse=rmse.ravel()) for rmse in null_scores]


def differences(rmse: np.ndarray) -> np.ndarray:
    """The variants minus 'none': (studies, arms, folds, seeds) -> (studies, variants, folds, seeds)."""
    return rmse[:, 1:] - rmse[:, :1]


def uncorrected(rmse: np.ndarray, *, folds_alone: bool) -> int:
    """Count the studies in which Student's t-test, adjusted by Holm's method, finds a difference.

    It takes folds x seeds for independent, or folds of averaged seeds.
    """
    both = differences(rmse)
    values = both.mean(axis=3) if folds_alone else both.reshape(*both.shape[:2], -1)
    p = stats.ttest_1samp(values, 0, axis=2).pvalue
    return sum(bool((statistics.holm(of_study) <= 0.05).any()) for of_study in p)


MOST = int(stats.binom.ppf(0.999, STUDIES, 0.05))
"""Of 200 studies at a true rate of 5 % so many are exceeded once in a thousand times: 20."""


def test_false_positives_stay_within_the_level(
    null_studies: list[pd.DataFrame], null_scores: np.ndarray
) -> None:
    """Of the whole chain: units, overlap, Holm over the family, verdicts and claims."""
    analysis = Analysis(rope=0.0)
    declared = [claim(), claim(claim="lat/lon too", better={"variant": "latlon"})]
    significant = verdicts = supported = 0
    for i, cells in enumerate(null_studies):
        frame = inference.contrasts(cells, analysis, declared)
        if i < 10:  # without claims the family is the same two contrasts
            pd.testing.assert_frame_equal(frame, inference.contrasts(cells, analysis))
        frame = on_test(frame)
        significant += bool((frame["p_adjusted"] <= analysis.alpha).any())
        verdicts += bool(frame["verdict"].isin(["better", "worse"]).any())
        outcome = inference.claims_of({"rmse": frame}, declared)["verdict"]
        supported += bool(outcome.isin(["supported"]).any())
    assert max(significant, verdicts, supported) <= MOST
    assert significant == verdicts, "without a region of equivalence they are one test"
    assert uncorrected(null_scores, folds_alone=True) > MOST, "overlap matters"
    assert uncorrected(null_scores, folds_alone=False) > 2 * MOST, "and seeds more"


def test_false_positives_of_adaptive_seeds(null_studies: list[pd.DataFrame], null_scores: np.ndarray) -> None:
    """Seeds are added where `judgement.stops` does not stop a contrast, so each is looked at twice."""
    analysis = Analysis(rope=0.0)
    stopped_early = wrong = 0
    both = [
        Contrast(arm, spec_claims.NONE, REGIONS, "test", None, "rmse")
        for arm in (Arm("geoclip", "hadamard"), Arm("latlon", None))
    ]
    first_look = null_scores[..., : LOOKS[0]]
    for i, (cells, (plain, *scores)) in enumerate(zip(null_studies, first_look, strict=True)):
        more = set()
        for contrast, own in zip(both, scores, strict=True):
            pairs = judgement.paired_scores(contrast, own, plain, analysis)
            values = units.unit_means(pairs.differences)
            sample = Sample("clusters", np.arange(FOLDS), FOLDS, values, "rmse")
            evidence = estimands.compare(sample, level=1 - analysis.alpha / len(LOOKS))
            if i < 5:  # the function that adaptive seeds call
                rows = cells[cells["seed"] < LOOKS[0]]
                _, found = inference.evidence(contrast, rows, analysis, len(LOOKS), None)
                assert found == evidence
            if not judgement.stops(contrast, pairs, evidence, analysis, len(LOOKS), len(both)):
                more.add(contrast.arm.variant)
        kept = (cells["seed"] < LOOKS[0]) | cells["variant"].isin(more | {"none"} if more else more)
        frame = on_test(
            inference.contrasts(cells[kept].reset_index(drop=True), analysis, looks=Ladders(LOOKS))
        )
        by_variant = frame["arm"].map({"lat/lon": "latlon", "GeoCLIP · Hadamard": "geoclip"})
        early = ~by_variant.isin(more)
        assert (frame.loc[early, "verdict"] != "undecided").all(), "what stopped is decided at the end"
        assert (frame["n_seeds"] == np.where(early, *LOOKS)).all()
        stopped_early += bool(early.any())
        wrong += bool(frame["verdict"].isin(["better", "worse"]).any())
    assert wrong <= MOST
    assert stopped_early <= MOST


def test_a_true_difference_is_found(null_studies: list[pd.DataFrame]) -> None:
    """The same studies, in which one arm is better by 1, some five standard deviations."""
    found = 0
    for cells in null_studies[:50]:
        cells = cells.copy()
        cells.loc[cells["variant"] == "geoclip", "test_rmse"] -= 1.0
        frame = on_test(inference.contrasts(cells, Analysis())).set_index("arm")
        found += frame.loc["GeoCLIP · Hadamard", "verdict"] == "better"
    assert found > 40
