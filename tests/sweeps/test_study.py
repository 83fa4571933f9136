"""Study files: what they cross, where their paths point, and how a faulty one is told."""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.cell import Cell
from pm25.errors import InputError
from pm25.panel import CALENDAR, Panel
from pm25.splits import CheckerboardSplit, RandomSplit
from sweeps import study
from sweeps.study import Study

SHARED = Path(__file__).parents[2].parent / "shared"

TOY = """\
study: toy
data: {table: tables/panel.parquet}
design:
  variant: [none, geoclip]
  split:
    - {kind: random}
    - {kind: checkerboard, degrees: 16}
  seed: [0, 1]
model: {width: 4}
"""


def write(folder: Path, text: str | bytes = TOY) -> str:
    path = folder / "toy.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def fault(path: str, *overrides: str) -> str:
    """What is said of a study, behind the file's name."""
    with pytest.raises(InputError) as caught:
        study.load(path, overrides)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    if not text.startswith("--set "):
        assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


# What a study crosses


def test_demo_is_30_cells_of_5_arms() -> None:
    demo = study.load("demo")
    cells = demo.cells()
    assert len(cells) == len(set(cells)) == 30  # 5 arms x (1 random fold + 2 colours) x 2 seeds
    assert demo.arms() == [
        ("none", None),
        ("latlon", None),
        ("sincos", None),
        ("geoclip", "hadamard"),
        ("geoclip", "concat"),
    ]
    assert {(c.split.label, c.fold) for c in cells} == {
        ("random", 0),
        ("checkerboard-16", 0),
        ("checkerboard-16", 1),
    }
    assert {c.seed for c in cells} == {0, 1}
    assert {c.model.width for c in cells} == {32}
    assert {c.train.max_epochs for c in cells} == {8}
    assert {c.train.patience for c in cells} == {30}  # the file names none


def test_quick_is_60_cells_on_a_table_of_the_users() -> None:
    quick = study.load("quick", ["data.table=panel.parquet"])
    assert len(quick.cells()) == 60  # 5 arms x (2 + 2 + 2 folds) x 2 seeds
    assert len(quick.arms()) == 5
    assert {(c.split.label, c.fold) for c in quick.cells()} == {
        (label, fold) for label in ("random", "spatial", "checkerboard-16") for fold in (0, 1)
    }
    with pytest.raises(InputError, match=r"not neither: --set data\.table=PANEL\.parquet$"):
        study.load("quick")


@pytest.mark.parametrize("name", ["demo", "quick"])
def test_a_shipped_study_says_how_many_cells_it_has(name: str) -> None:
    first = (study.SHIPPED / f"{name}.yaml").read_text().splitlines()[0]
    shipped = study.load(name, ["data={table: panel.parquet}"])
    assert f" {len(shipped.cells())} cells, " in first


def test_quick_names_channels_of_the_real_table() -> None:
    table = SHARED / "data" / "conus_daily_2021.parquet"
    if not table.is_file():
        pytest.skip(f"{table.name} is not in shared/data")
    channels = study.load("quick", [f"data.table={table}"]).data.channels
    assert channels is not None
    assert {*channels} - {*CALENDAR} <= {*pyarrow.parquet.read_schema(table).names}


@pytest.mark.parametrize("name", ["demo", "quick"])
def test_every_arm_stands_in_the_grid_s_first_cells(name: str) -> None:
    shipped = study.load(name, ["data={table: panel.parquet}"])
    arms = shipped.arms()
    cells = shipped.cells()
    for block in range(0, len(cells), len(arms)):
        assert [c.arm for c in cells[block : block + len(arms)]] == arms
        assert len({(c.split.label, c.fold, c.seed) for c in cells[block : block + len(arms)]}) == 1
    # The first seed's first folds, over all splits, come before any second fold or seed.
    splits = len(shipped.design.split)
    assert {(c.fold, c.seed) for c in cells[: splits * len(arms)]} == {(0, 0)}
    assert [c.seed for c in cells] == sorted(c.seed for c in cells)


def test_a_variant_without_an_encoder_has_no_fusion(tmp_path: Path) -> None:
    path = write(tmp_path)
    both = study.load(path, ["design.fusion=[hadamard, concat]"])
    assert both.arms() == [("none", None), ("geoclip", "hadamard"), ("geoclip", "concat")]
    assert all((c.fusion is None) == (c.variant == "none") for c in both.cells())
    assert len(both.cells()) == 3 * 7 * 2
    assert len(study.load(path, ["design.variant=none", "design.fusion=[hadamard, concat]"]).cells()) == 7 * 2


def test_folds_are_all_of_a_split_s_unless_named(tmp_path: Path) -> None:
    def folds(text: str) -> list[int]:
        cells = study.load(write(tmp_path), ["design.variant=none", "design.seed=0", f"design.split={text}"])
        return [c.fold for c in cells.cells()]

    assert folds("{kind: random}") == [0, 1, 2, 3, 4]
    assert folds("{kind: spatial, folds: 3}") == [0, 1, 2]
    assert folds("{kind: checkerboard, degrees: 8}") == [0, 1]
    assert folds("{kind: checkerboard, degrees: 8, fold: 1}") == [1]
    assert folds("{kind: random, folds: 10, fold: [9, 3]}") == [9, 3]


def test_one_level_needs_no_list(tmp_path: Path) -> None:
    listed = write(tmp_path)
    one = study.load(
        listed,
        [
            "design.variant=geoclip",
            "design.fusion=concat",
            "design.seed=7",
            "design.split={kind: random, fold: 2}",
            "data.channels=elev_m",
        ],
    )
    assert one.data.channels == ("elev_m",)
    (cell,) = one.cells()
    assert cell == Cell(
        variant="geoclip",
        fusion="concat",
        split=RandomSplit(),
        fold=2,
        seed=7,
        model=cell.model,
    )


def test_a_level_that_stands_twice_is_one_cell(tmp_path: Path) -> None:
    twice = ["design.seed=[0, 0, 1, 1]", "design.variant=[none, geoclip, none]"]
    assert study.load(write(tmp_path), twice).cells() == study.load(write(tmp_path)).cells()


# Overrides and paths


def test_overrides_nest_and_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path)
    made = study.load(
        path,
        [
            "train.learning_rate=1e-4",
            "train.clip_norm=null",
            "resources={cpu: 2, gpu: 0.5}",
            "design.seed=[3, 4]",
            "title='A colon: inside'",
            "resources.cpu=3",
        ],
    )
    assert made.train.learning_rate == 1e-4
    assert made.train.clip_norm is None
    assert (made.resources.cpu, made.resources.gpu) == (3, 0.5)  # the later override wins
    assert made.design.seed == (3, 4)
    assert made.title == "A colon: inside"
    assert made.model.width == 4


def test_an_override_can_swap_the_data() -> None:
    other = study.load("demo", ["data.synthetic=null", "data.table=p.parquet"])
    assert other.data.synthetic is None
    assert other.data.table == Path.cwd() / "p.parquet"
    # The likeliest slip says how to mend it.
    with pytest.raises(InputError, match=r"not both: --set data\.synthetic=null$"):
        study.load("demo", ["data.table=p.parquet"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.width", "--set model.width: write it as a.b=value"),
        ("=4", "--set =4: write it as a.b=value"),
        ("model..width=4", "--set model..width=4: write it as a.b=value"),
        ("model width=4", "--set model width=4: write it as a.b=value"),
        ("design.seed=[0", "--set design.seed=[0: the value is not valid YAML"),
        ("title=a: b: c", "--set title=a: b: c: the value is not valid YAML"),
        ("model={width: 4, width: 8}", "--set model={width: 4, width: 8}: the value is not valid YAML"),
        ("study.name=x", "--set study.name=x: study holds 'toy', not further keys"),
        ("model.width.units=4", "--set model.width.units=4: width holds 4, not further keys"),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, said: str) -> None:
    assert fault(write(tmp_path), override).startswith(said)


def test_paths_in_a_file_are_relative_to_it_and_overrides_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    monkeypatch.chdir(here)
    path = write(there, TOY + "storage: ../out\n")
    for reference in (path, os.path.relpath(path)):
        made = study.load(reference)
        assert made.data.table == there / "tables" / "panel.parquet"
        assert made.storage == str(tmp_path / "out")
    for overrides in (
        ["data.table=p.parquet", "storage=mine"],
        ["data={table: p.parquet}", "storage=./mine/x/.."],
    ):
        made = study.load(path, overrides)
        assert made.data.table == here / "p.parquet"
        assert made.storage == str(here / "mine")
    assert study.load(path, ["storage=/far/away"]).storage == "/far/away"
    assert study.load(path, ["storage=s3://bucket/x"]).storage == "s3://bucket/x"


def test_results_stand_beside_the_file_or_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert study.load(write(tmp_path)).storage == str(tmp_path / "results")
    assert study.load("demo").storage == str(here / "results")


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert study.load("demo", ["storage=~/results"]).storage == str(tmp_path / "results")
    lost = study.load(write(tmp_path, TOY.replace("tables/", "~nobody-of-this-name/")))
    assert lost.data.table == tmp_path / "~nobody-of-this-name" / "panel.parquet"


# Faults


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("model: {width", "model: {widht", "model.widht: unknown key; did you mean model.width?"),
        ("model:", "modle:", "modle: unknown key; did you mean model?"),
        ("degrees", "degress", "design.split.1.degress: unknown key; did you mean design.split.degrees?"),
        ("seed:", "sedes:", "design.sedes: unknown key; did you mean design.seed?"),
        ("variant", "varaint", "design.varaint: unknown key; did you mean design.variant?"),
        ("design:", "desing:", "desing: unknown key; did you mean design?"),
        ("study: toy", "stduy: toy", "stduy: unknown key; did you mean study?"),
    ],
)
def test_a_misspelt_key_names_the_nearest(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert fault(write(tmp_path, TOY.replace(old, new))).startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        # Three blocks have a seed: the one of the same block is meant.
        (
            "data={synthetic: {sede: 1}}",
            "data.synthetic.sede: unknown key; did you mean data.synthetic.seed?",
        ),
        (
            "design.split={kind: random, sede: 1}",
            "design.split.0.sede: unknown key; did you mean design.split.seed?",
        ),
        ("learning_rate=1", "learning_rate: unknown key; did you mean train.learning_rate?"),
        ("fusion=concat", "fusion: unknown key; did you mean design.fusion?"),
        ("model.zzzzz=1", "model.zzzzz: unknown key; known keys: width, depth, attention_units, dropout"),
        (
            "design.split={kind: checkerboard, degrees: 8, folds: 3}",
            "design.split.0.folds: this kind of split has no such key",
        ),
    ],
)
def test_the_nearest_key_is_one_of_the_same_block(tmp_path: Path, override: str, said: str) -> None:
    assert fault(write(tmp_path), override) == said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("design.seed=-1", "design.seed.0: input should be greater than or equal to 0, got -1"),
        ("design.seed=[0, 1.5]", "design.seed.1: input should be a valid integer"),
        ("design.seed=[]", "design.seed: "),
        (
            "design.variant=geoclop",
            "design.variant.0: input should be 'none', 'latlon', 'sincos' or 'geoclip'",
        ),
        ("design.variant=[none, geoclop]", "design.variant.1: "),
        ("design.fusion=sum", "design.fusion.0: input should be 'hadamard' or 'concat', got 'sum'"),
        ("design=[1]", "design: input should be a valid dictionary"),
        ("data=null", "data: input should be a valid dictionary"),
        ("model.width=wide", "model.width: input should be a valid integer"),
        ("model.width=3", "model.width: input should be a multiple of 2, got 3"),
        ("model.dropout=1", "model.dropout: input should be less than 1, got 1"),
        ("train.learning_rate=0", "train.learning_rate: input should be greater than 0, got 0"),
        ("train.learning_rate=.inf", "train.learning_rate: input should be a finite number, got inf"),
        ("window=0", "window: input should be greater than or equal to 1, got 0"),
        ("resources.gpu=some", "resources.gpu: input should be a valid number"),
        ("resources.cpu=0", "resources.cpu: input should be greater than 0, got 0"),
        ("study=../escape", "study: string should match pattern"),
        ("storage=5", "storage: input should be a valid string, got 5"),
        ("data.channels=[elev_m, elev_m]", "data: data.channels names a channel twice"),
        ("data.synthetic={sites: 12}", "data: give either data.table or data.synthetic, not both"),
        ("data.table=null", "data: give either data.table or data.synthetic, not neither"),
        (
            "design.split={kind: randm}",
            "design.split.0.kind: give random, spatial or checkerboard, got 'randm'",
        ),
        ("design.split={folds: 3}", "design.split.0.kind: give random, spatial or checkerboard, got None"),
        ("design.split={kind: checkerboard}", "design.split.0.degrees: missing"),
        ("design.split={kind: random, folds: 1}", "design.split.0.folds: "),
        (
            "design.split=[{kind: spatial}, {kind: random, fold: 5}]",
            "design.split.1: fold 5 does not exist: random has folds 0 to 4",
        ),
        ("design.split={kind: random, fold: [0, -1]}", "design.split.0: fold -1 does not exist"),
        (
            "design.split={kind: checkerboard, degrees: 8, fold: 2}",
            "design.split.0: fold 2 does not exist: checkerboard-8 has folds 0 to 1",
        ),
        (
            "design.split=[{kind: random, fold: 0}, {kind: random, fold: 1}]",
            "design: split random stands there twice; name its folds in one entry",
        ),
        (
            "design.split=[{kind: random, folds: 5}, {kind: random, folds: 10}]",
            "design: split random stands there twice; settings differ: make it two studies",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_field(tmp_path: Path, override: str, said: str) -> None:
    assert fault(write(tmp_path), override).startswith(said)


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        ("study: toy\n", "study: missing"),
        ("  seed: [0, 1]\n", "design.seed: missing"),
        ("  variant: [none, geoclip]\n", "design.variant: missing"),
        ("data: {table: tables/panel.parquet}\n", "data: missing"),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, dropped: str, said: str) -> None:
    assert dropped in TOY
    assert fault(write(tmp_path, TOY.replace(dropped, ""))).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TOY + "study: again\n", "not valid YAML (line 1: key 'study' stands twice)"),
        (TOY.replace("width: 4", "width: 4, width: 8"), "not valid YAML (line 9: key 'width' stands twice)"),
        ("study: [toy", "not valid YAML ("),
        ("study: !!python/object:os.system x", "not valid YAML (could not determine a constructor"),
        (b"\xff\xfe\x00\x01", "not valid YAML ("),
        ("? [a]\n: 1\n", "not valid YAML ("),
        ("", "a study is a mapping"),
        ("- study\n- data\n", "a study is a mapping"),
        ("only words", "a study is a mapping"),
        ("5: 1\n" + TOY, "5: keys should be strings"),
    ],
)
def test_what_is_no_study_is_told_from_one(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert fault(write(tmp_path, text)).startswith(said)


def test_yaml_s_own_merging_is_no_duplicate(tmp_path: Path) -> None:
    text = "train:\n  <<: {batch_size: 8, max_epochs: 3}\n  batch_size: 16\n"
    made = study.load(write(tmp_path, TOY + text))
    assert (made.train.batch_size, made.train.max_epochs) == (16, 3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dmeo", "; did you mean demo?"),
        ("qick", "; did you mean quick?"),
        ("nowhere/toy.yaml", ""),
        ("", ""),
        ("x" * 5000, ""),
    ],
)
def test_an_unknown_study_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        study.load(name)
    assert str(caught.value) == f"{name}: no such study file, and not one of demo, quick{hint}"


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)

    def refuse(self: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert fault(path) == "cannot be read (Permission denied); give another study file"


# Keys


def keys(design: dict[str, object], **others: object) -> dict[str, Cell]:
    content = {"study": "toy", "data": {"synthetic": {}}, "design": design, **others}
    made = Study.model_validate(content)
    named = {c.key("data", "weights"): c for c in made.cells()}
    assert len(named) == len(made.cells())
    return named


SPLITS = [
    {"kind": "random", "fold": 0},
    {"kind": "spatial", "folds": 3},
    {"kind": "checkerboard", "degrees": 8},
    {"kind": "checkerboard", "degrees": 16, "fold": [1]},
]
DESIGNS = st.fixed_dictionaries(
    {
        "variant": st.permutations(["none", "latlon", "sincos", "geoclip"]),
        "fusion": st.permutations(["hadamard", "concat"]),
        "split": st.permutations(SPLITS),
        "seed": st.lists(st.integers(0, 2**31), min_size=2, max_size=4, unique=True),
    }
)


@given(DESIGNS, st.data())
@settings(max_examples=25, deadline=None)
def test_more_levels_keep_the_keys_of_all_old_cells(design: dict[str, list[Any]], data: Any) -> None:
    smaller = {name: levels[: data.draw(st.integers(1, len(levels)))] for name, levels in design.items()}
    before, after = keys(smaller), keys(design)
    assert before.items() <= after.items()
    added = {name: set(map(str, levels)) - set(map(str, smaller[name])) for name, levels in design.items()}
    if added["seed"] or added["split"]:
        assert len(after) > len(before)


def test_one_more_fold_keeps_the_keys() -> None:
    design = {"variant": "none", "seed": 0, "split": {"kind": "random", "fold": [0]}}
    more = {**design, "split": {"kind": "random", "fold": [1, 0]}}
    assert keys(design).items() <= keys(more).items()
    assert len(keys(more)) == 2


def test_a_key_changes_with_what_changes_numbers_and_with_nothing_else() -> None:
    design = {"variant": "none", "seed": 0, "split": {"kind": "random", "fold": 0}}
    same: list[dict[str, Any]] = [
        {"title": "x", "question": "y", "study": "another"},
        {"storage": "elsewhere", "tracking": "http://x"},
        {"resources": {"cpu": 2, "gpu": 0}},
        {"model": {"width": 256}},  # the default, written out
    ]
    other: list[dict[str, Any]] = [{"window": 14}, {"model": {"width": 4}}, {"train": {"huber_delta": 2}}]
    (key,) = keys(design)
    for others in same:
        assert [*keys(design, **others)] == [key]
    assert len({key, *(k for others in other for k in keys(design, **others))}) == 1 + len(other)


def test_keyed_uses_the_data_and_the_encoder() -> None:
    made = study.load(
        "demo", ["data.synthetic={sites: 12, days: 30}", "design.seed=0", "design.variant=[none, geoclip]"]
    )
    panel = made.panel()
    assert isinstance(panel, Panel)
    assert panel.target.shape == (12, 30)
    named = made.keyed(panel)
    assert [*named.values()] == made.cells()
    from pm25 import encoders

    weights = encoders.fingerprint("geoclip")
    for key, cell in named.items():
        assert key == cell.key(panel.fingerprint, weights if cell.variant == "geoclip" else None)
        assert key != cell.key("another table", weights)
        assert (key != cell.key(panel.fingerprint, "other weights")) is (cell.variant == "geoclip")


def test_channels_choose_the_panel_s_features() -> None:
    made = study.load("demo", ["data={synthetic: {sites: 12, days: 30}, channels: [crn_rh_avg, day_sin]}"])
    assert made.panel().channels == ("crn_rh_avg", "day_sin")


def test_labels_tell_checkerboards_apart() -> None:
    assert [CheckerboardSplit(degrees=d).label for d in (8, 2.5)] == ["checkerboard-8", "checkerboard-2.5"]
