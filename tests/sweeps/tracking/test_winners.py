"""The winner of an arm is chosen by validation, keeps its weights, and serves what was stored of it."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
import yaml

import pm25
from pm25 import trial
from pm25.intervals import OUTPUTS, Calibration
from pm25.metrics import SCORES
from pm25.predictor import _load_pyfunc
from sweeps.analysis import artifacts, coverage, labels
from sweeps.engine import worker
from sweeps.engine.worker import WEIGHTS
from sweeps.spec import study_file as study
from sweeps.spec.design import Arm
from sweeps.state import StudyState
from sweeps.store.records import Record, Store
from sweeps.tracking import model_card, winners
from sweeps.tracking.winners import WeightRetention, Winner
from tests.errors import refuses

# The slow tests share a study.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("winners")]

DESIGN: dict[str, Any] = {
    "variant": ["none", "latlon", "geoclip", "table", "random"],
    "head": ["plain", "matched"],
    "split": [{"kind": "checkerboard", "degrees": 30, "fold": 0}, {"kind": "random", "folds": 2}],
    "seed": [0, 1],
}
STUDY: dict[str, Any] = {
    "study": "tiny",
    "question": "Does it help?",
    "data": {"synthetic": {"sites": 24, "days": 60}},
    "design": DESIGN,
    "encoders": {"table": {"path": "vectors.parquet"}, "random": {"dim": 3}},
    "neighbours": {"k": 3, "distance": True},
    "analysis": {"coverage": 0.5, "block_degrees": 6},
    "model": {"width": 4, "depth": 1, "attention_units": 4},
    "train": {"max_epochs": 2},
}
ARMS = ["none", "none-matched-hadamard", "latlon", "geoclip-hadamard", "table-hadamard", "random-hadamard"]
SERVED = ["none", "latlon", "geoclip-hadamard", "table-hadamard"]


def written(folder: Path, **changes: Any) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    return str(path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> StudyState:
    """A whole study, trained in this process and kept in order as a run keeps it."""
    folder = tmp_path_factory.mktemp("winners")
    reference = written(folder)
    panel = study.load(reference, ["design.variant=none"]).panel()
    months = np.tile(np.arange(1, 13), len(panel.site_id))
    vectors = pd.DataFrame({"site_id": np.repeat(panel.site_id, 12), "month": months})
    for name in ("a", "b"):
        vectors[name] = np.random.default_rng(0).normal(size=len(vectors))
    vectors.to_parquet(folder / "vectors.parquet", index=False)
    state = StudyState(reference)
    retention = WeightRetention(state.study, state.store)
    for key, cell in state.cells.items():
        keeps = state.study.keeps_weights(cell)
        embedded = state.embedded(cell)
        record = worker.train_and_record(
            cell, key, state.panel, state.store, embedded=embedded, keep_weights=keeps
        )
        assert record["state"] == "done", record.get("error")
        retention.ended(record)
    retention.tidy(state.cells, state.records())
    return state


@pytest.fixture(scope="module")
def chosen(ran: StudyState) -> list[Winner]:
    return served(ran, ran.records())


def served(ran: StudyState, records: dict[str, Record]) -> list[Winner]:
    degrees = ran.study.analysis.block_degrees
    sums = artifacts.predictions(ran.store, ran.rows(records), degrees=degrees)
    return winners.winners(ran, records, sums)


def by_name(found: list[Winner], name: str) -> Winner:
    return next(winner for winner in found if winner.name == name)


# Who wins


def judged(records: dict[str, Record], state: StudyState, arm: Arm) -> dict[str, Record]:
    """Records of the arm's cells on the random split, by key, ordered by seed and fold."""
    own = {k: c for k, c in state.cells.items() if Arm.of(c) == arm and c.split.label == "random"}
    return {key: records[key] for key in sorted(own, key=lambda k: (own[k].seed, own[k].fold))}


def test_the_winner_is_the_seed_with_the_lowest_pooled_validation_error(ran: StudyState) -> None:
    records = ran.records()
    found = winners.best(ran.study, ran.cells, records)
    assert [arm.label for arm in found] == ARMS
    for arm, key in found.items():
        keys = [*judged(records, ran, arm)]
        assert len(keys) == 4
        pooled = []
        for seed in (keys[:2], keys[2:]):
            of_seed = [(records[k]["counts"]["n_val"], records[k]["metrics"]["val_rmse"]) for k in seed]
            pooled.append(sum(n * rmse**2 for n, rmse in of_seed) / sum(n for n, _ in of_seed))
        assert key == (keys[2] if pooled[1] < pooled[0] else keys[0])


def test_an_easy_fold_decides_nothing(ran: StudyState) -> None:
    """Seed 1 has the lowest error of all on an easy fold, and seed 0 the lower pooled error."""
    arm = Arm("none", None)
    records = {key: dict(record) for key, record in ran.records().items()}
    keys = [*judged(records, ran, arm)]
    for key, rmse, n in zip(keys, (9.0, 2.0, 9.2, 1.0), (300, 100, 300, 100), strict=True):
        records[key] |= {"metrics": {"val_rmse": rmse}, "counts": {"n_val": n}}
    # Pooled: sqrt((300 * 81 + 100 * 4) / 400) = 7.86, and sqrt((300 * 84.64 + 100 * 1) / 400) = 7.98.
    assert winners.best(ran.study, ran.cells, records)[arm] == keys[0]
    records[keys[3]] |= {"counts": {"n_val": 400}}
    # Now seed 1 has sqrt((300 * 84.64 + 400 * 1) / 700) = 6.07; its cell on the first fold is the model.
    assert winners.best(ran.study, ran.cells, records)[arm] == keys[2]


def test_a_test_score_is_not_looked_at(ran: StudyState) -> None:
    records = ran.records()
    blind = {
        key: {**record, "metrics": {"val_rmse": record["metrics"]["val_rmse"]}}
        for key, record in records.items()
    }
    assert winners.best(ran.study, ran.cells, blind) == winners.best(ran.study, ran.cells, records)


def test_an_ensemble_is_the_winning_seed_on_the_folds_with_weights(ran: StudyState) -> None:
    arm, records = Arm("none", None), ran.records()
    keys = [*judged(records, ran, arm)]
    best = winners.best(ran.study, ran.cells, records)[arm]
    own, others = (keys[:2], keys[2:]) if best == keys[0] else (keys[2:], keys[:2])
    found = winners.ensemble(ran.study, ran.cells, records, keys, arm)
    assert found == own
    assert winners.ensemble(ran.study, ran.cells, records, [own[1], *others], arm) == [own[1]]
    assert winners.ensemble(ran.study, ran.cells, records, others, arm) == others
    assert winners.ensemble(ran.study, ran.cells, records, [], arm) == []


def test_folds_keep_the_weights_of_the_winning_seed(ran: StudyState, tmp_path: Path) -> None:
    """While an arm has missing cells, the folds of all its seeds keep theirs."""
    records, arm = ran.records(), Arm("none", None)
    keys = [*judged(records, ran, arm)]
    other = StudyState(written(tmp_path, keep_weights="folds", design={**DESIGN, "variant": ["none"]}))
    cells = {key: ran.cells[key] for key in keys}
    for key in keys:
        other.store.write_file(key, "result.json", ran.store.read_file(key, "result.json") or b"")
        other.store.write_file(key, WEIGHTS, b"weights")
        assert other.study.keeps_weights(cells[key])
    retention = WeightRetention(other.study, other.store)
    retention.tidy(cells, {key: records[key] for key in keys[:3]})
    for key in keys[:3]:
        retention.ended(records[key])
    assert other.store.holding(WEIGHTS) == {*keys}
    retention.tidy(cells, {key: records[key] for key in keys})
    best = winners.best(ran.study, ran.cells, records)[arm]
    assert other.store.holding(WEIGHTS) == {*(keys[:2] if best == keys[0] else keys[2:])}


def test_ties_missing_folds_and_what_is_no_number(ran: StudyState) -> None:
    arm = Arm("none", None)
    records = {key: dict(record) for key, record in ran.records().items()}
    keys = [*judged(records, ran, arm)]
    for key in keys:
        records[key] |= {"metrics": {"val_rmse": 2.0}, "counts": {"n_val": 10}}
    assert winners.best(ran.study, ran.cells, records)[arm] == keys[0], "a tie is decided by seed"
    records[keys[1]]["metrics"] = {"val_rmse": None}
    assert winners.best(ran.study, ran.cells, records)[arm] == keys[2]
    records[keys[2]]["state"] = "failed"
    assert winners.best(ran.study, ran.cells, records)[arm] == keys[0], "seed 1 lacks a fold"
    records[keys[0]]["state"] = "failed"
    assert winners.best(ran.study, ran.cells, records)[arm] == keys[3], "the first fold failed in both"
    only = {keys[0]: ran.records()[keys[0]]}
    assert winners.best(ran.study, ran.cells, only) == {arm: keys[0]}
    assert winners.best(ran.study, ran.cells, {}) == {}


def test_of_cells_with_weights_the_best_is_chosen(ran: StudyState) -> None:
    """A store in which another rule kept the weights has a model for every arm."""
    arm, records = Arm("none", None), ran.records()
    first = winners.best(ran.study, ran.cells, records)[arm]
    held = [key for key in judged(records, ran, arm) if key != first]
    assert winners.best(ran.study, ran.cells, records, held[-1:])[arm] == held[-1]
    assert winners.best(ran.study, ran.cells, records, [first, *held])[arm] == first
    assert winners.best(ran.study, ran.cells, records, [])[arm] == first


def test_without_a_split_within_region_the_first_counts(tmp_path: Path) -> None:
    splits = [{"kind": "checkerboard", "degrees": 30}, {"kind": "clusters"}, {"kind": "spatial"}]
    for last, label in ((3, "spatial"), (2, "checkerboard-30")):
        of = study.load(written(tmp_path, design={**DESIGN, "split": splits[:last]}))
        assert of.winner_split.label == label


# Whose weights are kept


def test_one_file_of_weights_is_left_of_each_arm(ran: StudyState) -> None:
    records = ran.records()
    best = winners.best(ran.study, ran.cells, records)
    assert ran.store.holding(WEIGHTS) == {*best.values()}
    WeightRetention(ran.study, ran.store).tidy(ran.cells, records)
    assert ran.store.holding(WEIGHTS) == {*best.values()}


def toy(ran: StudyState, folder: Path, keep: Any = "winners") -> tuple[WeightRetention, Store, Any]:
    """The study's cells in a store of their own, where each has a file for its weights."""
    store = Store(str(folder), "tiny")
    for key in ran.cells:
        store.write_file(key, WEIGHTS, b"weights")
    of = ran.study.model_copy(update={"keep_weights": keep})
    return WeightRetention(of, store), store, of


@pytest.mark.parametrize("seed", range(5))
def test_in_whatever_order_they_end_and_wherever_it_is_killed(
    ran: StudyState, tmp_path: Path, seed: int
) -> None:
    retention, store, of = toy(ran, tmp_path)
    records = ran.records()
    best = {*winners.best(of, ran.cells, records).values()}
    others = {key for key, cell in ran.cells.items() if not of.keeps_weights(cell)}
    order = random.Random(seed).sample([*records.values()], len(records))

    def first_folds(heard: dict[str, Record]) -> set[str]:
        """The first done fold of each arm and seed."""
        found: dict[tuple[Arm, int], tuple[int, str]] = {}
        for key in heard.keys() - others:
            cell = ran.cells[key]
            place, one = (Arm.of(cell), cell.seed), (cell.fold, key)
            found[place] = min(one, found.get(place, one))
        return {key for _, key in found.values()}

    for record in order[:20]:
        retention.ended(record)
    heard = {record["key"]: record for record in order[:20]}
    left = first_folds(heard)
    assert {*winners.best(of, ran.cells, heard, left).values()} <= left
    assert store.holding(WEIGHTS) == left | others | (records.keys() - heard.keys())
    # Killed: two more were recorded that nobody heard of; then a new run begins.
    heard |= {record["key"]: record for record in order[20:22]}
    retention = WeightRetention(of, store)
    retention.tidy(ran.cells, heard)
    complete = set(map(Arm.of, ran.cells.values())) - {
        Arm.of(ran.cells[key]) for key in ran.cells.keys() - heard.keys() - others
    }
    winning = {key for arm, key in winners.best(of, ran.cells, heard).items() if arm in complete}
    waiting = {key for key in first_folds(heard) if Arm.of(ran.cells[key]) not in complete}
    assert store.holding(WEIGHTS) & heard.keys() == winning | waiting
    assert records.keys() - heard.keys() <= store.holding(WEIGHTS), "a cell without a record lost its weights"
    for record in order[22:]:
        retention.ended(record)
    retention.tidy(ran.cells, records)
    assert store.holding(WEIGHTS) == best


def test_weights_that_another_rule_kept_are_not_deleted(ran: StudyState, tmp_path: Path) -> None:
    retention, store, of = toy(ran, tmp_path)
    records = ran.records()
    best = {*winners.best(of, ran.cells, records).values()}
    kept = {[*judged(records, ran, arm)][-1] for arm in map(Arm.of, ran.cells.values())}
    for key in ran.cells.keys() - kept:
        store.delete_file(key, WEIGHTS)
    retention.tidy(ran.cells, records)
    assert not kept & best
    assert store.holding(WEIGHTS) == kept


def test_cells_of_other_settings_in_the_same_store_are_left_alone(ran: StudyState, tmp_path: Path) -> None:
    retention, store, _ = toy(ran, tmp_path)
    store.write_file("stale", WEIGHTS, b"weights")
    records = ran.records()
    retention.tidy(ran.cells, records)
    assert "stale" in store.holding(WEIGHTS)


@pytest.mark.parametrize("keep", [True, False])
def test_where_all_or_none_are_kept_nothing_is_deleted(ran: StudyState, tmp_path: Path, keep: bool) -> None:
    retention, store, of = toy(ran, tmp_path, keep)
    records = ran.records()
    for record in records.values():
        retention.ended(record)
    retention.tidy(ran.cells, records)
    assert store.holding(WEIGHTS) == ran.cells.keys()
    assert {of.keeps_weights(cell) for cell in ran.cells.values()} == {keep}


def test_a_failed_cell_takes_nothing_from_anybody(ran: StudyState, tmp_path: Path) -> None:
    retention, store, of = toy(ran, tmp_path)
    key = winners.best(of, ran.cells, ran.records())[Arm("none", None)]
    retention.ended(ran.records()[key])
    retention.ended({"key": "failed", "state": "failed"})
    assert key in store.holding(WEIGHTS)


def test_a_winner_without_weights_is_not_served(ran: StudyState, tmp_path: Path) -> None:
    records = ran.records()
    key = winners.best(ran.study, ran.cells, records)[Arm("latlon", None)]
    weights = ran.store.read_file(key, WEIGHTS)
    assert weights is not None
    (winner,) = (w for w in served(ran, records) if w.key == key)
    ran.store.delete_file(key, WEIGHTS)
    try:
        assert [w.name for w in served(ran, records)] == [n for n in SERVED if n != "latlon"]
        with refuses(key, "weights.pt"):
            winner.write(tmp_path)
    finally:
        ran.store.write_file(key, WEIGHTS, weights)


# What a winner is


def test_controls_are_not_served(chosen: list[Winner]) -> None:
    assert [winner.name for winner in chosen] == SERVED
    assert [winner.arm for winner in chosen] == [
        labels.arm(winner.cell.variant, winner.cell.fusion) for winner in chosen
    ]


def stored_predictions(ran: StudyState, winner: Winner) -> tuple[pd.DataFrame, np.ndarray]:
    """The test samples of its cell as a frame that the model takes, and what was stored of them."""
    panel = ran.panel
    found = ran.store.read_table(winner.key, "predictions").to_pandas()
    found = found[found["part"] == "test"]
    site = np.searchsorted(panel.site_id, found["site_id"].to_numpy(str))
    date = found["date"].to_numpy("datetime64[D]")
    flat = site * len(panel.dates) + (date - panel.dates[0]).astype(int)
    channels, window = trial.raw_windows(winner.cell, panel, flat)
    frame = found[["lat", "lon", "site_id"]].astype({"site_id": object})
    frame["month"] = date.astype("datetime64[M]").astype(int) % 12 + 1
    for at, name in enumerate(channels):
        frame[name] = [*window[:, :, at].astype(float).tolist()]
    return frame[[*winner.inputs]].reset_index(drop=True), found["prediction"].to_numpy()


@pytest.mark.parametrize("name", SERVED)
def test_a_winners_folder_serves_the_stored_predictions(
    ran: StudyState, chosen: list[Winner], tmp_path: Path, name: str
) -> None:
    winner = by_name(chosen, name)
    winner.write(tmp_path / "model")
    frame, stored = stored_predictions(ran, winner)
    assert np.array_equal(_load_pyfunc(str(tmp_path / "model")).predict(frame)["pm25_ugm3"], stored)
    assert [*winner.inputs] == [*winner.predictor().columns]
    example = winners.example(ran, winner)
    assert [*example] == [*winner.inputs]
    alone = winner.predictor().predict_frame(example)["pm25_ugm3"][0]
    # Matrix kernels depend on the batch size and on the processor, so one row alone is equal within rounding.
    assert np.abs(stored - alone).min() <= 1e-5 * abs(alone)


def test_the_example_is_a_test_sample_of_the_panel(ran: StudyState, chosen: list[Winner]) -> None:
    winner = by_name(chosen, "none")
    row = winners.example(ran, winner).iloc[0]
    frame, _ = stored_predictions(ran, winner)
    same = frame[(frame["lat"] == row["lat"]) & (frame["lon"] == row["lon"])]
    channels = [name for name, kind in winner.inputs.items() if kind == "array"]
    found = [
        all(np.array_equal(other[name], row[name], equal_nan=True) for name in channels)
        for _, other in same.iterrows()
    ]
    assert sum(found) == 1

    def missing(line: "pd.Series[Any]") -> int:
        own = [name for name in channels if name in ran.panel.channels]
        return int(sum(np.isnan(np.array(line[name], float)).sum() for name in own))

    assert missing(row) == min(missing(other) for _, other in frame.iterrows())


def test_inputs_and_tags(ran: StudyState, chosen: list[Winner]) -> None:
    plain, tabled = by_name(chosen, "none"), by_name(chosen, "table-hadamard")
    channels = dict.fromkeys((*ran.panel.channels, "neighbours_pm25", "neighbours_km"), "array")
    assert plain.inputs == {"lat": "double", "lon": "double", **channels}
    asked = {"lat": "double", "lon": "double", "month": "long", "site_id": "string"}
    assert tabled.inputs == asked | channels
    record = ran.records()[tabled.key]
    assert tabled.tags["encoder"] == record["encoder"]
    assert {"study": "tiny", "arm": "table-hadamard", "split": "random", "fusion": "hadamard"}.items() <= (
        tabled.tags.items()
    )
    assert tabled.tags["val_rmse"] == f"{record['metrics']['val_rmse']:.4f}"
    assert "encoder" not in plain.tags
    assert all(isinstance(value, str) for value in plain.tags.values())


def test_intervals_of_a_winner_are_calibrated_on_its_arm(ran: StudyState, chosen: list[Winner]) -> None:
    """Each split has a radius; the monitors are those that the model was trained on."""
    winner, panel = by_name(chosen, "latlon"), ran.panel
    found = Calibration.from_json(winner.intervals)
    assert (found.level, found.absent) == (0.5, "")
    assert [(one.split, one.regime) for one in found.radii] == [("random", "WR"), ("checkerboard-30", "OoR")]
    assert found.radii[0].reach_km < 1 < 100 < found.radii[1].reach_km
    assert found.lowest_ugm3 == round(float(np.nanmin(panel.target)), 3)
    cut = ran.split_indices()[winner.cell.split.label, winner.cell.fold]
    sites = np.unique(cut.train // len(panel.dates))
    assert found.monitors == tuple(zip(panel.lat[sites].tolist(), panel.lon[sites].tolist(), strict=True))
    records, rows = ran.records(), ran.rows()
    sums = artifacts.predictions(ran.store, rows, degrees=6)
    assert sums is not None
    measured = coverage.calibrate(sums.held_out_errors(winner.arm, "random"), 0.5)
    assert not isinstance(measured, coverage.TooFew)
    assert (found.radii[0].radius, found.radii[0].regions) == (round(measured[0], 6), measured[1])
    assert found.radii[0].radius != Calibration.from_json(by_name(chosen, "none").intervals).radii[0].radius
    for one in found.radii:
        line = f"| {one.reach_km:,.0f} km | {one.radius:.3f} | `{one.split}` ({one.regime}) | {one.regions} |"
        assert line in winner.card
    (plain, *_) = winners.winners(ran, records, None)
    assert Calibration.from_json(plain.intervals).absent == "the store has no predictions of its arm"
    assert "## Intervals\n\nNone: the store has no predictions of its arm." in plain.card


def test_requirements_are_what_is_installed() -> None:
    names = [line.split("==")[0] for line in winners.requirements()]
    assert names == ["torch", "numpy", "pandas", "pyarrow", "pydantic"]
    assert all(re.fullmatch(r"[a-z]+==[\d.]+\w*", line) for line in winners.requirements())


# Its card


def test_a_card_says_what_the_record_and_the_study_say(ran: StudyState, chosen: list[Winner]) -> None:
    winner, records, rows = by_name(chosen, "geoclip-hadamard"), ran.records(), ran.rows()
    record, text = records[winner.key], winner.card
    assert text.startswith("# GeoCLIP · Hadamard: daily PM2.5 at a place, from 21 days of its covariates\n")
    for part, name in (("val", "validation"), ("test", "test")):
        shown = [f"{record['metrics'][f'{part}_{metric}']:.3f}" for metric in SCORES]
        assert f"| {name} | {record['counts'][f'n_{part}']} | {' | '.join(shown)} |" in text
    own = rows[(rows["variant"] == "geoclip") & (rows["split"] == "random")]["test_rmse"].to_numpy(float)
    assert f"| random | WR | {own.mean():.3f} ± {own.std(ddof=1):.3f} | 4 |" in text
    far = rows[(rows["variant"] == "geoclip") & (rows["regime"] == "OoR")]
    for part in ("test", "wr"):  # side by side, and no difference: they are those of other monitors
        found = far[f"{part}_rmse"].to_numpy(float)
        assert f"{found.mean():.3f} ± {found.std(ddof=1):.3f} µg/m³" in text
    assert "(n = 2)" in text
    assert f"fingerprint `{ran.panel.fingerprint}`" in text
    assert f"fingerprint `{record['encoder']}`" in text
    assert "The GeoCLIP weights are MIT-licensed" in text
    assert "not for regulatory use" in text
    assert "mean PM2.5 (µg/m³) of the 3 nearest training monitors" in text
    assert "Its audit found no leak" in text
    for name in winner.inputs:
        assert f"| `{name}` |" in text
    assert "nan" not in text.replace('float("nan")', "")


def card(ran: StudyState, winner: Winner, record: Record, rows: pd.DataFrame, **options: Any) -> str:
    facts = {**ran.facts(ran.records()), "question": ""}
    intervals = Calibration.from_json(winner.intervals)
    about = winner.inputs, ran.panel, options, intervals
    return model_card.card(winner.arm, winner.cell, record, rows, facts, *about)


def test_without_its_number_a_sentence_is_left_out(ran: StudyState, chosen: list[Winner]) -> None:
    winner, rows = by_name(chosen, "none"), ran.rows()
    record = ran.records()[winner.key]
    record["metrics"] |= {"test_n_tail": 7.0, "test_tail_mbe": -12.34, "test_r2": None}
    text = card(ran, winner, record, rows)
    assert "(7 test samples) its predictions are too low by 12.3 µg/m³" in text
    del record["metrics"]["test_tail_mbe"]
    text = card(ran, winner, record, rows[rows["regime"] == "WR"])
    for word in ("predictions are too", "Out of region", "## Encoder", "licensed", "Does it help?"):
        assert word not in text
    record["audit"] = {"failed": ["scalers_saw_test"]}
    assert "- Its audit found: scalers_saw_test." in card(ran, winner, record, rows)


def test_only_known_licences_are_told(ran: StudyState, chosen: list[Winner]) -> None:
    winner = by_name(chosen, "geoclip-hadamard")
    record, rows = ran.records()[winner.key], ran.rows()
    winner = replace(winner, cell=winner.cell.model_copy(update={"variant": "satclip"}))
    assert "licensed" not in card(ran, winner, record, rows, checkpoint="own.ckpt")
    said = card(ran, winner, record, rows, model="microsoft/SatCLIP-ViT16-L40")
    assert "The SatCLIP weights are MIT-licensed" in said
    assert "licensed" not in by_name(chosen, "table-hadamard").card
    assert "encoder's table" in by_name(chosen, "table-hadamard").card


# Served by MLflow

ASKS = """
import json
import mlflow, pandas as pd, torch
from mlflow.pyfunc import scoring_server
torch.set_num_threads(1)
model = mlflow.pyfunc.load_model("saved")
asked = json.load(open("asked.json"))
frame = pd.DataFrame(**asked)
schema = model.metadata.get_input_schema()
body = json.dumps({"dataframe_split": asked})
answer = scoring_server.invocations(body, "application/json", model, schema)
import pm25
found = {
    "file": pm25.__file__,
    "frame": model.predict(frame).to_dict("list"),
    "json": json.loads(answer.response)["predictions"],
    "example": model.predict(model.input_example)["pm25_ugm3"].tolist(),
}
code = open("card.md").read().split("```python")[1].split("```")[0].replace("models:/NAME/VERSION", "saved")
exec(code.replace("model.predict(frame)", "print(len(model.predict(frame)))"), {})
json.dump(found, open("found.json", "w"))
"""


def elsewhere() -> dict[str, str]:
    """An environment that does not know where the project lies."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def saved(ran: StudyState, winner: Winner, folder: Path) -> Path:
    """The model as it is registered."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    winner.write(folder / "model")
    kinds = {kind: DataType[kind] for kind in ("double", "long", "string")}
    kinds["array"] = Array(DataType.double)
    mlflow.pyfunc.save_model(
        folder / "saved",
        loader_module="pm25.predictor",
        data_path=str(folder / "model"),
        code_paths=[str(Path(pm25.__file__).parent)],
        pip_requirements=winners.requirements(),
        signature=ModelSignature(
            Schema([ColSpec(kinds[kind], column) for column, kind in winner.inputs.items()]),
            Schema([ColSpec(DataType.float, name) for name in OUTPUTS]),
        ),
        input_example=winners.example(ran, winner),
    )
    return folder / "saved"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what MLflow's imports, and its checks of an example, warn of
@pytest.mark.parametrize("name", ["geoclip-hadamard", "table-hadamard"])
def test_mlflow_loads_a_winner(ran: StudyState, chosen: list[Winner], tmp_path: Path, name: str) -> None:
    """In a process elsewhere, asked by frame and by JSON, and as its card says."""
    winner = by_name(chosen, name)
    model = saved(ran, winner, tmp_path)
    frame, stored = stored_predictions(ran, winner)
    asked = {"columns": [*frame], "index": [*range(len(frame))], "data": frame.to_numpy().tolist()}
    (tmp_path / "asked.json").write_text(json.dumps(asked).replace("NaN", "null"))
    (tmp_path / "card.md").write_text(winner.card)
    done = subprocess.run(
        [sys.executable, "-c", ASKS], cwd=tmp_path, env=elsewhere(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("1\n")
    found = json.loads((tmp_path / "found.json").read_text())
    assert Path(found["file"]).is_relative_to(model), "not the code that travels with the model"
    assert [*found["frame"]] == [*OUTPUTS]
    assert np.array_equal(np.array(found["frame"]["pm25_ugm3"], np.float32), stored)
    assert (np.array(found["frame"]["lower"]) < stored).all()
    assert (np.array(found["frame"]["upper"]) > stored).all()
    assert pd.DataFrame(found["json"]).equals(pd.DataFrame(found["frame"]))
    assert np.float32(found["example"][0]) in stored


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_served_winner_answers(ran: StudyState, chosen: list[Winner], tmp_path: Path) -> None:
    """`mlflow models serve` on this machine: the example by HTTP, and what is wrong with a bad one."""
    winner = by_name(chosen, "none")
    model = saved(ran, winner, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where uvicorn is
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            env=elsewhere() | {"PATH": path},
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"http://127.0.0.1:{port}/ping", timeout=10).ok:
                    break
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
        asked = json.loads((model / "serving_input_example.json").read_text())
        url = f"http://127.0.0.1:{port}/invocations"
        answer = requests.post(url, json=asked, timeout=60).json()
        (expected,) = winner.predictor().predict_frame(winners.example(ran, winner)).to_dict("records")
        assert answer["predictions"][0] == pytest.approx(expected, rel=1e-6)
        columns = asked["dataframe_split"]["columns"]
        asked["dataframe_split"]["data"][0][columns.index("elev_m")] = [1.0] * 20
        answer = requests.post(url, json=asked, timeout=60)
        assert answer.status_code == 400
        assert "model input: elev_m: row 0 has 20 values" in answer.text
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
