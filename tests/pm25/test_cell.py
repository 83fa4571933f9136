"""A cell is a value: equal trainings have equal keys, different ones different keys."""

from typing import Any

import pytest
from pydantic import ValidationError

import pm25
from pm25.cell import Cell
from pm25.settings import ModelSettings, TrainSettings
from pm25.splits import CheckerboardSplit, RandomSplit, SpatialSplit

DATA, ENCODER = "d" * 32, "e" * 64

BASE: dict[str, Any] = {
    "variant": "geoclip",
    "fusion": "hadamard",
    "split": {"kind": "checkerboard", "degrees": 8},
    "fold": 0,
    "seed": 0,
}

# Another value for every field there is; a new field must be added here before the tests pass.
OTHERWISE: dict[str, list[Any]] = {
    "fusion": ["concat"],
    "fold": [1],
    "seed": [1],
    "window": [20],
    "split.degrees": [16, 8.000001],
    "split.holdout": [0.25],
    "split.validation": [0.2],
    "split.seed": [1],
    "model.width": [128],
    "model.depth": [2],
    "model.attention_units": [128],
    "model.dropout": [0.0, 0.3],
    "train.learning_rate": [2e-3],
    "train.decay": [1.0],
    "train.decay_steps": [10_000],
    "train.batch_size": [128],
    "train.max_epochs": [99],
    "train.patience": [10],
    "train.huber_delta": [2.0],
    "train.clip_norm": [None, 5.0],
    "train.max_windows": [1000],
    "train.max_validation_windows": [1000],
}
# These change together with others, or have one value only: tests of their own, below.
ELSEWHERE = {"variant", "protocol", "split.kind", "split.folds"}


def cell(**changes: Any) -> Cell:
    """The base cell with some fields changed, named like `train.patience`."""
    values = {**BASE, "split": dict(BASE["split"]), "model": {}, "train": {}}
    for name, value in changes.items():
        block, _, field = name.rpartition(".")
        (values[block] if block else values)[field] = value
    return Cell.model_validate(values)


def key(**changes: Any) -> str:
    return cell(**changes).key(DATA, ENCODER)


def test_every_field_has_a_test():
    blocks = {
        "split": {f for s in (RandomSplit, SpatialSplit, CheckerboardSplit) for f in s.model_fields},
        "model": set(ModelSettings.model_fields),
        "train": set(TrainSettings.model_fields),
    }
    fields = set(Cell.model_fields) - set(blocks)
    fields |= {f"{block}.{name}" for block, names in blocks.items() for name in names}
    assert fields == set(OTHERWISE) | ELSEWHERE


def test_the_key_is_stable_over_processes_and_versions():
    assert pm25.NUMERICS == 1, "NUMERICS was raised: store the new keys here"
    assert cell().key(DATA, ENCODER) == "d3a8f33eecb16916171b"
    plain = Cell(variant="none", split=RandomSplit(), fold=4, seed=7)
    assert plain.key(DATA) == "0d48a652a61b69857c45"


def test_equal_cells_have_equal_keys_however_they_were_written():
    split = CheckerboardSplit(degrees=8.0)
    written_out = Cell(
        seed=0,
        fold=0,
        split=split,
        fusion="hadamard",
        variant="geoclip",
        window=21,
        model=ModelSettings(width=256),
        train=TrainSettings(learning_rate=0.001, max_windows=None),
    )
    assert written_out == cell()
    assert hash(written_out) == hash(cell())
    assert written_out.key(DATA, ENCODER) == key()


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, vs in OTHERWISE.items() for v in vs])
def test_the_key_changes_with_every_field(field, value):
    assert key(**{field: value}) != key()


def test_the_keys_of_all_changes_differ_from_each_other():
    keys = [key(**{field: value}) for field, values in OTHERWISE.items() for value in values]
    assert len(set(keys)) == len(keys)


def test_the_key_changes_with_variant_split_and_folds():
    splits = [RandomSplit(), SpatialSplit(), RandomSplit(folds=10), SpatialSplit(folds=10), *[
        CheckerboardSplit(degrees=d) for d in (8, 16, 30)
    ]]  # fmt: skip
    cells = [Cell(variant=v, split=s, fold=0, seed=0) for v in ("none", "latlon", "sincos") for s in splits]
    cells += [Cell(variant="geoclip", fusion="concat", split=s, fold=0, seed=0) for s in splits]
    assert len({c.key(DATA, ENCODER) for c in cells}) == 4 * len(splits)


def test_the_key_changes_with_data_encoder_and_numerics(monkeypatch):
    before = key()
    assert cell().key("f" * 32, ENCODER) != before
    assert cell().key(DATA, "f" * 64) != before
    monkeypatch.setattr(pm25, "NUMERICS", pm25.NUMERICS + 1)
    assert key() != before


@pytest.mark.parametrize("variant", ["none", "latlon", "sincos"])
def test_the_encoder_is_no_matter_where_there_is_none(variant):
    plain = Cell(variant=variant, split=RandomSplit(), fold=0, seed=0)
    assert plain.key(DATA) == plain.key(DATA, ENCODER)
    assert plain.encoder is None
    assert "fusion" not in plain.resolved()


def test_a_cell_survives_its_own_json():
    assert Cell.model_validate(cell().resolved()) == cell()
    assert Cell.model_validate_json(cell().model_dump_json()) == cell()


@pytest.mark.parametrize("block", [cell(), cell().split, cell().model, cell().train])
def test_nothing_of_a_cell_can_be_changed(block):
    with pytest.raises(ValidationError, match="frozen"):
        block.seed = 1


def test_labels_are_for_people():
    assert cell(fold=1, seed=3).label == "geoclip-hadamard checkerboard-8 fold 1 seed 3"
    assert Cell(variant="none", split=SpatialSplit(), fold=0, seed=0).label == "none spatial fold 0 seed 0"
    assert CheckerboardSplit(degrees=7.5).label == "checkerboard-7.5"


def test_units_are_the_published_ones():
    assert ModelSettings().units == (256, 128, 128)
    assert ModelSettings(width=32, depth=1).units == (32,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "none"}, "variant none takes no fusion"),
        ({"variant": "latlon", "fusion": "concat"}, "variant latlon takes no fusion"),
        ({"fusion": None}, "variant geoclip needs fusion"),
        ({"fold": 2}, "fold 2 does not exist: checkerboard-8 has 0..1"),
        ({"fold": 5, "split.kind": "random"}, "Extra inputs"),
        ({"train.patient": 3}, "Extra inputs"),
        ({"sede": 3}, "Extra inputs"),
        ({"split.kind": "chequerboard"}, "checkerboard"),
        ({"split.validation": 1.0}, "less than 1"),
        ({"model.width": 7}, "multiple of 2"),
        ({"train.learning_rate": float("inf")}, "finite"),
        ({"split.degrees": float("nan")}, "finite|greater"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"protocol": "paper"}, "strict"),
    ],
)
def test_a_cell_that_means_nothing_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        cell(**changes)


@pytest.mark.parametrize("split", [RandomSplit(folds=3), SpatialSplit(folds=3)])
def test_folds_count_from_zero(split):
    assert Cell(variant="none", split=split, fold=2, seed=0).fold == 2
    with pytest.raises(ValidationError, match=f"fold 3 does not exist: {split.label} has 0..2"):
        Cell(variant="none", split=split, fold=3, seed=0)
