"""One row per grid cell: a number only where the cell is done."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pm25 import splits
from pm25.neighbours import NeighbourSettings
from pm25.panel import Panel
from sweeps.analysis import results
from sweeps.spec.design import Arm
from sweeps.spec.search_space import Search
from sweeps.spec.study import Study
from sweeps.store.records import Record
from sweeps.store.search_trials import ArmTrials
from tests import worlds

COLUMNS = [
    *("key", "variant", "fusion", "split", "regime", "fold", "seed", "state"),
    *("n_train", "n_val", "n_test", "n_wr", "epochs", "best_epoch"),
    *("test_rmse", "test_r2", "test_mae", "test_mbe", "wr_rmse", "wr_r2", "wr_mae", "wr_mbe"),
    *("val_rmse", "val_r2", "val_mae", "val_mbe"),
    *("seconds", "error", "marked", "unfair", "tuned", "folds", "kind", "unit"),
]
FURTHER = [  # of the records below, sorted
    *("encoder_trained_on_target", "nearest_km_median", "nearest_km_min", "overlapping_test_windows"),
    *("shared_sites", "test_mape", "test_n_tail", "test_sites", "train_sites"),
]

TOY = Study.model_validate(
    {
        "study": "toy",
        "title": "Toy",
        "data": {"synthetic": {"sites": 12, "days": 30}},
        "design": {
            "variant": ["none", "geoclip"],
            "split": [{"kind": "random", "fold": 0}, {"kind": "checkerboard", "degrees": 16, "fold": [0]}],
            "seed": [0],
        },
        "model": {"width": 4},
    }
)
CELLS = {f"k{i}": cell for i, cell in enumerate(TOY.cells())}  # none, geoclip on random; then on the board


def done(key: str, **changes: Any) -> Record:
    cell = CELLS[key]
    board = cell.split.kind == "checkerboard"
    parts = ["val", "test", "wr"] if board else ["val", "test"]
    fields = {
        "encoder": "weights" if cell.encoder else None,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "metrics": {
            f"{part}_{name}": value + parts.index(part)
            for part in parts
            for name, value in (("rmse", 3.0), ("r2", 0.5), ("mae", 2.0), ("mbe", -1.0))
        }
        | {"test_mape": 40.0, "test_n_tail": 0.0},
        "counts": {
            "n_train": 70,
            "n_val": 10,
            "n_test": 20,
            **({"n_wr": 5} if board else {}),
            "epochs": 4,
            "best_epoch": 3,
        },
        "audit": {
            "train_sites": 9,
            "test_sites": 3,
            "shared_sites": 0,
            "overlapping_test_windows": 0,
            "nearest_km_min": 12.5,
            "nearest_km_median": 80.0,
            "encoder_trained_on_target": False,
            "failed": [],
        },
        "seconds": 1.25,
    }
    return worlds.record(key, cell=cell.resolved(), **fields) | changes


def failed(key: str, **changes: Any) -> Record:
    error = worlds.error("Diverged", "loss is nan", "Traceback")
    return worlds.record(key, "failed", cell=CELLS[key].resolved(), error=error) | changes


def test_a_row_for_every_cell_in_the_grid_s_order() -> None:
    frame = results.rows(CELLS, {"k3": done("k3"), "k1": failed("k1"), "k0": done("k0")})
    assert list(frame.columns) == COLUMNS + FURTHER
    assert frame["key"].tolist() == ["k0", "k1", "k2", "k3"]
    assert frame["state"].tolist() == ["done", "failed", "missing", "done"]
    assert frame["variant"].tolist() == ["none", "geoclip"] * 2
    assert frame["fusion"].fillna("-").tolist() == ["-", "hadamard"] * 2
    assert frame["split"].tolist() == ["random"] * 2 + ["checkerboard-16"] * 2
    assert frame["regime"].tolist() == ["WR", "WR", "OoR", "OoR"]
    assert frame["folds"].tolist() == [factor.split.folds for factor in TOY.design.split for _ in range(2)]
    assert frame["kind"].tolist() == ["random"] * 2 + ["checkerboard"] * 2
    assert frame["fold"].tolist() == [0] * 4
    assert frame["seed"].tolist() == [0] * 4


def test_the_unit_of_a_fold_is_what_its_test_set_shares() -> None:
    board = {"kind": "checkerboards", "degrees": 16, "origins": 3, "holdout": "rotate"}
    design = {
        "variant": ["none"],
        "split": [{"kind": "checkerboard", "degrees": 16}, board, {"kind": "clusters", "folds": 3}],
        "seed": [0],
    }
    of = Study.model_validate(
        {"study": "toy", "data": {"synthetic": {"sites": 12, "days": 30}}, "design": design}
    )
    frame = results.rows({str(i): cell for i, cell in enumerate(of.cells())}, {})
    units = {kind: part["unit"].tolist() for kind, part in frame.groupby("kind")}
    assert units == {
        "checkerboard": [0, 0],
        "checkerboards": [0] * 10 + [1] * 10 + [2] * 10,
        "clusters": [0, 1, 2],
    }
    assert frame.groupby("kind")["folds"].unique().map(list).to_dict() == {
        "checkerboard": [2],
        "checkerboards": [2],
        "clusters": [3],
    }


def test_a_done_cell_has_its_numbers() -> None:
    random, _, _, board = results.rows(CELLS, {k: done(k) for k in CELLS}).to_dict("records")
    assert (random["test_rmse"], random["test_r2"], random["test_mae"], random["test_mbe"]) == (4, 1.5, 3, 0)
    assert (board["test_rmse"], board["wr_rmse"], board["wr_mbe"], board["val_rmse"]) == (4, 5, 1, 3)
    assert math.isnan(random["wr_rmse"])  # only a checkerboard has a second test set
    assert pd.isna(random["n_wr"])
    assert (board["n_train"], board["n_wr"], board["epochs"], board["best_epoch"]) == (70, 5, 4, 3)
    assert (board["nearest_km_min"], board["seconds"]) == (12.5, 1.25)
    assert not isinstance(board["error"], str)


@pytest.mark.parametrize("state", ["failed", "missing"])
def test_what_is_not_done_has_no_number(state: str) -> None:
    # Numbers in a failed record, from whatever version wrote it, stay out too.
    numbers = {name: done("k3")[name] for name in ("metrics", "counts", "audit", "seconds")}
    records = {"k0": done("k0"), "k3": failed("k3", **numbers)} if state == "failed" else {"k0": done("k0")}
    row = results.rows(CELLS, records).iloc[3]
    assert row["state"] == state
    assert row[[*COLUMNS[8:-7], *FURTHER]].isna().all()
    assert row[["marked", "unfair", "tuned"]].tolist() == [""] * 3
    assert row["error"] == "Diverged: loss is nan" if state == "failed" else pd.isna(row["error"])


def test_an_undefined_metric_stays_missing() -> None:
    record = done("k0")
    record["metrics"]["test_r2"] = None
    row = results.rows(CELLS, {"k0": record}).iloc[0]
    assert math.isnan(row["test_r2"])
    assert row["test_rmse"] == 4


def test_a_cell_is_marked_with_what_its_audit_failed() -> None:
    board = done("k3")
    board["audit"] |= {"shared_sites": 2, "failed": ["shared_sites", "fitted_scalers_test"]}
    older = done("k0")
    del older["audit"]["failed"]  # as records were before there were promises
    frame = results.rows(CELLS, {"k0": older, "k1": done("k1"), "k2": failed("k2"), "k3": board})
    assert frame["marked"].tolist() == ["", "", "", "shared_sites; fitted_scalers_test"]
    assert frame.loc[3, "shared_sites"] == 2
    assert "failed" not in frame.columns


def test_a_cell_is_compared_with_the_none_of_its_own_place() -> None:
    other, tuned = {"python": "3.11.7", "torch": "2.12.0"}, {"train.learning_rate": 0.001}
    records = {
        "k0": done("k0", threads=1),
        "k1": done("k1", threads=2, versions=other),
        "k2": done("k2", threads=2, tuned=tuned),
        "k3": done("k3", threads=2, tuned={"train.learning_rate": 0.003}),
    }
    records["k3"]["cell"]["train"]["learning_rate"] = 0.003
    frame = results.rows(CELLS, records)
    assert frame["unfair"].tolist() == ["", "threads 2 against 1; torch 2.12.0 against 2.13.0", "", ""]
    assert frame["tuned"].tolist() == ["", "", "", "train.learning_rate 0.003 against 0.001"]
    for lost in ({}, {"k0": failed("k0")}):
        alone = results.rows(CELLS, {"k1": records["k1"], **lost})
        assert set(alone["unfair"]) == {""}


def test_a_matched_head_is_no_baseline() -> None:
    matched = CELLS["k1"].model_copy(update={"variant": "none", "head": "matched"})
    cells = {"k0": CELLS["k0"], "k1": matched}
    records = {"k0": done("k0"), "k1": done("k1", threads=2, cell=matched.resolved(), encoder=None)}
    assert results.rows(cells, records)["unfair"].tolist() == ["", "threads 2 against not set"]


def test_further_metrics_are_columns_where_a_cell_has_them() -> None:
    more, none = done("k1"), done("k0")
    more["metrics"] |= {"test_tail_rmse": 12.5, "test_spatial_r2": None}
    frame = results.rows(CELLS, {"k0": none, "k1": more})
    assert [*frame.columns] == COLUMNS + sorted([*FURTHER, "test_spatial_r2", "test_tail_rmse"])
    assert frame["test_tail_rmse"].fillna(-1).tolist() == [-1, 12.5, -1, -1]
    assert frame["test_spatial_r2"].isna().all()
    assert frame["test_mape"].fillna(-1).tolist() == [40, 40, -1, -1]


@pytest.mark.parametrize("some", [{}, {"k0": done("k0")}, {k: done(k) for k in CELLS}])
def test_types_do_not_depend_on_what_is_done(some: dict[str, Record]) -> None:
    frame = results.rows(CELLS, some)
    kinds = frame.dtypes.astype("str")
    audit = ["train_sites", "test_sites", "shared_sites", "overlapping_test_windows"] if some else []
    assert set(kinds[results.COUNTS + audit]) == {"Int64"}
    assert set(kinds[results.SCORE_COLUMNS]) == {"float64"}
    assert {kinds[name] for name in ("fold", "seed", "folds", "unit")} == {"int64"}
    assert frame.shape == (4, len(COLUMNS) + (len(FURTHER) if some else 0))
    if some:
        further = kinds[["test_mape", "test_n_tail", "nearest_km_min", "nearest_km_median"]]
        assert set(further) == {"float64"}
        assert kinds["encoder_trained_on_target"] == "boolean"


# Facts


@pytest.fixture(scope="module")
def panel() -> Panel:
    return worlds.synthetic_panel(days=30, name="toy.parquet")


def test_facts_tell_where_the_numbers_come_from(panel: Panel) -> None:
    facts = results.facts(TOY, panel, {k: done(k) for k in CELLS})
    assert (facts["study"], facts["title"], facts["protocol"]) == ("toy", "Toy", "strict")
    assert (facts["table"], facts["data_fingerprint"]) == ("toy.parquet", panel.fingerprint)
    assert (facts["sites"], facts["days"], facts["observed"]) == (12, 30, panel.observed)
    assert (facts["first_day"], facts["last_day"]) == ("2021-01-01", "2021-01-30")
    assert facts["encoders"] == {"geoclip": "weights"}
    assert facts["versions"] == {"python": "3.11.7", "torch": "2.13.0"}
    assert facts["settings"]["model"]["width"] == 4
    assert facts["settings"]["split"]["checkerboard-16"]["degrees"] == 16
    assert facts["settings"]["channels"] == ", ".join(panel.channels)


def test_facts_name_the_commits_of_the_cells(panel: Panel) -> None:
    assert results.facts(TOY, panel, {k: done(k) for k in CELLS})["commits"] == {}
    records = {
        "k0": done("k0") | {"commit": "b" * 40, "dirty": True},
        "k1": done("k1") | {"commit": "a" * 40, "dirty": False},
        "k2": done("k2") | {"commit": "a" * 40, "dirty": False},
        "k3": done("k3"),
    }
    found = results.facts(TOY, panel, records)["commits"]
    assert found == {"a" * 40: "2 cells", "b" * 40 + "+": "1 cells", "not recorded": "1 cells"}


def test_facts_name_the_neighbour_feature_and_the_protocol(panel: Panel) -> None:
    assert "neighbours" not in results.facts(TOY, panel, {})["settings"]
    changed = TOY.model_copy(update={"neighbours": NeighbourSettings(k=4), "protocol": "paper"})
    facts = results.facts(changed, panel, {})
    assert facts["settings"]["neighbours"]["k"] == 4
    assert facts["protocol"] == "paper"


def test_facts_do_not_depend_on_the_order_or_on_failures(panel: Panel) -> None:
    newer = {"python": "3.11.7", "torch": "2.14.0"}
    records = {"k0": done("k0", versions=newer), "k1": done("k1"), "k2": failed("k2"), "k3": done("k3")}
    facts = results.facts(TOY, panel, records)
    assert repr(results.facts(TOY, panel, dict(reversed(records.items())))) == repr(facts)
    assert facts["versions"] == {"python": "3.11.7", "torch": "2.13.0, 2.14.0"}
    del records["k2"]
    assert results.facts(TOY, panel, records) == facts


def test_facts_hold_what_was_tuned_by_arm(panel: Panel) -> None:
    records = {key: done(key) for key in CELLS}
    assert results.facts(TOY, panel, records)["tuned"] == {}
    for key, rate in (("k1", 0.01), ("k3", 0.003)):
        records[key]["tuned"] = {"train.learning_rate": rate, "model.projection": None}
    assert results.facts(TOY, panel, records)["tuned"] == {
        "GeoCLIP · Hadamard": {"model.projection": "null", "train.learning_rate": "0.003, 0.01"}
    }


def test_facts_of_an_empty_store(panel: Panel) -> None:
    facts = results.facts(TOY, panel, {})
    assert (facts["encoders"], facts["versions"]) == ({}, {})


# Splits and searches, for the figures


def test_cuts_say_what_each_site_is_for(panel: Panel) -> None:
    (cut,) = results.cuts(TOY, panel)
    assert cut.split.label == "checkerboard-16"
    assert [*cut.roles] == [0]
    roles = cut.roles[0]
    assert [*roles.columns] == ["site_id", "lat", "lon", "role"]
    parts = splits.cut(cut.split, 0, panel, TOY.window)
    for role, part in (
        ("train", parts.train),
        ("validation", parts.validation),
        ("wr", parts.wr),
        ("test", parts.test),
    ):
        sites = panel.site_id[np.unique(part // len(panel.dates))]
        assert roles.loc[roles["role"] == role, "site_id"].tolist() == sites.tolist()
    held_out = splits.checkerboard(roles["lat"].to_numpy(), roles["lon"].to_numpy(), 16) == 0
    assert (held_out == (roles["role"] == "test")).all()


def test_cuts_of_a_rotating_holdout_show_two_test_sets(panel: Panel) -> None:
    split = {"kind": "checkerboards", "degrees": 30, "origins": 2, "holdout": "rotate", "validation": 0.3}
    design = {"variant": "none", "seed": 0, "split": {**split, "fold": [1, 2, 6, 13]}}
    content = TOY.model_dump(mode="json", exclude_unset=True, by_alias=True) | {"design": design}
    (cut,) = results.cuts(Study.model_validate(content), panel)
    assert [*cut.roles] == [1, 6]


def test_search_trials_are_a_line_per_objective_and_their_budget_one_per_arm() -> None:
    assert len(results.search_trials({})) == 0
    search = Search.model_validate(
        {
            "trials": 3,
            "space": {"train.learning_rate": {"float": [0.001, 0.1]}},
            "split": [
                {"kind": "random", "fold": 0, "inner": {"kind": "checkerboard", "degrees": 8}},
            ],
            "seed": 100,
            "objective": ["wr", "oor"],
        }
    )
    scores = {"wr": {"rmse": 2.0}, "oor": {"rmse": 3.0}}
    ended = [{"number": 0, "state": "done", "scores": scores}, {"number": 1, "state": "failed"}]
    arm = Arm("geoclip", "hadamard")
    searches = {arm: ArmTrials(arm, search, search.space, [], ended)}
    frame = results.search_trials(searches)
    assert set(frame["arm"]) == {"GeoCLIP · Hadamard"}
    assert frame["number"].tolist() == [0, 0, 1, 1]
    assert frame["objective"].tolist() == ["WR RMSE (µg/m³)", "OoR RMSE (µg/m³)"] * 2
    assert frame["value"].fillna(-1).tolist() == [2.0, 3.0, -1, -1]
    assert frame["smaller_is_better"].all()
    ended[0] |= {"epochs": 3, "seconds": 5400.0, "params": {}}
    ended[1] |= {"epochs": 2, "seconds": None}
    (line,) = results.searches(searches).to_numpy().tolist()
    assert line == ["GeoCLIP · Hadamard", "2 of 3", 0, 1, 5, "1:30:00", "RMSE WR 2.00, OoR 3.00 (trial 0)"]


def test_the_setting_that_decides_is_the_important_one() -> None:
    search = Search.model_validate(
        {
            "trials": 12,
            "space": {"train.learning_rate": {"float": [0.001, 0.1]}, "model.width": {"int": [32, 64]}},
            "split": [{"kind": "random", "fold": 0}],
            "seed": 100,
        }
    )
    arm = Arm("none", None)

    def searched(trials: int, step: float = 0.008) -> pd.DataFrame:
        ended = [
            {"number": i, "state": "done", "scores": {"wr": {"rmse": 3.0 + i * step}}, "reported": []}
            | {"params": {"train.learning_rate": 0.001 + 0.008 * i, "model.width": 32 + (7 * i) % 32}}
            | dict.fromkeys(("started", "ended"), "2026-01-02T03:04:05+00:00")
            for i in range(trials)
        ]
        return results.search_parameters({arm: ArmTrials(arm, search, search.space, [], ended)})

    frame = searched(12)
    assert frame["arm"].tolist() == ["none", "none"]
    assert frame["parameter"].tolist() == ["train.learning_rate", "model.width"]
    assert frame["importance"].iloc[0] > 0.8
    assert frame["importance"].sum() == pytest.approx(1)
    pd.testing.assert_frame_equal(searched(12), frame)
    assert searched(7).empty  # too few to tell
    assert searched(12, step=0.0).empty  # nothing to explain
    assert results.search_parameters({}).empty
