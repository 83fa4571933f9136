"""Studies: the cells that they make, the keys of these, and the data that they read."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pm25.cell import Cell
from pm25.errors import InputError
from pm25.neighbours import NeighbourSettings
from pm25.panel import Panel
from pm25.settings import ENCODERS, ModelSettings, TrainSettings
from pm25.splits import CheckerboardSplit, RandomSplit
from pm25.tables.schema import CALENDAR
from sweeps.spec import study_file
from sweeps.spec.study import Encoders, Study
from tests.errors import refuses
from tests.study_reference import attribute_docstrings
from tests.sweeps.spec.toy import TOY, write

SHARED = Path(__file__).parents[3].parent / "shared"
SHIPPED = ["demo", "paper2025", "quick", "smoke"]


def arms(of: Study) -> list[tuple[str, str | None]]:
    """Variant and fusion, in the order of the grid."""
    trained = (cell for cell in of.cells() if not cell.is_reference)
    return list(dict.fromkeys((cell.variant, cell.fusion) for cell in trained))


# What a study crosses


def test_demo_is_51_cells_of_3_arms_and_51_of_3_references() -> None:
    demo = study_file.load("demo")
    cells, references = demo.cells()[:51], demo.cells()[51:]
    assert len(set(cells)) == 51  # 3 arms x (5 spatial folds + 6 origins of 2 colours)
    assert (len(references), references) == (51, demo.reference_cells())
    assert arms(demo) == [("none", None), ("latlon", None), ("geoclip", "hadamard")]
    assert {(c.split.label, c.fold) for c in cells} == {
        *(("spatial", fold) for fold in range(5)),
        *(("checkerboards-16", fold) for fold in range(12)),
    }
    assert {c.seed for c in cells} == {0}
    assert {c.model.width for c in cells} == {16}
    assert {c.train.max_epochs for c in cells} == {6}
    assert {c.train.patience for c in cells} == {30}  # the file names none
    assert all(c.reserve is not None and c.reserve.share == 0.15 for c in cells)
    assert [claim.truth for claim in demo.claims] == [True, True]


def test_quick_is_130_cells_and_78_of_references_on_a_table_of_the_users() -> None:
    quick = study_file.load("quick", ["data.table=panel.parquet"])
    assert len(quick.cells()) == 130 + 78  # 5 arms and 3 references x (5 + 5 + 2 x 8 folds)
    assert len(arms(quick)) == 5
    folds = {"random": 5, "spatial": 5, "checkerboards-16": 16}
    assert {(c.split.label, c.fold) for c in quick.cells()} == {
        (label, fold) for label, number in folds.items() for fold in range(number)
    }
    with refuses("quick.yaml", "data", "--set data.table="):
        study_file.load("quick")


def test_the_published_design_is_980_cells_of_7_arms_and_210_of_references() -> None:
    published = study_file.load("paper2025", ["data.table=panel.parquet"])
    cells = published.cells()[:-210]
    assert len(cells) == 980  # 7 arms x (10 + 10 + 2 x (5 + 15 + 5) folds) x 2 seeds
    assert published.cells()[-210:] == published.reference_cells()  # 3 x 70 folds
    assert arms(published) == [
        *(("none", None), ("latlon", None), ("sincos", None)),
        *((variant, fusion) for variant in ("geoclip", "satclip") for fusion in ("hadamard", "concat")),
    ]
    settings = {(cell.model, cell.train) for cell in cells}
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
    addresses = [f"data.table={uri}", f"encoders.table.path={uri}", f"encoders.satclip.checkpoint={uri}"]
    made = study_file.load("quick", addresses)
    assert made.data.table == uri
    assert made.encoder_options("table")["path"] == made.encoder_options("satclip")["checkpoint"] == uri
    with refuses("--set data.table=5", "data.table", 5):
        study_file.load("quick", ["data.table=5"])


def test_quick_names_channels_of_the_real_table() -> None:
    table = SHARED / "data" / "conus_daily_2021.parquet"
    if not table.is_file():
        pytest.skip(f"{table.name} is not in shared/data")
    channels = study_file.load("quick", [f"data.table={table}"]).data.channels
    assert channels is not None
    assert {*channels} - {*CALENDAR} <= {*pyarrow.parquet.read_schema(table).names}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_arm_is_among_the_first_cells(name: str) -> None:
    shipped = study_file.load(name, ["data={table: panel.parquet}"])
    cells, every = [cell for cell in shipped.cells() if not cell.is_reference], arms(shipped)
    assert cells == shipped.cells()[: len(cells)]  # references come last
    for block in range(0, len(cells), len(every)):
        assert [(c.variant, c.fusion) for c in cells[block : block + len(every)]] == every
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
    assert folds("{kind: checkerboards, degrees: 8, origins: 3}") == [*range(6)]
    assert folds("{kind: blocks, folds: 2, deals: 4, fold: [7, 0]}") == [7, 0]


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


def test_only_none_has_a_matched_head(tmp_path: Path) -> None:
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
    # A cell without an embedding has no projection, so its key does not change.
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
    for value in (True, False, "winners", "folds"):
        assert study_file.load(write(tmp_path), [f"keep_weights={str(value).lower()}"]).keep_weights == value
    with refuses("--set keep_weights=best", "keep_weights", "'best'"):
        study_file.load(write(tmp_path), ["keep_weights=best"])


def test_the_first_day_of_a_synthetic_panel(tmp_path: Path) -> None:
    sets = ["data.table=null", "data.synthetic={sites: 12, days: 30, start: 2021-07-01}"]
    panel = study_file.load(write(tmp_path), sets).panel()
    assert (str(panel.dates[0]), str(panel.dates[-1])) == ("2021-07-01", "2021-07-30")
    with refuses(None, "data.synthetic.start", "soon"):
        study_file.load(write(tmp_path), [*sets, "data.synthetic.start=soon"])


def test_columns_of_the_monitors_are_checked_before_a_run(tmp_path: Path) -> None:
    from pm25.sources import synthetic

    reference = write(tmp_path)
    with refuses(None, "analysis.monitor_columns", "setting"):
        study_file.load(reference, ["data={synthetic: {}}", "analysis.monitor_columns=setting"])
    table = tmp_path / "panel.parquet"
    synthetic.synthesize(sites=12, days=30).to_parquet(table)
    named = ["analysis.monitor_columns=[elev_m, setting]"]
    with refuses(table.name, "setting", "elev_m"):
        study_file.load(reference, [f"data.table={table}", *named]).panel()


def test_draws_of_untrained_encoders_are_variants(tmp_path: Path) -> None:
    reference = write(tmp_path)
    drawn = study_file.load(
        reference, ["design.variant=[none, geoclip, untrained_geoclip]", "design.draws=3"]
    )
    draws = [f"untrained_geoclip_{draw}" for draw in range(3)]
    assert list(drawn.design.variant) == ["none", "geoclip", *draws]
    assert [arm.variant for arm in drawn.arms()] == ["none", "geoclip", *draws]
    assert {contrast.arm.variant for contrast in drawn.contrasts()} == {"geoclip"}  # no family of draws
    assert drawn.encoder_options("untrained_geoclip_2") == {}
    assert len(study_file.load(reference, ["design.variant=[none, untrained_geoclip]"]).design.variant) == 20
    with refuses(None, "design.draws", "untrained_geoclip"):
        study_file.load(reference, ["design.draws=3"])
    with refuses(None, "design.draws", "101"):
        study_file.load(reference, ["design.variant=untrained_geoclip", "design.draws=101"])
    with refuses(None, "encoders.satclip", "checkpoint=FILE"):
        study_file.load(reference, ["design.variant=[none, untrained_satclip]"])
    one = study_file.load(reference, ["design.variant=[none, untrained_geoclip_7]"])
    assert list(one.design.variant) == ["none", "untrained_geoclip_7"]


def test_encoder_options(tmp_path: Path) -> None:
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
    paths_ = "encoders: {satclip: {checkpoint: ../w/a.ckpt}, table: {path: v.parquet}}\n"
    path = write(there, TOY + paths_)

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
    other = study_file.load(write(tmp_path), ["design.split={kind: group, column: nowhere, values: [a, b]}"])
    with pytest.raises(InputError) as raised:
        other.panel()
    assert "nowhere" in str(raised.value)


def test_a_leaking_channel_is_for_the_published_protocol(tmp_path: Path) -> None:
    from pm25.sources import synthetic

    (tmp_path / "tables").mkdir()
    frame = synthetic.synthesize(sites=12, days=30)
    frame["knnidw_pm25"] = frame.index % 7 + 0.5
    frame.to_parquet(tmp_path / "tables" / "panel.parquet", index=False)
    with pytest.raises(InputError) as raised:
        study_file.load(write(tmp_path)).panel()
    for name in ("knnidw_pm25", "neighbours", "protocol"):
        assert name in str(raised.value)
    assert "knnidw_pm25" in study_file.load(write(tmp_path), ["protocol=paper"]).panel().channels


def test_null_means_every_channel() -> None:
    some = ["data={synthetic: {sites: 12, days: 30}, channels: [elev_m]}"]
    every = study_file.load("demo", [*some, "data.channels=null"])
    assert every.data.channels is None
    assert len(every.panel().channels) > 1


# Keys


def by_key(of: Study) -> dict[str, Cell]:
    """The cells of the grid by their keys."""
    key = of.keys(of.panel())
    return {key(cell): cell for cell in of.cells()}


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


def test_the_prediction_domain_is_in_the_keys_of_knndm_cells_alone(tmp_path: Path) -> None:
    from pm25.sources import synthetic

    (tmp_path / "tables").mkdir()
    synthetic.synthesize(sites=12, days=30).to_parquet(tmp_path / "tables" / "panel.parquet", index=False)
    split = "design.split=[{kind: knndm, folds: 3}, {kind: spatial, folds: 3}]"
    names = ("points.csv", "same.csv", "other.csv")
    for name, north in zip(names, (40, 40.0, 41), strict=True):
        (tmp_path / name).write_text(f"lat,lon\n{north},-100\n")
    study = write(tmp_path)
    content = yaml.safe_load(Path(study).read_text())
    content["data"]["domain"] = "points.csv"
    Path(study).write_text(yaml.safe_dump(content))
    assert study_file.load(study, [split]).data.domain == tmp_path / "points.csv"
    files = [f"data.domain={tmp_path / name}" for name in names]
    keyed = [by_key(study_file.load(study, [split, change])) for change in (*files, "data.domain=null")]
    for kind in ("knndm", "spatial"):
        first, same, other, land = (
            {key for key, cell in found.items() if cell.split.kind == kind} for found in keyed
        )
        assert first == same
        assert (first.isdisjoint(other), first.isdisjoint(land)) == (kind == "knndm", kind == "knndm")


def test_one_more_fold_keeps_the_keys() -> None:
    design = {"variant": "none", "seed": 0, "split": {"kind": "random", "fold": [0]}}
    more = {**design, "split": {"kind": "random", "fold": [1, 0]}}
    assert keys(design).items() <= keys(more).items()
    assert len(keys(more)) == 2


@pytest.mark.parametrize(
    ("few", "more"),
    [
        ({"origins": 2}, {"origins": 3}),
        ({"origins": 2, "holdout": "rotate"}, {"origins": 3, "holdout": "rotate"}),
        ({"kind": "blocks", "folds": 4, "deals": 2}, {"kind": "blocks", "folds": 4, "deals": 3}),
    ],
)
def test_more_origins_or_deals_keep_the_keys(
    tmp_path: Path, few: dict[str, Any], more: dict[str, Any]
) -> None:
    base: dict[str, Any] = {"kind": "checkerboards", "degrees": 16}
    one, other = (
        study_file.load(write(tmp_path), [f"design.split={json.dumps(base | changes)}"])
        for changes in (few, more)
    )
    (split, larger) = (of.design.split[0].split for of in (one, other))
    assert [*one.design.split[0].folds] == [*range(split.n_folds)]
    keys = [{cell.key("data", "encoder") for cell in of.cells()} for of in (one, other)]
    assert keys[0] < keys[1]
    assert len(keys[0]) / len(keys[1]) == split.n_folds / larger.n_folds == 2 / 3
    kept = study_file.load(
        write(tmp_path), [f"design.split={json.dumps(base | few)}", "keep_weights=winners"]
    )
    assert all(kept.keeps_weights(cell) for cell in kept.cells())


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
        {"train": {"precision": "fp32"}},
    ]
    other: list[dict[str, Any]] = [{"window": 14}, {"model": {"width": 4}}, {"train": {"huber_delta": 2}}]
    other += [{"train": {"loss": "huber"}}, {"train": {"loss": "absolute"}}]
    other += [{"train": {"precision": "bf16"}}]
    other += [{"protocol": "paper"}, {"neighbours": {}}, {"neighbours": {"k": 4}}]
    (key,) = keys(design)
    for others in same:
        assert [*keys(design, **others)] == [key]
    assert len({key, *(k for others in other for k in keys(design, **others))}) == 1 + len(other)


def test_a_key_depends_on_the_data_and_the_encoder() -> None:
    made = study_file.load(
        "demo", ["data.synthetic={sites: 12, days: 30}", "design.seed=0", "design.variant=[none, geoclip]"]
    )
    panel = made.panel()
    assert isinstance(panel, Panel)
    assert panel.target.shape == (12, 30)
    named = by_key(made)
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


SMALL = ["data.synthetic={sites: 12, days: 30}", "design.seed=0", "references=[]"]


def test_a_key_depends_on_the_bytes_of_a_table_and_not_on_its_path(tmp_path: Path) -> None:
    def named(path: Path) -> dict[str, Cell]:
        made = study_file.load(
            "demo", [*SMALL, "design.variant=[none, table]", f"encoders.table.path={path}"]
        )
        return by_key(made)

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
        return {k: c.variant for k, c in by_key(made).items()}

    plain = named()
    assert {*plain.values()} == {"none", "geoclip", "random", "shuffled"}
    for variant, option in (("random", "dim=8"), ("random", "seed=1"), ("shuffled", "seed=1")):
        changed = named(f"encoders.{variant}.{option}")
        assert {changed[k] for k in changed.keys() - plain.keys()} == {variant}
        assert {k for k, v in plain.items() if v != variant} <= changed.keys()
    unused = named(f"encoders.table.path={vectors(tmp_path / 'v.parquet')}")
    assert unused == plain  # an encoder that no arm uses


def test_a_missing_encoder_file_is_named(tmp_path: Path) -> None:
    for variant, option in (("table", "path"), ("satclip", "checkpoint")):
        lost = [f"design.variant={variant}", f"encoders.{variant}.{option}={tmp_path / 'lost'}"]
        made = study_file.load("demo", [*SMALL, *lost])  # planning reads no weights before the keys
        with pytest.raises(InputError) as raised:
            by_key(made)
        assert str(tmp_path / "lost") in str(raised.value)


def blocks(kind: Any) -> set[type[BaseModel]]:
    """Every settings block that a block's fields may hold, and the block itself."""
    found: set[type[BaseModel]] = set()
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        found |= {kind}.union(*(blocks(info.annotation) for info in kind.model_fields.values()))
    return found.union(*(blocks(inner) for inner in get_args(kind)))


def test_every_key_of_a_study_file_is_described() -> None:
    """The reference of the study file is generated from these descriptions."""
    own = [block for block in blocks(Study) if block.__module__.startswith("sweeps.spec.")]
    assert {"Study", "Search", "Pruner", "AdaptiveSeeds", "PublishedValue"} <= {b.__name__ for b in own}
    texts = {
        f"{block.__name__}.{name}": attribute_docstrings(block).get(name, "")
        for block in own
        for name in block.model_fields
    }
    assert [name for name, text in texts.items() if not text.endswith(".")] == []


def test_every_encoder_has_a_place_in_the_file() -> None:
    assert {*Encoders.model_fields} | {"geoclip"} == ENCODERS


def test_channels_choose_the_panel_s_features() -> None:
    made = study_file.load(
        "demo", ["data={synthetic: {sites: 12, days: 30}, channels: [crn_rh_avg, day_sin]}"]
    )
    assert made.panel().channels == ("crn_rh_avg", "day_sin")


def test_labels_tell_checkerboards_apart() -> None:
    assert [CheckerboardSplit(degrees=d).label for d in (8, 2.5)] == ["checkerboard-8", "checkerboard-2.5"]
