"""Study files: what they cross, where their paths point, and how a faulty one is told."""

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.cell import Cell
from pm25.errors import InputError
from pm25.neighbours import NeighbourSettings
from pm25.panel import CALENDAR, Panel
from pm25.settings import ENCODERS, ModelSettings, TrainSettings
from pm25.splits import CheckerboardSplit, RandomSplit
from sweeps.spec import study_file
from sweeps.spec.study import Encoders, Study

SHARED = Path(__file__).parents[3].parent / "shared"
SHIPPED = ["demo", "paper2025", "quick"]

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
        study_file.load(path, overrides)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    if not text.startswith("--set "):
        assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def arms(of: Study) -> list[tuple[str, str | None]]:
    """Variant and fusion, in the order of the grid."""
    return list(dict.fromkeys(cell.arm for cell in of.cells()))


# What a study crosses


def test_demo_is_30_cells_of_5_arms() -> None:
    demo = study_file.load("demo")
    cells = demo.cells()
    assert len(cells) == len(set(cells)) == 30  # 5 arms x (1 random fold + 2 colours) x 2 seeds
    assert arms(demo) == [
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
    quick = study_file.load("quick", ["data.table=panel.parquet"])
    assert len(quick.cells()) == 60  # 5 arms x (5 + 5 + 2 folds)
    assert len(arms(quick)) == 5
    folds = {"random": 5, "spatial": 5, "checkerboard-16": 2}
    assert {(c.split.label, c.fold) for c in quick.cells()} == {
        (label, fold) for label, number in folds.items() for fold in range(number)
    }
    with pytest.raises(InputError, match=r"not neither: --set data\.table=PANEL\.parquet$"):
        study_file.load("quick")


def test_the_published_design_is_910_cells_of_7_arms() -> None:
    published = study_file.load("paper2025", ["data.table=panel.parquet"])
    assert len(published.cells()) == 910  # 7 arms x (10 + 10 + 3 x 2 folds) x 5 seeds
    assert arms(published) == [
        *(("none", None), ("latlon", None), ("sincos", None)),
        *((variant, fusion) for variant in ("geoclip", "satclip") for fusion in ("hadamard", "concat")),
    ]
    settings = {(cell.model, cell.train) for cell in published.cells()}
    assert settings == {(ModelSettings(), TrainSettings())}  # the defaults are the published ones


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_study_says_how_many_cells_and_trials_it_has(name: str) -> None:
    first = (study_file.SHIPPED / f"{name}.yaml").read_text().splitlines()[0]
    shipped = study_file.load(name, ["data={table: panel.parquet}"])
    trials = shipped.search.trials * len(shipped.arms()) if shipped.search else 0
    said = f"{trials} search trials and " if trials else ""
    assert re.search(rf"  {said}{len(shipped.cells())} cells\b", first)


def test_the_shipped_studies_are_these() -> None:
    assert sorted(file.name for file in study_file.SHIPPED.iterdir()) == [f"{name}.yaml" for name in SHIPPED]


def test_an_address_stays_one() -> None:
    uri = "s3://bucket/a/panel.parquet"
    told = [f"data.table={uri}", f"encoders.table.path={uri}", f"encoders.satclip.checkpoint={uri}"]
    made = study_file.load("quick", told)
    assert made.data.table == uri
    assert made.encoder_options("table")["path"] == made.encoder_options("satclip")["checkpoint"] == uri
    with pytest.raises(InputError, match=r"data\.table: give a path, or an address such as .*, got 5$"):
        study_file.load("quick", ["data.table=5"])


def test_quick_names_channels_of_the_real_table() -> None:
    table = SHARED / "data" / "conus_daily_2021.parquet"
    if not table.is_file():
        pytest.skip(f"{table.name} is not in shared/data")
    channels = study_file.load("quick", [f"data.table={table}"]).data.channels
    assert channels is not None
    assert {*channels} - {*CALENDAR} <= {*pyarrow.parquet.read_schema(table).names}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_arm_stands_in_the_grid_s_first_cells(name: str) -> None:
    shipped = study_file.load(name, ["data={table: panel.parquet}"])
    cells, every = shipped.cells(), arms(shipped)
    for block in range(0, len(cells), len(every)):
        assert [c.arm for c in cells[block : block + len(every)]] == every
        assert len({(c.split.label, c.fold, c.seed) for c in cells[block : block + len(every)]}) == 1
    # The first seed's first folds, over all splits, come before any second fold or seed.
    splits = len(shipped.design.split)
    assert {(c.fold, c.seed) for c in cells[: splits * len(every)]} == {(0, 0)}
    assert [c.seed for c in cells] == sorted(c.seed for c in cells)


def test_a_variant_without_an_encoder_has_no_fusion(tmp_path: Path) -> None:
    path = write(tmp_path)
    both = study_file.load(path, ["design.fusion=[hadamard, concat]"])
    assert arms(both) == [("none", None), ("geoclip", "hadamard"), ("geoclip", "concat")]
    assert all((c.fusion is None) == (c.variant == "none") for c in both.cells())
    assert len(both.cells()) == 3 * 7 * 2
    assert (
        len(study_file.load(path, ["design.variant=none", "design.fusion=[hadamard, concat]"]).cells())
        == 7 * 2
    )


def test_folds_are_all_of_a_split_s_unless_named(tmp_path: Path) -> None:
    def folds(text: str) -> list[int]:
        cells = study_file.load(
            write(tmp_path), ["design.variant=none", "design.seed=0", f"design.split={text}"]
        )
        return [c.fold for c in cells.cells()]

    assert folds("{kind: random}") == [0, 1, 2, 3, 4]
    assert folds("{kind: spatial, folds: 3}") == [0, 1, 2]
    assert folds("{kind: checkerboard, degrees: 8}") == [0, 1]
    assert folds("{kind: checkerboard, degrees: 8, fold: 1}") == [1]
    assert folds("{kind: random, folds: 10, fold: [9, 3]}") == [9, 3]


def test_one_level_needs_no_list(tmp_path: Path) -> None:
    listed = write(tmp_path)
    one = study_file.load(
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
    assert study_file.load(write(tmp_path), twice).cells() == study_file.load(write(tmp_path)).cells()


# Heads, encoders, neighbours, protocol


def test_a_matched_head_is_one_more_none_for_each_fusion(tmp_path: Path) -> None:
    path = write(tmp_path)
    both = ["design.head=[plain, matched]", "design.fusion=[hadamard, concat]"]
    encoded: list[tuple[str, str | None]] = [("geoclip", "hadamard"), ("geoclip", "concat")]
    matched: list[tuple[str, str | None]] = [("none", "hadamard"), ("none", "concat")]
    assert arms(study_file.load(path, both)) == [("none", None), *matched, *encoded]
    assert arms(study_file.load(path, [both[1], "design.head=matched"])) == [*matched, *encoded]
    cells = study_file.load(path, both).cells()
    assert all((c.head == "matched") == (c.variant == "none" and c.fusion is not None) for c in cells)
    assert len(cells) == len(set(cells)) == 5 * 7 * 2


def test_a_head_is_for_none_alone(tmp_path: Path) -> None:
    others = "design.variant=[latlon, random]"
    plain = study_file.load(write(tmp_path), [others]).cells()
    assert study_file.load(write(tmp_path), [others, "design.head=[plain, matched]"]).cells() == plain
    # Coordinates have a plain head, whatever head 'none' is given.
    assert study_file.load(write(tmp_path), [others, "design.head=matched"]).cells() == plain


def test_protocol_neighbours_and_blocks_reach_every_cell(tmp_path: Path) -> None:
    made = study_file.load(
        write(tmp_path), ["protocol=paper", "neighbours={k: 4}", "model.projection=norm_tanh"]
    )
    assert {c.protocol for c in made.cells()} == {"paper"}
    assert {c.neighbours for c in made.cells()} == {NeighbourSettings(k=4)}
    # Where nothing is projected there is no such setting, and the cell keeps its key.
    assert {(c.variant, c.model.projection) for c in made.cells()} == {
        ("none", None),
        ("geoclip", "norm_tanh"),
    }
    plain = study_file.load(write(tmp_path))
    assert {(c.protocol, c.neighbours) for c in plain.cells()} == {("strict", None)}
    defaults = study_file.load(write(tmp_path), ["neighbours={}"])
    assert {c.neighbours for c in defaults.cells()} == {NeighbourSettings()}
    assert study_file.load(write(tmp_path), ["neighbours=null"]) == plain


def test_whose_weights_are_kept(tmp_path: Path) -> None:
    assert study_file.load(write(tmp_path)).keep_weights == "winners"
    for value in (True, False, "winners"):
        assert study_file.load(write(tmp_path), [f"keep_weights={str(value).lower()}"]).keep_weights == value
    with pytest.raises(InputError, match=r"toy.yaml: keep_weights: .*, got 'best'"):
        study_file.load(write(tmp_path), ["keep_weights=best"])


def test_an_encoder_is_told_what_it_takes(tmp_path: Path) -> None:
    made = study_file.load(write(tmp_path), ["encoders.random.dim=8", "encoders.shuffled.seed=3"])
    assert made.encoder_options("random") == {"dim": 8, "seed": 0}
    assert made.encoder_options("shuffled") == {"seed": 3}
    assert made.encoder_options("geoclip") == made.encoder_options("latlon") == {}
    made = study_file.load(
        write(tmp_path), ["design.variant=satclip", "encoders.satclip.model=some/hub-name"]
    )
    assert made.encoder_options("satclip") == {"model": "some/hub-name"}
    made = study_file.load(write(tmp_path), ["design.variant=table", "encoders.table.path=/v.parquet"])
    assert made.encoder_options("table") == {"path": Path("/v.parquet"), "trained_on_target": False}


def test_paths_of_encoders_are_relative_like_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    monkeypatch.chdir(here)
    told = "encoders: {satclip: {checkpoint: ../w/a.ckpt}, table: {path: v.parquet}}\n"
    path = write(there, TOY + told)

    def paths(*overrides: str) -> tuple[Path | None, Path]:
        encoders = study_file.load(path, overrides).encoders
        assert encoders.satclip is not None
        assert encoders.table is not None
        return encoders.satclip.checkpoint, encoders.table.path

    assert paths() == (tmp_path / "w" / "a.ckpt", there / "v.parquet")
    assert paths("encoders.satclip.checkpoint=b.ckpt") == (here / "b.ckpt", there / "v.parquet")
    assert paths("encoders.table={path: x/u.parquet}") == (tmp_path / "w" / "a.ckpt", here / "x/u.parquet")
    assert paths("encoders.table.path=/far/u.parquet")[1] == Path("/far/u.parquet")
    hub = study_file.load(path, ["encoders.satclip={model: microsoft/SatCLIP-ViT16-L40}"]).encoders.satclip
    assert hub is not None
    assert (hub.model, hub.checkpoint) == ("microsoft/SatCLIP-ViT16-L40", None)  # a name, no path


def test_splits_say_which_columns_they_go_by(tmp_path: Path) -> None:
    assert study_file.load(write(tmp_path)).groups() == ()
    made = study_file.load(
        write(tmp_path),
        [
            "design.split=[{kind: group, column: state, values: [CA, TX]}, {kind: random}, "
            "{kind: group, column: biome, values: desert}, {kind: group, column: state, values: [NY]}]"
        ],
    )
    assert made.groups() == ("state", "biome")
    labels = dict.fromkeys(c.split.label for c in made.cells())
    assert [*labels] == ["group-state-CA+TX", "random", "group-biome-desert", "group-state-NY"]


def test_the_columns_of_groups_are_read_and_are_no_channels(tmp_path: Path) -> None:
    from pm25.sources import synthetic

    frame = synthetic.synthesize(sites=12, days=30)
    frame["half"] = pd.Series(frame["site_id"].rank(method="dense") > 6).map({False: "low", True: "high"})
    (tmp_path / "tables").mkdir()
    frame.to_parquet(tmp_path / "tables" / "panel.parquet", index=False)
    made = study_file.load(write(tmp_path), ["design.split={kind: group, column: half, values: [high, low]}"])
    panel = made.panel()
    assert sorted({*panel.groups["half"].tolist()}) == ["high", "low"]
    assert "half" not in panel.channels
    with pytest.raises(InputError, match="nowhere"):
        study_file.load(
            write(tmp_path), ["design.split={kind: group, column: nowhere, values: [a, b]}"]
        ).panel()


def test_a_leaking_channel_is_for_the_published_protocol(tmp_path: Path) -> None:
    from pm25.sources import synthetic

    (tmp_path / "tables").mkdir()
    frame = synthetic.synthesize(sites=12, days=30).assign(knnidw_pm25=5.0)
    frame.to_parquet(tmp_path / "tables" / "panel.parquet", index=False)
    with pytest.raises(InputError, match=r"channel knnidw_pm25 holds .* set neighbours, or set protocol"):
        study_file.load(write(tmp_path)).panel()
    assert "knnidw_pm25" in study_file.load(write(tmp_path), ["protocol=paper"]).panel().channels


def test_null_means_every_channel() -> None:
    some = ["data={synthetic: {sites: 12, days: 30}, channels: [elev_m]}"]
    every = study_file.load("demo", [*some, "data.channels=null"])
    assert every.data.channels is None
    assert len(every.panel().channels) > 1


# Overrides and paths


def test_overrides_nest_and_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path)
    made = study_file.load(
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
    other = study_file.load("demo", ["data.synthetic=null", "data.table=p.parquet"])
    assert other.data.synthetic is None
    assert other.data.table == Path.cwd() / "p.parquet"
    # The likeliest slip says how to fix it.
    with pytest.raises(InputError, match=r"not both: --set data\.synthetic=null$"):
        study_file.load("demo", ["data.table=p.parquet"])


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
        made = study_file.load(reference)
        assert made.data.table == there / "tables" / "panel.parquet"
        assert made.storage == str(tmp_path / "out")
    for overrides in (
        ["data.table=p.parquet", "storage=mine"],
        ["data={table: p.parquet}", "storage=./mine/x/.."],
    ):
        made = study_file.load(path, overrides)
        assert made.data.table == here / "p.parquet"
        assert made.storage == str(here / "mine")
    assert study_file.load(path, ["storage=/far/away"]).storage == "/far/away"
    assert study_file.load(path, ["storage=s3://bucket/x"]).storage == "s3://bucket/x"


@pytest.mark.parametrize(
    ("reference", "overrides"),
    [
        ("demo", ["design.variant=[none, latlon]", "train.max_epochs=3"]),  # one claim of two goes
        ("demo", ["design.variant=[none, sincos]"]),  # both
        ("quick", ["data.table=panel.parquet", "storage=s3://bucket/x", "title='On: off'"]),
        ("paper2025", ["encoders.satclip={checkpoint: ~/weights.ckpt}", "data.table=panel.parquet"]),
        ("toy.yaml", ["design.seed=[3]"]),
    ],
)
def test_the_resolved_content_is_the_same_study_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, overrides: list[str]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    write(here)
    monkeypatch.chdir(here)
    declared, content = study_file.resolve(reference, overrides)
    assert declared == study_file.load(reference, overrides)
    monkeypatch.chdir(there)
    (there / "shipped.yaml").write_text(yaml.safe_dump(content))
    assert study_file.load("shipped.yaml") == declared


def test_results_stand_beside_the_file_or_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert study_file.load(write(tmp_path)).storage == str(tmp_path / "results")
    assert study_file.load("demo").storage == str(here / "results")


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert study_file.load("demo", ["storage=~/results"]).storage == str(tmp_path / "results")
    lost = study_file.load(write(tmp_path, TOY.replace("tables/", "~nobody-of-this-name/")))
    assert lost.data.table == tmp_path / "~nobody-of-this-name" / "panel.parquet"


# Faults

KINDS = "random, temporal, spatial, checkerboard, group or clusters"


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
        (
            "model.zzzzz=1",
            "model.zzzzz: unknown key; known keys: width, depth, attention_units, dropout, initialiser, "
            "projection",
        ),
        # The least nested of the keys with that name, and of these the first.
        ("seed=1", "seed: unknown key; did you mean design.seed?"),
        ("table=p.parquet", "table: unknown key; did you mean data.table?"),
        ("train.model={width: 4}", "train.model: unknown key; did you mean model?"),
        ("checkpoint=x.ckpt", "checkpoint: unknown key; did you mean encoders.satclip.checkpoint?"),
        ("heads=matched", "heads: unknown key; did you mean design.head?"),
        ("keep_weight=true", "keep_weight: unknown key; did you mean keep_weights?"),
        (
            "encoders.random={dmi: 8}",
            "encoders.random.dmi: unknown key; did you mean encoders.random.dim?",
        ),
        (
            "encoders.table={path: v.parquet, tolerance: 1}",
            "encoders.table.tolerance: unknown key; did you mean encoders.table.tolerance_deg?",
        ),
        ("neighbours={kk: 3}", "neighbours.kk: unknown key; did you mean neighbours.k?"),
        (
            "design.split={kind: temporal, test_from: 2021-10-01, seed: 0}",
            "design.split.0.seed: this kind of split has no such key",
        ),
        (
            "design.split={kind: clusters, fodls: 3}",
            "design.split.0.fodls: unknown key; did you mean design.split.folds?",
        ),
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
            "design.variant.0: input should be 'none', 'latlon', 'sincos', 'geoclip', 'satclip', 'table', "
            "'random' or 'shuffled', got 'geoclop'",
        ),
        ("design.variant=[none, geoclop]", "design.variant.1: "),
        (
            "design.fusion=sum",
            "design.fusion.0: input should be 'hadamard', 'concat', 'film' or 'gated', got 'sum'",
        ),
        ("design.head=both", "design.head.0: input should be 'plain' or 'matched', got 'both'"),
        ("design.head=[]", "design.head: "),
        ("protocol=papr", "protocol: input should be 'strict' or 'paper', got 'papr'"),
        ("data.channels=[]", "data.channels: "),
        ("data.channels=[1]", "data.channels.0: input should be a valid string, got 1"),
        ("neighbours.k=0", "neighbours.k: input should be greater than 0, got 0"),
        ("neighbours.hide=near", "neighbours.hide: input should be 'test_distance', got 'near'"),
        ("neighbours=true", "neighbours: input should be a valid dictionary"),
        ("encoders.random.dim=0", "encoders.random.dim: input should be greater than or equal to 1, got 0"),
        ("encoders.shuffled.seed=-1", "encoders.shuffled.seed: input should be greater than or equal to 0"),
        (
            "encoders.table={tolerance_deg: 1}",
            "encoders.table.path: missing; it has no default",
        ),
        (
            "encoders.satclip={}",
            "encoders.satclip: give either checkpoint (a file) or model (a hub name)",
        ),
        (
            "encoders.satclip={checkpoint: a.ckpt, model: b}",
            "encoders.satclip: give either checkpoint (a file) or model (a hub name)",
        ),
        (
            "design.variant=[none, satclip]",
            "encoders.satclip: missing; --set encoders.satclip.checkpoint=FILE or model=HUB_NAME",
        ),
        (
            "design.variant=table",
            "encoders.table: missing; --set encoders.table.path=VECTORS.parquet",
        ),
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
            f"design.split.0.kind: give {KINDS}, got 'randm'",
        ),
        ("design.split={folds: 3}", f"design.split.0.kind: give {KINDS}, got None"),
        ("design.split={kind: group, values: [a]}", "design.split.0.column: missing; it has no default"),
        (
            "design.split={kind: group, column: x, values: ['']}",
            "design.split.0.values.0: string should have",
        ),
        (
            "design.split={kind: group, column: state, values: [CA, CA]}",
            "design.split.0.values: a value stands there twice",
        ),
        (
            "design.split={kind: temporal, test_from: autumn}",
            "design.split.0.test_from: input should be a valid date",
        ),
        ("design.split={kind: clusters, folds: 1}", "design.split.0.folds: input should be greater than"),
        ("design.split={kind: random, fold: [a]}", "design.split.0.fold.0: input should be a valid integer"),
        (
            "design.split={kind: checkerboard, degrees: 8, origin: [8, 0]}",
            "design.split.0: origin: a whole cell only swaps the colours; stay below 8",
        ),
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


def test_the_published_protocol_has_a_target_scale_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert {c.train.target for c in study_file.load(path, ["train.target=log1p"]).cells()} == {"log1p"}
    said = fault(path, "train.target=log1p", "protocol=paper")
    assert said == "train.target: protocol paper has a target scale of its own; --set train.target=null"


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
    made = study_file.load(write(tmp_path, TOY + text))
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
        study_file.load(name)
    assert str(caught.value) == f"{name}: no such study file, and not one of demo, paper2025, quick{hint}"


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
    {"kind": "clusters", "folds": 2},
    {"kind": "group", "column": "state", "values": ["CA", "TX"]},
    {"kind": "temporal", "test_from": "2021-10-01"},
]
DESIGNS = st.fixed_dictionaries(
    {
        "variant": st.permutations(["none", "latlon", "sincos", "geoclip", "random", "shuffled"]),
        "fusion": st.permutations(["hadamard", "concat", "film"]),
        "head": st.permutations(["plain", "matched"]),
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
    same += [
        {"keep_weights": True},
        {"keep_weights": False},
        {"encoders": {"random": {"dim": 8}, "table": {"path": "v.parquet"}}},
        {"neighbours": None, "protocol": "strict"},
    ]
    other: list[dict[str, Any]] = [{"window": 14}, {"model": {"width": 4}}, {"train": {"huber_delta": 2}}]
    other += [{"protocol": "paper"}, {"neighbours": {}}, {"neighbours": {"k": 4}}]
    (key,) = keys(design)
    for others in same:
        assert [*keys(design, **others)] == [key]
    assert len({key, *(k for others in other for k in keys(design, **others))}) == 1 + len(other)


def test_keyed_uses_the_data_and_the_encoder() -> None:
    made = study_file.load(
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


def vectors(path: Path, scale: float = 1.0) -> Path:
    """A table of two values for each place of the synthetic panel `SMALL`."""
    from pm25.sources import synthetic

    places = synthetic.synthesize(sites=12, days=30).drop_duplicates("site_id")
    path.parent.mkdir(exist_ok=True)
    made = places[["site_id"]].assign(a=scale * places["lat"], b=scale * places["lon"])
    made.to_parquet(path, index=False)
    return path


SMALL = ["data.synthetic={sites: 12, days: 30}", "design.seed=0"]


def test_a_key_depends_on_the_bytes_of_a_table_and_not_on_its_path(tmp_path: Path) -> None:
    def named(path: Path) -> dict[str, Cell]:
        made = study_file.load(
            "demo", [*SMALL, "design.variant=[none, table]", f"encoders.table.path={path}"]
        )
        return made.keyed(made.panel())

    here = named(vectors(tmp_path / "v.parquet"))
    assert {c.variant for c in here.values()} == {"none", "table"}
    assert named(vectors(tmp_path / "moved" / "w.parquet")) == here
    other = named(vectors(tmp_path / "v.parquet", scale=2.0))
    assert {k: c for k, c in other.items() if c.variant == "none"}.items() <= here.items()
    tables = {k for k, c in other.items() if c.variant == "table"}
    assert tables
    assert not tables & here.keys()


def test_a_table_of_places_may_have_a_tolerance_and_one_of_sites_none(tmp_path: Path) -> None:
    from pm25 import encoders

    options = ["design.variant=table", f"encoders.table.path={vectors(tmp_path / 'v.parquet')}"]
    made = study_file.load("demo", options)
    assert encoders.load("table", **made.encoder_options("table")).dim == 2
    options.append("encoders.table.tolerance_deg=0.5")
    assert study_file.load("demo", options).encoder_options("table")["tolerance_deg"] == 0.5


def test_an_encoder_s_options_change_its_own_keys_only(tmp_path: Path) -> None:
    def named(*overrides: str) -> dict[str, str]:
        made = study_file.load(
            "demo", [*SMALL, "design.variant=[none, geoclip, random, shuffled]", *overrides]
        )
        return {k: c.variant for k, c in made.keyed(made.panel()).items()}

    plain = named()
    assert {*plain.values()} == {"none", "geoclip", "random", "shuffled"}
    for variant, option in (("random", "dim=8"), ("random", "seed=1"), ("shuffled", "seed=1")):
        changed = named(f"encoders.{variant}.{option}")
        assert {changed[k] for k in changed.keys() - plain.keys()} == {variant}
        assert {k for k, v in plain.items() if v != variant} <= changed.keys()
    told = named(f"encoders.table.path={vectors(tmp_path / 'v.parquet')}")
    assert told == plain  # an encoder that no arm uses


def test_an_encoder_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    for variant, option in (("table", "path"), ("satclip", "checkpoint")):
        lost = [f"design.variant={variant}", f"encoders.{variant}.{option}={tmp_path / 'lost'}"]
        made = study_file.load("demo", [*SMALL, *lost])  # planning reads no weights before the keys
        with pytest.raises(InputError) as caught:
            made.keyed(made.panel())
        assert len(str(caught.value).splitlines()) == 1
        assert str(tmp_path / "lost") in str(caught.value)


def test_every_encoder_has_a_place_in_the_file() -> None:
    assert {*Encoders.model_fields} | {"geoclip"} == ENCODERS


def test_channels_choose_the_panel_s_features() -> None:
    made = study_file.load(
        "demo", ["data={synthetic: {sites: 12, days: 30}, channels: [crn_rh_avg, day_sin]}"]
    )
    assert made.panel().channels == ("crn_rh_avg", "day_sin")


def test_labels_tell_checkerboards_apart() -> None:
    assert [CheckerboardSplit(degrees=d).label for d in (8, 2.5)] == ["checkerboard-8", "checkerboard-2.5"]
