"""Declarations before the first result, their changes, and the effect on the tests."""

import math
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from sweeps.analysis import inference
from sweeps.analysis.declarations import NOT_STORED, History, history, shown_time
from sweeps.spec.claims import NONE, Analysis, Claim, Contrast
from sweeps.spec.design import Arm
from sweeps.store.declarations import Declaration

GEOCLIP, LATLON = Arm("geoclip", "hadamard"), Arm("latlon", None)
HELPS = Contrast(GEOCLIP, NONE, "clusters-10", "test", None, "rmse")
COORDINATES = Contrast(LATLON, NONE, "clusters-10", "test", None, "rmse")
REVERSED = HELPS._replace(arm=NONE, other=GEOCLIP)
FIRST, SECOND, THIRD = (f"2026-11-{day:02}T08:10:05+00:00" for day in (1, 2, 3))


def declared(*claims: tuple[str, Contrast], seeds: tuple[int, ...] = (0,), **analysis: Any) -> dict[str, Any]:
    """Content of a declaration with these texts and contrasts."""
    return {
        "contrasts": [
            {
                **contrast._asdict(),
                "claim": text,
                "arm": contrast.arm._asdict(),
                "other": contrast.other._asdict(),
            }
            for text, contrast in claims
        ],
        "arms": [],
        "splits": {},
        "seeds": [*seeds],
        "analysis": {"metric": "rmse", "alpha": 0.05, "rope": 0.01, **analysis},
    }


BOTH = declared(("A", HELPS), ("B", COORDINATES))


def after_a_run(present: dict[str, Any], first: dict[str, Any] = BOTH) -> History:
    """Compare with a declaration before the first of six results."""
    return history([Declaration(FIRST, 0, 0, first)], present, 6, 0)


def test_nothing_changed() -> None:
    found = after_a_run(BOTH)
    assert found.changes == ()
    assert [*found.contrasts] == [HELPS, COORDINATES]
    assert {*found.contrasts.values()} == {(FIRST, "", False)}
    assert found.reference is not None
    assert found.reference.time == FIRST


def test_a_time_is_shown_in_utc() -> None:
    assert shown_time(FIRST) == "2026-11-01 08:10 UTC"


@pytest.mark.parametrize(
    ("contrast", "words"),
    [
        (REVERSED, ["reversed"]),
        (HELPS._replace(metric="mae"), ["from rmse to mae"]),
        (HELPS._replace(split="random"), ["moved from clusters-10 to random"]),
        (HELPS._replace(part="wr"), ["moved from clusters-10 to clusters-10, wr"]),
        (HELPS._replace(fold=3), ["moved from clusters-10 to clusters-10, fold 3"]),
        (HELPS._replace(arm=LATLON, other=GEOCLIP), ["geoclip-hadamard against none", "latlon against geo"]),
        (REVERSED._replace(metric="mae"), ["reversed", "from rmse to mae"]),
        (HELPS._replace(metric="mae", split="random"), ["from rmse to mae", "from clusters-10 to random"]),
    ],
)
def test_a_changed_claim_is_exploratory(contrast: Contrast, words: list[str]) -> None:
    """The claim has its text; the run after the change has stored it."""
    changed = declared(("A", contrast), ("B", COORDINATES))
    stored = [Declaration(FIRST, 0, 0, BOTH), Declaration(SECOND, 6, 4, changed)]
    found = history(stored, changed, 9, 4)
    status = found.contrasts[contrast]
    assert (status.declared_at, status.exploratory) == (SECOND, True)
    for value in (*words, "6 results and 4 search trials", "2026-11-02 08:10 UTC"):
        assert value in status.changed
    assert found.contrasts[COORDINATES] == (FIRST, "", False)
    withdrawn = found.contrasts[HELPS]
    assert (withdrawn.declared_at, withdrawn.exploratory) == (FIRST, False)
    assert "withdrawn after 6 results" in withdrawn.changed
    (change,) = found.changes  # the claim was changed, not withdrawn and added
    assert "'A' was" in change
    assert status.changed in change


@pytest.mark.parametrize(
    ("contrast", "words"),
    [
        (REVERSED, "reversed"),
        (HELPS._replace(metric="mae"), "from rmse to mae"),
        (HELPS._replace(split="random"), "moved from clusters-10 to random"),
    ],
)
@pytest.mark.parametrize("text", ["", "Another text"])
def test_a_change_is_found_without_the_text(contrast: Contrast, words: str, text: str) -> None:
    found = after_a_run(declared((text, contrast), ("", COORDINATES)))
    assert words in found.contrasts[contrast].changed
    assert len(found.changes) == 1


def test_one_claim_does_not_become_two() -> None:
    mae = HELPS._replace(metric="mae")
    found = after_a_run(declared(("A", REVERSED), ("B", COORDINATES), ("C", mae)))
    assert "reversed" in found.contrasts[REVERSED].changed
    assert "added" in found.contrasts[mae].changed


def test_a_change_that_no_run_has_stored() -> None:
    found = after_a_run(declared(("A", REVERSED), ("B", COORDINATES)))
    status = found.contrasts[REVERSED]
    assert (status.declared_at, status.exploratory) == ("", True)
    assert "reversed after 6 results" in status.changed
    assert "UTC" not in status.changed


def test_an_added_claim() -> None:
    other = HELPS._replace(split="random", metric="r2")
    found = after_a_run(declared(("A", HELPS), ("B", COORDINATES), ("C", other)))
    assert found.contrasts[other].exploratory
    assert "added after 6 results" in found.contrasts[other].changed
    assert not found.contrasts[HELPS].exploratory
    (change,) = found.changes
    assert "'C'" in change


def test_a_withdrawn_claim_stays_in_the_family() -> None:
    less = declared(("A", HELPS))
    stored = [
        Declaration(FIRST, 0, 0, BOTH),
        Declaration(SECOND, 6, 0, less),
        Declaration(THIRD, 8, 0, declared(("A", HELPS), seeds=(0, 1))),
    ]
    found = history(stored, declared(("A", HELPS), seeds=(0, 1)), 8, 0)
    status = found.contrasts[COORDINATES]
    assert (status.declared_at, status.exploratory) == (FIRST, False)
    assert "withdrawn after 6 results (2026-11-02" in status.changed
    claim, seeds = found.changes
    assert "'B'" in claim
    assert all(value in seeds for value in ("design.seed", "[0]", "[0, 1]", "8 results", "2026-11-03"))
    assert found.contrasts[HELPS] == (FIRST, "", False)  # more seeds are said, and change no claim


def designed(seeds: Any = (0, 1), **more: Any) -> dict[str, Any]:
    """Content of a declaration with the folds and the settings of its splits."""
    found = declared(("A", HELPS), ("B", HELPS._replace(split="spatial")))
    splits = {"clusters-10": [0, 1, 2, 3], "spatial": [0, 1]}
    of = {"clusters-10": {"kind": "clusters", "seed": 0}, "spatial": {"kind": "spatial", "seed": 0}}
    settings = {"model": {"width": 32}, "train": {"lr": 0.001, "epochs": 20}}
    return found | {"seeds": seeds, "splits": splits, "split_settings": of, "settings": settings} | more


@pytest.mark.parametrize(
    ("folds", "exploratory", "words"),
    [
        ([0, 1, 2], True, "1 left out"),
        ([0, 1, 2, 4], True, "1 left out, 1 added"),
        ([0, 1, 2, 3, 4, 5], False, "2 added"),
    ],
)
def test_changed_folds_are_said_and_none_may_be_left_out(
    folds: list[int], exploratory: bool, words: str
) -> None:
    found = after_a_run(designed(splits={"clusters-10": folds, "spatial": [0, 1]}), designed())
    status = found.contrasts[HELPS]
    assert status.exploratory == exploratory
    for value in ("folds of clusters-10", words, "6 results"):
        assert value in status.changed
    assert found.contrasts[HELPS._replace(split="spatial")] == (FIRST, "", False)
    assert found.changes == (status.changed,)


def test_another_draw_of_a_split_is_another_test() -> None:
    of = designed()["split_settings"] | {"clusters-10": {"kind": "clusters", "seed": 3}}
    found = after_a_run(designed(split_settings=of), designed())
    status = found.contrasts[HELPS]
    assert status.exploratory
    for value in ("seed of split clusters-10", "from 0 to 3", "6 results"):
        assert value in status.changed
    assert not found.contrasts[HELPS._replace(split="spatial")].exploratory


@pytest.mark.parametrize(
    ("seeds", "exploratory"),
    [((0,), True), ((0, 2), True), ((0, 1, 2), False), ({"start": 2, "max": 8}, False)],
)
def test_seeds_may_be_added_and_none_left_out(seeds: Any, exploratory: bool) -> None:
    found = after_a_run(designed(seeds), designed())
    assert {status.exploratory for status in found.contrasts.values()} == {exploratory}
    (change,) = found.changes
    assert "design.seed" in change


def test_changed_blocks_concern_the_splits_that_they_test() -> None:
    present, first = designed(), designed()
    present["analysis"] = present["analysis"] | {"block_degrees": 4.0}
    first["analysis"] = first["analysis"] | {"block_degrees": 8.0}
    found = after_a_run(present, first)
    spatial = found.contrasts[HELPS._replace(split="spatial")]
    assert spatial.exploratory
    assert "analysis.block_degrees was changed from 8.0 to 4.0" in spatial.changed
    assert found.contrasts[HELPS] == (FIRST, "", False)


def test_changed_settings_of_the_trainings_are_said() -> None:
    settings = {"model": {"width": 64}, "train": {"lr": 0.001, "epochs": 50}}
    found = after_a_run(designed(settings=settings), designed())
    assert not any(status.exploratory for status in found.contrasts.values())
    width, epochs = found.changes
    assert "model.width was changed from 32 to 64 after 6 results" in width
    assert "train.epochs was changed from 20 to 50" in epochs


def test_a_declaration_without_these_settings_is_not_compared_by_them() -> None:
    old = {name: value for name, value in designed().items() if not name.endswith("settings")}
    assert after_a_run(designed(), old).changes == ()


@pytest.mark.parametrize(("name", "value"), [("alpha", 0.1), ("rope", 0.05)])
def test_a_changed_rule_makes_all_exploratory(name: str, value: float) -> None:
    other = declared(("A", HELPS), ("B", COORDINATES), **{name: value})
    found = history([Declaration(FIRST, 0, 0, BOTH), Declaration(SECOND, 2, 0, other)], other, 6, 0)
    for status in found.contrasts.values():
        assert (status.declared_at, status.exploratory) == (FIRST, True)
        assert all(word in status.changed for word in (f"analysis.{name}", str(value), "2 results"))
    (change,) = found.changes
    assert f"analysis.{name}" in change
    assert not any(one.exploratory for one in after_a_run(BOTH).contrasts.values())


def test_a_changed_metric_of_the_settings_is_said() -> None:
    """Claims name their own metric, so this changes none of them."""
    found = after_a_run(declared(("A", HELPS), ("B", COORDINATES), metric="mae"))
    assert not any(status.exploratory for status in found.contrasts.values())
    (change,) = found.changes
    assert all(word in change for word in ("analysis.metric", "rmse", "mae"))


def test_what_changed_before_the_first_result_is_free() -> None:
    less = declared(("A", HELPS), alpha=0.1)
    stored = [Declaration(FIRST, 0, 0, less), Declaration(SECOND, 0, 0, BOTH)]
    found = history(stored, BOTH, 6, 0)
    assert found.changes == ()
    assert {*found.contrasts.values()} == {(SECOND, "", False)}
    now = history(stored, less, 0, 0)  # no result exists at all
    assert (now.changes, {*now.contrasts.values()}) == ((), {("", "", False)})


def test_search_trials_are_results() -> None:
    stored = [Declaration(FIRST, 0, 0, declared(("A", HELPS))), Declaration(SECOND, 0, 4, BOTH)]
    found = history(stored, BOTH, 6, 4)
    assert "added after 4 search trials" in found.contrasts[COORDINATES].changed
    assert found.contrasts[COORDINATES].exploratory


def test_deleted_results_make_no_new_beginning() -> None:
    reversed_ = declared(("A", REVERSED))
    stored = [Declaration(FIRST, 0, 0, declared(("A", HELPS))), Declaration(SECOND, 0, 0, reversed_)]
    assert not history(stored, reversed_, 6, 0).changes
    seen = Declaration(THIRD, 6, 0, BOTH)
    found = history([stored[0], seen, stored[1]], reversed_, 6, 0)
    assert found.contrasts[REVERSED].exploratory
    assert found.reference == stored[0]


def test_a_store_without_declarations() -> None:
    found = history([], BOTH, 6, 0)
    assert found.reference is None
    assert {*found.contrasts.values()} == {("", NOT_STORED, False)}
    assert {*history([], BOTH, 0, 0).contrasts.values()} == {("", "", False)}


def test_an_old_store_that_was_continued() -> None:
    """Claims of its first declaration may have been declared before; those that changed later were not."""
    stored = [Declaration(FIRST, 4, 0, declared(("A", HELPS))), Declaration(SECOND, 6, 0, BOTH)]
    found = history(stored, BOTH, 9, 0)
    old, new = found.contrasts[HELPS], found.contrasts[COORDINATES]
    assert (old.exploratory, new.exploratory) == (False, True)
    assert "after 4 results" in old.changed
    assert "after 6 results" in new.changed


DIFFERENCES = {
    GEOCLIP: [-0.5, -0.4, -0.6, -0.45, -0.55, -0.5, -0.4, -0.6, -0.5, -0.5],
    LATLON: [-0.3, 0.1, -0.4, 0.0, -0.2, -0.3, 0.1, -0.4, -0.2, -0.1],
    NONE: [0.0] * 10,
}


def rows() -> pd.DataFrame:
    """Ten regions, each a unit: GeoCLIP is about 0.5 below 'none', lat/lon by chance."""
    return pd.DataFrame(
        {
            "key": f"{arm.variant}-{fold}",
            "variant": arm.variant,
            "fusion": arm.fusion,
            "split": "clusters-10",
            "kind": "clusters",
            "unit": fold,
            "regime": "OoR",
            "fold": fold,
            "folds": 10,
            "seed": 0,
            "state": "done",
            "marked": "",
            "unfair": "",
            "tuned": "",
            **{f"{part}_{m}": 7 + fold + d for part in ("test", "wr") for m in ("rmse", "r2", "mae")},
        }
        for arm, differences in DIFFERENCES.items()
        for fold, d in enumerate(differences)
    )


def claim(text: str, contrast: Contrast) -> Claim:
    sides = {"better": contrast.arm, "than": contrast.other}
    arms = {name: {"variant": arm.variant, "fusion": arm.fusion} for name, arm in sides.items()}
    on = {"split": contrast.split, "part": contrast.part, "fold": contrast.fold}
    return Claim.model_validate({"claim": text, **arms, "on": on, "metric": contrast.metric})


def p_of(arm: Arm) -> float:
    """p of the corrected t-test over ten regions."""
    values = pd.Series(DIFFERENCES[arm])
    se = math.sqrt((1 / 10 + 1 / 9) * values.var(ddof=1))
    return float(2 * stats.t.sf(abs(values.mean()) / se, 9))


def judged(*claims: tuple[str, Contrast], first: dict[str, Any] = BOTH) -> pd.DataFrame:
    """Verdicts on claims whose store has `first`, declared before six results."""
    statuses = after_a_run(declared(*claims), first).contrasts
    found = [claim(*one) for one in claims]
    return inference.claims(rows(), Analysis(), found, statuses=statuses).set_index("claim")


def test_claims_that_did_not_change_are_tested_together() -> None:
    found = judged(("A", HELPS), ("B", COORDINATES))
    assert found["declared"].all()
    assert found["verdict"].to_dict() == {"A": "supported", "B": "undecided"}
    assert found["declared_at"].tolist() == [FIRST, FIRST]
    assert found["changed"].tolist() == ["", ""]
    assert found.loc["A", "p_adjusted"] == pytest.approx(2 * p_of(GEOCLIP))
    pd.testing.assert_frame_equal(
        found.drop(columns="declared_at"),
        inference.claims(rows(), Analysis(), [claim("A", HELPS), claim("B", COORDINATES)])
        .set_index("claim")
        .drop(columns="declared_at"),
    )


def test_a_reversed_claim_has_no_verdict() -> None:
    found = judged(("A", REVERSED), ("B", COORDINATES))
    assert found["verdict"].to_dict() == {"A": "exploratory", "B": "undecided"}
    assert found["declared"].to_dict() == {"A": False, "B": True}
    assert "reversed after 6 results" in found.loc["A", "changed"]
    assert found.loc["A", "p"] == pytest.approx(p_of(GEOCLIP))
    assert math.isnan(found.loc["A", "p_adjusted"])


def test_the_declared_direction_keeps_its_verdict() -> None:
    statuses = after_a_run(declared(("A", REVERSED))).contrasts
    frame = inference.contrasts(rows(), Analysis(), [claim("A", REVERSED)], statuses=statuses)
    frame = frame[frame["part"] == "test"].set_index(["arm", "other"])
    assert frame["declared"].to_dict() == {
        ("lat/lon", "none"): True,
        ("GeoCLIP · Hadamard", "none"): True,
        ("none", "GeoCLIP · Hadamard"): False,
    }
    line = frame.loc[("GeoCLIP · Hadamard", "none")]
    assert (line["verdict"], "withdrawn" in line["changed"]) == ("better", True)
    assert line["p_adjusted"] == pytest.approx(2 * p_of(GEOCLIP))  # its family has still two members


def test_an_added_claim_does_not_join_the_family() -> None:
    wr = HELPS._replace(part="wr")
    found = judged(("A", HELPS), ("B", COORDINATES), ("C", wr))
    assert found["verdict"].to_dict() == {"A": "supported", "B": "undecided", "C": "exploratory"}
    assert found.loc["A", "p_adjusted"] == pytest.approx(2 * p_of(GEOCLIP))


def test_a_withdrawn_claim_without_cells_still_counts() -> None:
    """Removing the arm, the split or the fold of a claim after results does not make the family smaller."""
    gone = (HELPS._replace(split="random"), HELPS._replace(fold=12), HELPS._replace(arm=Arm("sincos", None)))
    first = declared(("A", HELPS), *((f"gone {i}", one) for i, one in enumerate(gone)))
    found = judged(("A", HELPS), first=first)
    assert found.loc["A", "p_adjusted"] == pytest.approx(4 * p_of(GEOCLIP))


def test_a_changed_rope_leaves_no_verdict() -> None:
    analysis = Analysis(rope=0.2)
    claims = [claim("A", HELPS), claim("B", COORDINATES)]
    statuses = after_a_run(declared(("A", HELPS), ("B", COORDINATES), rope=0.2)).contrasts
    found = inference.claims(rows(), analysis, claims, statuses=statuses)
    assert found["verdict"].tolist() == ["exploratory", "exploratory"]
    assert found["p_adjusted"].isna().all()
    assert not found["declared"].any()


def test_an_old_store_keeps_its_verdicts() -> None:
    statuses = history([], declared(("A", HELPS)), 6, 0).contrasts
    found = inference.claims(rows(), Analysis(), [claim("A", HELPS)], statuses=statuses)
    assert found["verdict"].tolist() == ["supported"]
    assert found["changed"].tolist() == [NOT_STORED]


def test_a_claim_without_cells_keeps_its_status() -> None:
    missing = rows()
    missing.loc[missing["variant"] == "geoclip", "state"] = "missing"
    missing.loc[missing["variant"] == "geoclip", ["test_rmse", "wr_rmse"]] = math.nan
    statuses = after_a_run(declared(("A", REVERSED))).contrasts
    (line,) = inference.claims(missing, Analysis(), [claim("A", REVERSED)], statuses=statuses).to_dict(
        "records"
    )
    assert (line["verdict"], line["declared"]) == ("no cells", False)
    assert "reversed" in line["changed"]
