"""A cell is a value: equal trainings have equal keys, different ones different keys."""

import json
from datetime import date
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import pm25
from pm25.cell import Cell, Tuning, allows
from pm25.errors import SettingError
from pm25.neighbours import NeighbourSettings
from pm25.settings import (
    REFERENCES,
    VARIANTS,
    Fusion,
    Loss,
    ModelSettings,
    Precision,
    TrainSettings,
    embeds,
)
from pm25.splits import (
    AnySplit,
    BlocksSplit,
    CheckerboardSplit,
    CheckerboardsSplit,
    ClusterSplit,
    GroupSplit,
    KNNDMSplit,
    PeriodSplit,
    RandomSplit,
    RollingSplit,
    SpatialSplit,
    TemporalSplit,
)
from tests.errors import refuses, unwrapped

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
    "fusion": ["concat", "film", "gated"],
    "fold": [1],
    "seed": [1],
    "window": [20],
    "protocol": ["paper"],
    "neighbours": [{}],
    "neighbours.k": [5],
    "neighbours.power": [1.0],
    "neighbours.exclusion_km": [1.0],
    "neighbours.hide": ["test_distance"],
    "neighbours.distance": [True],
    "tuning": [{}],
    "reserve": [{"share": 0.1}, {"share": 0.2}, {"share": 0.1, "degrees": 4}, {"share": 0.1, "seed": 1}],
    "tuning.split": [{"kind": "spatial"}, {"kind": "random"}, {"kind": "checkerboard", "degrees": 4}],
    "split.degrees": [16, 8.000001],
    "split.origin": [(4, 0), (0, 4)],
    "split.buffer_km": [50.0],
    "split.holdout": [0.25],
    "split.validation": [0.2],
    "split.seed": [1],
    "model.width": [128],
    "model.depth": [2],
    "model.attention_units": [128],
    "model.dropout": [0.0, 0.3],
    "model.initialiser": ["torch"],
    "model.projection": ["norm_tanh"],
    "train.learning_rate": [2e-3],
    "train.decay": [1.0],
    "train.decay_steps": [10_000],
    "train.batch_size": [128],
    "train.max_epochs": [99],
    "train.patience": [10],
    "train.target": ["log1p"],
    "train.loss": ["huber", "absolute"],
    "train.huber_delta": [2.0],
    "train.clip_norm": [None, 5.0],
    "train.precision": ["bf16"],
    "train.max_windows": [1000],
    "train.max_validation_windows": [1000],
}
# These change together with others: tests of their own, below.
ELSEWHERE = {"variant", "head", "split.kind", "split.folds", "tuning.fold"}
ELSEWHERE |= {"split.test_from", "split.gap_days", "split.column", "split.values"}
ELSEWHERE |= {"split.origins", "split.deals", "split.start", "split.max_share"}


def cell(**changes: Any) -> Cell:
    """The base cell with some fields changed, named like `train.patience`."""
    values = {**BASE, "split": dict(BASE["split"]), "model": {}, "train": {}}
    for name, value in changes.items():
        block, _, field = name.rpartition(".")
        (values.setdefault(block, {}) if block else values)[field] = value
    return Cell.model_validate(values)


def key(**changes: Any) -> str:
    return cell(**changes).key(DATA, ENCODER)


def test_every_field_has_a_test():
    blocks = {
        "split": {f for s in get_args(AnySplit) for f in s.model_fields},
        "neighbours": set(NeighbourSettings.model_fields),
        "tuning": set(Tuning.model_fields),
        "model": set(ModelSettings.model_fields),
        "train": set(TrainSettings.model_fields),
    }
    fields = set(Cell.model_fields) - {"split", "model", "train"}  # which are never None
    fields |= {f"{block}.{name}" for block, names in blocks.items() for name in names}
    assert fields == set(OTHERWISE) | ELSEWHERE


def test_the_key_is_stable_over_processes_and_versions():
    assert pm25.NUMERICS == 2, "NUMERICS was raised: store the new keys here"
    assert cell().key(DATA, ENCODER) == "de1ba9adc8f2acc96474"
    plain = Cell(variant="none", split=RandomSplit(), fold=4, seed=7)
    assert plain.key(DATA) == "dbe99adb1ecda9291ed3"


def test_cells_with_the_huber_loss_are_those_of_0_1_0():
    """Their keys and their JSON were written by release 0.1.0, which had no other loss."""
    assert pm25.HUBER_NUMERICS == 1, "the numbers of cells with the Huber loss moved: store new keys here"
    assert key(**{"train.loss": "huber"}) == "d3a8f33eecb16916171b"
    plain = Cell(variant="none", split=RandomSplit(), fold=4, seed=7, train=TrainSettings(loss="huber"))
    assert plain.key(DATA) == "0d48a652a61b69857c45"
    assert plain.numerics == pm25.HUBER_NUMERICS
    stored = {
        "learning_rate": 0.001, "decay": 0.8, "decay_steps": 30_000, "batch_size": 256, "max_epochs": 100,
        "patience": 30, "huber_delta": 1.0, "clip_norm": 1.0,
    }  # fmt: skip
    assert plain.resolved()["train"] == stored
    assert Cell.model_validate({**plain.resolved(), "train": stored}) == plain


def test_numbers_that_moved_have_a_new_version():
    for changes in ({}, {"train.loss": "absolute"}, {"protocol": "paper", "train.loss": "huber"}):
        assert cell(**changes).numerics == pm25.NUMERICS


def test_a_delta_belongs_to_the_huber_loss():
    assert cell(**{"train.huber_delta": 2.0}).train.loss == "huber"
    assert cell(**{"train.loss": "huber"}) == cell(**{"train.huber_delta": 1.0})
    assert (cell().train.loss, cell().train.huber_delta) == ("squared", None)
    assert "huber_delta" not in cell().resolved()["train"]


def test_protocol_paper_has_the_published_loss_and_clipping_unless_told_otherwise():
    paper = cell(protocol="paper")
    assert (paper.train.loss, paper.train.huber_delta, paper.train.clip_norm) == ("huber", 1.0, None)
    assert paper == cell(protocol="paper", **{"train.clip_norm": None, "train.loss": "huber"})
    for loss in ("squared", "absolute"):
        given = cell(protocol="paper", **{"train.loss": loss})
        assert given == Cell.model_validate(given.resolved())
        assert given.train.loss == loss
    assert paper == Cell.model_validate(paper.resolved()) == Cell.model_validate_json(paper.model_dump_json())
    split = CheckerboardSplit(degrees=8)
    built = Cell(variant="geoclip", fusion="hadamard", split=split, fold=0, seed=0, protocol="paper")
    assert built == paper
    for train in (TrainSettings(), TrainSettings(patience=9)):
        assert Cell.model_validate({**dict(built), "train": train}).train.clip_norm is None
    assert cell(protocol="paper", **{"train.clip_norm": 1.0}).train.clip_norm == 1.0
    assert cell(protocol="paper", train={"clip_norm": 1.0}) == cell(
        protocol="paper", train=TrainSettings(clip_norm=1.0)
    )
    assert cell().train.clip_norm == 1.0


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


def test_the_key_changes_with_the_head():
    arms = [("none", None, None), ("none", "matched", "hadamard"), ("none", "matched", "concat")]
    cells = [Cell(variant=v, head=h, fusion=f, split=RandomSplit(), fold=0, seed=0) for v, h, f in arms]
    cells.append(Cell(variant="geoclip", fusion="concat", split=RandomSplit(), fold=0, seed=0))
    assert len({c.key(DATA, ENCODER) for c in cells}) == 4


def test_the_key_changes_with_the_period_and_the_group():
    splits = [TemporalSplit(test_from=date(2021, 10, 1)), TemporalSplit(test_from=date(2021, 11, 1))]
    splits += [TemporalSplit(test_from=date(2021, 10, 1), gap_days=gap) for gap in (20, 30)]
    splits += [GroupSplit(column=c, values=("06", "41")) for c in ("state", "region")]
    splits += [GroupSplit(column="state", values=("41", "06")), ClusterSplit(), ClusterSplit(folds=6)]
    cells = [Cell(variant="none", split=s, fold=0, seed=0) for s in splits]
    assert len({c.key(DATA) for c in cells}) == len(splits)


def test_the_key_changes_with_the_fold_of_tuning():
    inner = {"kind": "spatial", "folds": 3}
    keys = [key(tuning={"split": inner, "fold": fold}) for fold in range(3)] + [key(tuning={}), key()]
    assert len(set(keys)) == len(keys)


def test_the_key_changes_with_data_encoder_and_numerics(monkeypatch):
    before = key()
    assert cell().key("f" * 32, ENCODER) != before
    assert cell().key(DATA, "f" * 64) != before
    huber = key(**{"train.loss": "huber"})
    monkeypatch.setattr(pm25, "NUMERICS", pm25.NUMERICS + 1)
    assert key() != before
    assert key(**{"train.loss": "huber"}) == huber
    monkeypatch.setattr(pm25, "HUBER_NUMERICS", pm25.NUMERICS)
    assert key(**{"train.loss": "huber"}) != huber


@pytest.mark.parametrize("variant", ["none", "latlon", "sincos"])
def test_the_encoder_is_no_matter_where_there_is_none(variant):
    plain = Cell(variant=variant, split=RandomSplit(), fold=0, seed=0)
    assert plain.key(DATA) == plain.key(DATA, ENCODER)
    assert plain.encoder is None
    assert "fusion" not in plain.resolved()
    matched = Cell(variant="none", head="matched", fusion="concat", split=RandomSplit(), fold=0, seed=0)
    assert matched.key(DATA) == matched.key(DATA, ENCODER)
    assert matched.encoder is None


def test_a_cell_survives_its_own_json():
    assert Cell.model_validate(cell().resolved()) == cell()
    assert Cell.model_validate_json(cell().model_dump_json()) == cell()


def test_no_clipping_is_a_setting_and_no_limit_is_none():
    unclipped = cell(**{"train.clip_norm": None})
    assert unclipped.resolved()["train"]["clip_norm"] is None
    assert unclipped.key(DATA, ENCODER) != key()
    assert Cell.model_validate(unclipped.resolved()) == unclipped != cell()
    # Of these None is the default: left out, so that a new field of the kind leaves old keys alone.
    plain = cell().resolved()
    assert not {"head", "neighbours", "tuning"} & set(plain)
    assert not {"initialiser", "projection"} & set(plain["model"])
    assert not {"target", "max_windows", "max_validation_windows"} & set(plain["train"])
    assert not {"origin", "buffer_km"} & set(plain["split"])
    assert cell(neighbours={}).resolved()["neighbours"] == {
        "k": 9, "power": 2.0, "exclusion_km": 0.0, "distance": False,
    }  # fmt: skip
    assert cell(tuning={}).resolved()["tuning"] == {"fold": 0}


def test_fp32_is_the_precision_of_cells_that_name_none():
    assert cell(**{"train.precision": "fp32"}) == cell()
    assert "precision" not in cell(**{"train.precision": "fp32"}).resolved()["train"]
    assert key(**{"train.precision": "fp32"}) == key()
    short = cell(**{"train.precision": "bf16"})
    assert short.resolved()["train"] == {**cell().resolved()["train"], "precision": "bf16"}
    assert Cell.model_validate(short.resolved()) == short
    paper = cell(protocol="paper", **{"train.precision": "bf16"})
    assert (paper.train.precision, paper.train.loss) == ("bf16", "huber")


positive = st.floats(1e-6, 1e6)
share = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**63 - 1)
buffer = st.none() | positive
degrees = st.floats(0.5, 60)
names = st.text(min_size=1, max_size=5)
split_kinds = st.one_of(
    st.builds(RandomSplit, folds=st.integers(2, 9), validation=share, seed=seeds),
    st.builds(SpatialSplit, folds=st.integers(2, 9), buffer_km=buffer, validation=share, seed=seeds),
    st.builds(TemporalSplit, test_from=st.dates(), gap_days=st.none() | st.integers(0, 99), validation=share),
    degrees.flatmap(
        lambda size: st.builds(
            CheckerboardSplit,
            degrees=st.just(size),
            origin=st.none() | st.tuples(*[st.floats(0, size, exclude_max=True)] * 2),
            holdout=share,
            buffer_km=buffer,
        )
    ),
    st.builds(GroupSplit, column=names, values=st.lists(names, min_size=1, max_size=4, unique=True)),
    st.builds(ClusterSplit, folds=st.integers(2, 9), buffer_km=buffer, seed=seeds),
    st.builds(
        CheckerboardsSplit, degrees=degrees, origins=st.integers(1, 99), holdout=share | st.just("rotate")
    ),
    st.builds(BlocksSplit, degrees=degrees, folds=st.integers(2, 9), deals=st.integers(1, 9)),
    st.builds(
        KNNDMSplit, folds=st.integers(3, 9), max_share=st.floats(0.4, 0.9), buffer_km=buffer, seed=seeds
    ),
    st.builds(RollingSplit, folds=st.integers(5, 9), start=share, gap_days=st.none() | st.integers(0, 99)),
)
neighbour_settings = st.builds(
    NeighbourSettings,
    k=st.integers(1, 99),
    power=st.floats(0, 10),
    exclusion_km=st.floats(0, 1e4),
    hide=st.sampled_from([None, "test_distance"]),
    distance=st.booleans(),
)
models = st.builds(
    ModelSettings,
    width=st.integers(1, 200).map(lambda half: 2 * half),
    depth=st.integers(1, 9),
    dropout=st.floats(0, 0.99),
    initialiser=st.sampled_from([None, "torch"]),
)
projected = st.builds(ModelSettings, projection=st.just("norm_tanh"), attention_units=st.integers(1, 99))
losses = st.fixed_dictionaries({"loss": st.sampled_from(get_args(Loss))}) | st.fixed_dictionaries(
    {"loss": st.just("huber"), "huber_delta": positive}
)
trains = st.builds(
    lambda loss, **others: TrainSettings(**loss, **others),
    losses,
    learning_rate=positive,
    decay=share,
    clip_norm=st.none() | positive,
    target=st.sampled_from([None, "log1p"]),
    precision=st.sampled_from(get_args(Precision)),
    max_windows=st.none() | st.integers(1, 10**6),
    max_validation_windows=st.none() | st.integers(1, 10**6),
)


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    if draw(st.integers(0, 4)) == 0:
        split = draw(split_kinds)
        named = [name for name in REFERENCES if allows(split, name)]
        fold, seed = draw(st.integers(0, split.n_folds - 1)), draw(seeds)
        return Cell(variant=draw(st.sampled_from(named)), split=split, fold=fold, seed=seed)
    variant = draw(st.sampled_from(VARIANTS))
    head = draw(st.sampled_from([None, "matched"])) if variant == "none" else None
    fused = head is not None or embeds(variant)
    split, train = draw(split_kinds), draw(trains)
    inner = draw(st.none() | split_kinds)
    tuned = st.builds(
        Tuning, split=st.just(inner), fold=st.integers(0, inner.n_folds - 1) if inner else st.just(0)
    )
    tuning = draw(st.none() | tuned)
    protocols = ["strict"] if train.target or tuning else ["strict", "paper"]
    temporal = any(isinstance(s, PeriodSplit) for s in (split, tuning and tuning.split))
    return Cell(
        variant=variant,
        fusion=draw(st.sampled_from(get_args(Fusion))) if fused else None,
        split=split,
        fold=draw(st.integers(0, split.n_folds - 1)),
        seed=draw(seeds),
        window=draw(st.integers(1, 60)),
        protocol=draw(st.sampled_from(protocols)),
        head=head,
        neighbours=None if temporal else draw(st.none() | neighbour_settings),
        tuning=tuning,
        model=draw(models | projected if fused else models),
        train=train,
    )


@given(cells())
@settings(max_examples=200, deadline=None)
def test_every_cell_survives_its_own_json(made):
    text = json.dumps(made.resolved(), allow_nan=False)
    again = Cell.model_validate(json.loads(text))
    assert again == made
    assert again.resolved() == made.resolved()
    assert again.key(DATA, ENCODER) == made.key(DATA, ENCODER)
    assert hash(again) == hash(made)


@given(cells(), cells())
@settings(max_examples=100, deadline=None)
def test_two_cells_have_one_key_only_if_they_are_equal(one, other):
    assert (one.key(DATA, ENCODER) == other.key(DATA, ENCODER)) == (one == other)


def fault(raised: pytest.ExceptionInfo[ValidationError]) -> tuple[str, str]:
    """Type and dotted key of the only error that pydantic found."""
    (error,) = raised.value.errors()
    return error["type"], ".".join(str(key) for key in error["loc"])


@pytest.mark.parametrize("block", [cell(), cell().split, cell().model, cell().train])
def test_nothing_of_a_cell_can_be_changed(block):
    with pytest.raises(ValidationError) as raised:
        block.seed = 1
    assert fault(raised) == ("frozen_instance", "seed")


def test_labels_are_for_people():
    assert cell(fold=1, seed=3).label == "geoclip-hadamard checkerboard-8 fold 1 seed 3"
    assert Cell(variant="none", split=SpatialSplit(), fold=0, seed=0).label == "none spatial fold 0 seed 0"
    matched = Cell(variant="none", head="matched", fusion="film", split=RandomSplit(), fold=0, seed=0)
    assert matched.label == "none-matched-film random fold 0 seed 0"
    assert CheckerboardSplit(degrees=7.5).label == "checkerboard-7.5"
    plain = "geoclip-hadamard checkerboard-8 fold 0 seed 0"
    assert cell(tuning={}).label == f"{plain} tuning on validation"
    nested = cell(tuning={"split": {"kind": "spatial"}, "fold": 4})
    assert nested.label == f"{plain} tuning on spatial fold 4"


def test_units_are_the_published_ones():
    assert ModelSettings().units == (256, 128, 128)
    assert ModelSettings(width=32, depth=1).units == (32,)


@pytest.mark.parametrize(
    ("changes", "kind", "key"),
    [
        ({"fold": 5, "split.kind": "random"}, "extra_forbidden", "split.random.degrees"),
        ({"train.patient": 3}, "extra_forbidden", "train.patient"),
        ({"sede": 3}, "extra_forbidden", "sede"),
        ({"split.kind": "chequerboard"}, "union_tag_invalid", "split"),
        ({"split.validation": 1.0}, "less_than", "split.checkerboard.validation"),
        ({"model.width": 7}, "multiple_of", "model.width"),
        ({"train.learning_rate": float("inf")}, "finite_number", "train.learning_rate"),
        ({"split.degrees": float("nan")}, "finite_number", "split.checkerboard.degrees"),
        ({"seed": -1}, "greater_than_equal", "seed"),
        ({"protocol": "published"}, "literal_error", "protocol"),
        ({"protocol": None}, "literal_error", "protocol"),
        ({"head": "plain", "variant": "none"}, "literal_error", "head"),
        ({"train.target": "log"}, "literal_error", "train.target"),
        ({"train.precision": "fp16"}, "literal_error", "train.precision"),
        ({"train.precision": None}, "literal_error", "train.precision"),
        ({"tuning": {"fold": -1}}, "greater_than_equal", "tuning.fold"),
        ({"tuning": {"test": True}}, "extra_forbidden", "tuning.test"),
        ({"neighbours.k": 0}, "greater_than", "neighbours.k"),
        ({"neighbours.power": 10.5}, "less_than_equal", "neighbours.power"),
        ({"neighbours.exclusion_km": -1.0}, "greater_than_equal", "neighbours.exclusion_km"),
        ({"neighbours.hide": "train_distance"}, "literal_error", "neighbours.hide"),
        ({"neighbours.channels": ["knnidw_pm25"]}, "extra_forbidden", "neighbours.channels"),
    ],
    ids=str,
)
def test_a_setting_out_of_its_bounds_is_refused(changes, kind, key):
    with pytest.raises(ValidationError) as raised:
        cell(**changes)
    assert fault(raised) == (kind, key)


TEMPORAL = {"kind": "temporal", "test_from": "2021-10-01"}


@pytest.mark.parametrize(
    ("changes", "field", "shown"),
    [
        ({"variant": "none"}, "fusion", ["hadamard", "none"]),
        ({"variant": "latlon", "fusion": "concat"}, "fusion", ["concat", "latlon"]),
        ({"fusion": None}, "fusion", ["geoclip"]),
        ({"fold": 2}, "fold", ["2", "checkerboard-8", "0 to 1"]),
        ({"head": "matched"}, "head", ["matched", "geoclip", "variant: none"]),
        ({"head": "matched", "variant": "latlon"}, "head", ["matched", "latlon"]),
        ({"head": "matched", "variant": "none", "fusion": None}, "fusion", ["none"]),
        (
            {"protocol": "paper", "train.target": "log1p"},
            "train.target",
            ["log1p", "paper", "protocol: strict"],
        ),
        (
            {"variant": "none", "fusion": None, "model.projection": "norm_tanh"},
            "model.projection",
            ["norm_tanh", "none"],
        ),
        ({"neighbours": {}, "split": TEMPORAL}, "neighbours", ["temporal"]),
        ({"neighbours": {}, "split": {"kind": "rolling"}}, "neighbours", ["rolling-5"]),
        ({"neighbours": {}, "tuning": {"split": TEMPORAL}}, "neighbours", ["temporal"]),
        ({"protocol": "paper", "tuning": {}}, "tuning", ["paper", "protocol: strict"]),
        # The fields of a block are relative to it.
        (
            {"train.loss": "absolute", "train.huber_delta": 2.0},
            "huber_delta",
            ["2", "absolute", "loss: huber"],
        ),
        ({"tuning.fold": 1}, "fold", ["1", "tuning.split"]),
        (
            {"tuning": {"split": {"kind": "checkerboard", "degrees": 8}, "fold": 2}},
            "fold",
            ["2", "checkerboard-8", "0 to 1"],
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_together_are_refused(changes, field, shown):
    with refuses(None, field, *shown, kind=SettingError), unwrapped():
        cell(**changes)


@pytest.mark.parametrize("split", [RandomSplit(folds=3), SpatialSplit(folds=3)])
def test_folds_count_from_zero(split):
    assert Cell(variant="none", split=split, fold=2, seed=0).fold == 2
    with refuses(None, "fold", "3", split.label, "0 to 2", kind=SettingError), unwrapped():
        Cell(variant="none", split=split, fold=3, seed=0)
