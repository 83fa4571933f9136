"""Explanations of a cell: they name every part of its key that differs from the most similar cell."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import pm25
from pm25 import encoders
from pm25.sources import synthetic
from sweeps import explain
from sweeps.spec.design import Arm
from sweeps.state import StudyState
from sweeps.store.records import Record
from tests import worlds
from tests.errors import refuses

STUDY = """\
study: toy
data: {table: panel.parquet, channels: [elev_m, day_sin]}
design:
  variant: [none, random]
  split: [{kind: random, fold: 0}, {kind: checkerboard, degrees: 16, fold: 0}]
  seed: 0
model: {width: 4, attention_units: 4}
"""
SEARCH = "search={trials: 2, split: {kind: random, fold: 0}, seed: 9, space: {model.width: {choice: [4, 8]}}}"


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    made = synthetic.synthesize(sites=12, days=40)
    east = made["lon"] > made["lon"].median()
    return made.assign(state=east.map({True: "E", False: "W"}))


@pytest.fixture
def toy(table: pd.DataFrame, tmp_path: Path) -> Path:
    table.to_parquet(tmp_path / "panel.parquet", index=False)
    (tmp_path / "toy.yaml").write_text(STUDY)
    return tmp_path / "toy.yaml"


def state(toy: Path, *overrides: str) -> StudyState:
    return StudyState(str(toy), overrides)


def record(of: StudyState, key: str, **more: Any) -> Record:
    """The record that a worker would have written of a cell."""
    cell = of.cells[key]
    options = of.study.encoder_options(cell.variant)
    fields = {
        "data": of.panel.fingerprint,
        "encoder": encoders.fingerprint(cell.variant, **options) if cell.encoder else None,
        "numerics": cell.numerics,
        "host": "alpha",
        "seconds": 12.5,
        "ended": "2026-01-02T03:04:05.678+00:00",
        **more,
    }
    return worlds.cell_record(key, cell, **fields)


def lost(of: StudyState, key: str) -> Record:
    """The record of a cell whose worker died."""
    error = {"type": "RuntimeError", "message": "it died", "traceback": "Traceback:\nit died\n"}
    cell = of.cells[key].resolved()
    return {
        "key": key,
        "cell": cell,
        "state": "failed",
        "error": error,
        "ended": "2026-01-01T00:00:00.000+00:00",
    }


def write(of: StudyState, made: Record) -> None:
    """Store a record, with tables without rows if its cell is done."""
    done = made["state"] == "done"
    of.store.write_record(made, worlds.empty_tables(of.store, made["key"]) if done else {})


def store(of: StudyState, **more: Any) -> None:
    """Record all the cells of a study as done."""
    for key in of.cells:
        write(of, record(of, key, **more))


def key_of(of: StudyState, label: str) -> str:
    (key,) = (key for key, cell in of.cells.items() if cell.label == label)
    return key


def parts(explanation: explain.Explanation) -> dict[str, tuple[Any, Any]]:
    assert explanation.relative is not None
    return {d.part: (d.stored, d.asked) for d in explanation.relative.differences}


NONE, ENCODED = "none random fold 0 seed 0", "random-hadamard random fold 0 seed 0"


# Cells of the grid that are recorded


def test_a_done_cell(toy: Path) -> None:
    of = state(toy)
    key = key_of(of, NONE)
    write(of, record(of, key, audit={"failed": ["shared_sites", "near_sites"]}))
    explanation = explain.explain(of, key)
    assert explanation.lines == [
        f"{key} {NONE}: done, as the study asks for it",
        "  ended   2026-01-02T03:04:05.678+00:00 on alpha (x86_64), 12.5 s",
        "  audit   failed: shared_sites; near_sites",
    ]
    assert explanation.content == {
        "key": key,
        "label": NONE,
        "state": "done",
        "stored": "done",
        "ended": "2026-01-02T03:04:05.678+00:00",
        "host": "alpha",
        "device": "x86_64",
        "seconds": 12.5,
        "marked": ["shared_sites", "near_sites"],
        "relative": None,
    }


def test_a_failed_cell(toy: Path) -> None:
    of = state(toy)
    key = key_of(of, ENCODED)
    write(of, lost(of, key))
    explanation = explain.explain(of, key)
    assert explanation.lines == [
        f"{key} {ENCODED}: failed",
        "  ended   2026-01-01T00:00:00.000+00:00",
        "  error   RuntimeError: it died",
        "    Traceback:",
        "    it died",
    ]
    assert explanation.content["error"]["message"] == "it died"
    assert explanation.where == "arm=random-hadamard,split=random,fold=0,seed=0"


# Missing cells


def test_a_missing_cell_of_an_empty_store(toy: Path) -> None:
    of = state(toy)
    key = key_of(of, NONE)
    assert explain.explain(of, key).lines == [
        f"{key} {NONE}: missing",
        "  nothing is stored to compare it with",
    ]
    assert explain.explain(of, key).content["relative"] is None


@pytest.mark.parametrize(
    ("overrides", "label", "expected"),
    [
        (["model.width=8"], NONE, {"model.width": (4, 8)}),
        (["window=14", "train.clip_norm=null"], NONE, {"window": (21, 14), "train.clip_norm": (1.0, None)}),
        (["model.initialiser=torch"], NONE, {"model.initialiser": ("not set", "torch")}),
        (
            ["protocol=paper"],
            NONE,
            {
                "protocol": ("strict", "paper"),
                "train.loss": ("squared", "not set"),
                "train.huber_delta": ("not set", 1.0),
                "train.clip_norm": (1.0, None),
            },
        ),
        (
            ["neighbours={k: 5}"],
            NONE,
            {
                "neighbours.k": ("not set", 5),
                "neighbours.power": ("not set", 2.0),
                "neighbours.exclusion_km": ("not set", 0.0),
                "neighbours.distance": ("not set", False),
            },
        ),
        (["design.seed=[0, 1]"], NONE.replace("seed 0", "seed 1"), {"seed": (0, 1)}),
        (
            ["design.split={kind: random, fold: 0, validation: 0.2}"],
            ENCODED,
            {"split.validation": (0.1, 0.2)},
        ),
        (
            ["design.split={kind: checkerboard, degrees: 8, fold: 0}"],
            "none checkerboard-8 fold 0 seed 0",
            {"split.degrees": (16.0, 8.0)},
        ),
        (["design.fusion=concat"], "random-concat random fold 0 seed 0", {"fusion": ("hadamard", "concat")}),
        (["design.variant=latlon"], "latlon random fold 0 seed 0", {"variant": ("none", "latlon")}),
    ],
)
def test_a_missing_cell_names_what_differs(
    toy: Path, overrides: list[str], label: str, expected: dict[str, tuple[Any, Any]]
) -> None:
    store(state(toy))
    of = state(toy, *overrides)
    explanation = explain.explain(of, key_of(of, label))
    assert explanation.state == "missing"
    assert parts(explanation) == expected


def test_the_lines_of_a_missing_cell(toy: Path) -> None:
    old = state(toy)
    store(old)
    of = state(toy, "model.width=8", "encoders.random.seed=3")
    key, relative = key_of(of, ENCODED), key_of(old, ENCODED)
    prints = [encoders.fingerprint("random", **s.study.encoder_options("random")) for s in (old, of)]
    explanation = explain.explain(of, key)
    assert explanation.lines == [
        f"{key} {ENCODED}: missing",
        f"  nearest stored: {relative} {ENCODED} (done)",
        "  what differs",
        "    model.width: 4 -> 8",
        f"    encoder: {prints[0][:12]} -> {prints[1][:12]}  (the encoder's weights or options)",
    ]
    assert json.loads(json.dumps(explanation.content["relative"])) == {
        "key": relative,
        "label": ENCODED,
        "state": "done",
        "differences": [
            {"part": "model.width", "stored": 4, "asked": 8, "tuned": False},
            {"part": "encoder", "stored": prints[0], "asked": prints[1], "tuned": False},
        ],
    }


def test_other_data_and_other_numerics(
    toy: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = state(toy)
    store(old)
    table.assign(elev_m=table["elev_m"] + 1).to_parquet(toy.parent / "panel.parquet", index=False)
    numerics = pm25.NUMERICS
    monkeypatch.setattr(pm25, "NUMERICS", 99)
    of = state(toy)
    explanation = explain.explain(of, key_of(of, NONE))
    assert parts(explanation) == {
        "data": (old.panel.fingerprint, of.panel.fingerprint),
        "numerics": (numerics, 99),
    }
    before, now = old.panel.fingerprint[:12], of.panel.fingerprint[:12]
    assert explanation.lines[-2:] == [
        f"    data: {before} -> {now}  (the table's values, sites, days or channels)",
        f"    numerics: {numerics} -> 99  (the version of the code's numbers)",
    ]


def test_the_same_factors_come_before_fewer_parts(toy: Path) -> None:
    """A cell of another seed differs in one part only, and does not show which settings were changed."""
    old = state(toy)
    relative = key_of(old, NONE)
    write(old, record(old, relative))
    other = state(toy, "design.seed=1", "model.width=8", "window=14", "train.patience=7")
    store(other)
    of = state(toy, "model.width=8", "window=14", "train.patience=7")
    explanation = explain.explain(of, key_of(of, NONE))
    assert explanation.relative is not None
    assert explanation.relative.key == relative
    assert parts(explanation) == {"window": (21, 14), "model.width": (4, 8), "train.patience": (30, 7)}


def test_a_split_that_is_cut_otherwise_is_the_same_split(toy: Path) -> None:
    old = state(toy)
    relative = key_of(old, NONE)
    write(old, record(old, relative))
    cut = "design.split={kind: random, fold: 0, validation: 0.2}"
    store(state(toy, "design.seed=1", cut, "model.width=8"))
    of = state(toy, cut, "model.width=8")
    explanation = explain.explain(of, key_of(of, NONE))
    assert parts(explanation) == {"split.validation": (0.1, 0.2), "model.width": (4, 8)}


def test_of_equally_near_ones_a_done_one_then_the_newest(toy: Path) -> None:
    of = state(toy, "model.width=32")
    key = key_of(of, NONE)
    stored = {}
    for width, day in ((4, 1), (8, 3), (16, 2)):
        old = state(toy, f"model.width={width}")
        stored[width] = record(old, key_of(old, NONE), ended=f"2026-01-0{day}T00:00:00.000+00:00")
        write(of, stored[width])
    assert parts(explain.explain(of, key)) == {"model.width": (8, 32)}
    write(of, stored[8] | {"state": "failed"})
    assert parts(explain.explain(of, key)) == {"model.width": (16, 32)}


def test_a_cell_of_the_loss_of_0_1_0(toy: Path) -> None:
    old = state(toy, "train.loss=huber")
    store(old)
    of = state(toy)
    assert parts(explain.explain(of, key_of(of, NONE))) == {
        "train.loss": (explain.NOT_SET, "squared"),
        "train.huber_delta": (1.0, explain.NOT_SET),
        "numerics": (pm25.HUBER_NUMERICS, pm25.NUMERICS),
    }


def test_a_lost_worker_s_record_says_what_it_knows(toy: Path, table: pd.DataFrame) -> None:
    old = state(toy)
    relative = key_of(old, ENCODED)
    write(old, lost(old, relative))
    of = state(toy, "model.width=8")
    assert parts(explain.explain(of, key_of(of, ENCODED))) == {"model.width": (4, 8)}
    table.assign(elev_m=table["elev_m"] + 1).to_parquet(toy.parent / "panel.parquet", index=False)
    of = state(toy)
    found = parts(explain.explain(of, key_of(of, ENCODED)))
    assert {part: stored for part, (stored, _) in found.items()} == dict.fromkeys(
        ("data", "encoder", "numerics"), "not recorded"
    )


def test_other_groups_of_sites(toy: Path, table: pd.DataFrame) -> None:
    """They are in the key and not in the record: what is left when nothing else differs."""
    group = "design.split={kind: group, column: state, values: [E, W], fold: 0}"
    label = "none group-state-E+W fold 0 seed 0"
    old = state(toy, group)
    store(old)
    swapped = table.assign(state=table["state"].map({"E": "W", "W": "E"}))
    swapped.to_parquet(toy.parent / "panel.parquet", index=False)
    of = state(toy, group)
    assert of.panel.fingerprint == old.panel.fingerprint
    explanation = explain.explain(of, key_of(of, label))
    now = of.panel.fingerprint_by("state")
    assert parts(explanation) == {"data.state": ("not recorded", now)}
    assert explanation.lines[-1] == (
        f"    data.state: not recorded -> {now[:12]}  (which site is in which group)"
    )


def test_another_prediction_domain(toy: Path) -> None:
    split, points = "design.split={kind: knndm, folds: 3, fold: 0}", toy.parent / "points.csv"
    label = "none knndm-3 fold 0 seed 0"
    old = state(toy, split)
    store(old)
    points.write_text("lat,lon\n40,-100\n")
    of = state(toy, split, f"data.domain={points}")
    explanation = explain.explain(of, key_of(of, label))
    assert parts(explanation) == {"data.domain": ("not recorded", of.panel.fingerprint_with_domain())}
    assert explanation.lines[-1].endswith("(which places are the prediction domain)")


# Stale cells


def test_a_stale_cell_says_what_to_change_back(toy: Path) -> None:
    old = state(toy, "model.width=8", "train.target=log1p")
    store(old)
    of = state(toy)
    relative, key = key_of(of, NONE), key_of(old, NONE)
    explanation = explain.explain(of, key)
    assert explanation.lines == [
        f"{key} {NONE}: stale: done, and the study no longer asks for it",
        "  ended   2026-01-02T03:04:05.678+00:00 on alpha (x86_64), 12.5 s",
        f"  nearest in the grid: {relative} {NONE} (missing)",
        "  change these back to request it again",
        "    model.width: 4 -> 8",
        "    train.target: not set -> log1p",
    ]
    assert explanation.content["state"] == "stale"
    assert explanation.content["stored"] == "done"
    write(of, record(of, relative))
    again = explain.explain(of, key)
    assert again.relative is not None
    assert again.relative.state == "done"


def test_a_cell_that_the_design_dropped(toy: Path) -> None:
    old = state(toy)
    store(old)
    of = state(toy, "design.variant=none", "design.split={kind: random, fold: [0, 1]}")
    explanation = explain.explain(of, key_of(old, "none checkerboard-16 fold 0 seed 0"))
    assert explanation.relative is not None
    assert (explanation.relative.label, explanation.relative.state) == (NONE, "done")
    assert {part.split(".")[0] for part in parts(explanation)} == {"split"}
    assert parts(explanation)["split.degrees"] == (16.0, "not set")
    explanation = explain.explain(of, key_of(old, ENCODED))
    assert parts(explanation) == {"variant": ("random", "none"), "fusion": ("hadamard", "not set")}


def test_a_record_of_another_version_is_compared_all_the_same(toy: Path) -> None:
    of = state(toy)
    cell = of.cells[key_of(of, NONE)].resolved() | {"wings": 2}
    write(of, record(of, key_of(of, NONE)) | {"key": "f00", "cell": cell})
    explanation = explain.explain(of, "f00")
    assert explanation.label == "none random fold 0 seed 0 (of another version)"
    assert parts(explanation) == {"wings": (2, "not set")}


# Searches


def test_a_stale_cell_whose_arm_is_still_searched(toy: Path) -> None:
    old = state(toy, "model.width=16")
    store(old)
    of = state(toy, SEARCH)
    assert not of.cells
    key = key_of(old, NONE)
    assert explain.explain(of, key).lines[2:] == [
        f"  nearest in the grid: {NONE} (waiting)",
        "  the search of its arm has not chosen its settings yet",
    ]
    of = state(toy, SEARCH, "window=14")
    explanation = explain.explain(of, key)
    assert parts(explanation) == {"window": (21, 14)}
    assert explanation.content["relative"]["key"] is None


def test_a_setting_that_the_search_chose_is_marked(toy: Path) -> None:
    old = state(toy)
    store(old)
    of = state(toy, SEARCH, "window=14")
    arm = Arm("none", None)
    of.cells = {
        of.key(cell): cell for cell in of.study.cells({arm: {"model.width": 8}}) if Arm.of(cell) == arm
    }
    key = key_of(of, NONE)
    assert explain.explain(of, key).lines[-2:] == [
        "    window: 21 -> 14",
        "    model.width: 4 -> 8  (chosen by the arm's search)",
    ]


# Keys


def test_the_first_digits_of_a_key_are_enough(toy: Path) -> None:
    of = state(toy)
    for key in of.cells:
        assert explain.explain(of, key[:8]) == explain.explain(of, key)


def test_a_key_that_names_no_cell_or_several(toy: Path) -> None:
    of = state(toy)
    for key in ("ff0", "ff00", "ff01"):
        write(of, record(of, key_of(of, NONE)) | {"key": key})
    assert explain.explain(of, "ff0").key == "ff0"  # whole, though others begin so
    for key, values in (
        ("ff", (3, "ff0", "ff00")),
        ("xyz", ("study toy", "sweep export")),
        ("", ("study toy", "sweep export")),
    ):
        with refuses(f"key {key!r}", "", *values):
            explain.explain(of, key)
    of.store.write_file("ee0", "predictions.parquet", b"a beginning")
    with refuses("key 'ee0'", "", f"{toy.parent}/results/toy/cells/ee0"):
        explain.explain(of, "ee0")


def test_the_store_is_read_once(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(state(toy))
    of = state(toy, "model.width=8")
    read: list[int] = []
    records = type(of.store).records

    def count(self: Any, keys: Any) -> Any:
        found = records(self, keys)
        read.append(len(found))
        return found

    monkeypatch.setattr(type(of.store), "records", count)
    explain.explain(of, key_of(of, NONE))
    assert read == [4]
