"""Study files: overrides, paths, and errors that name the file, the key and the value."""

import os
import re
from pathlib import Path

import pytest
import yaml

from sweeps.spec import study_file
from tests.errors import refuses
from tests.sweeps.spec.toy import TOY, refused, write

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
    with refuses("--set data.table=p.parquet", "data", "--set data.synthetic=null"):
        study_file.load("demo", ["data.table=p.parquet"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.width", ("", "a.b", "--set data.table=panel")),
        ("=4", ("", "a.b", "--set data.table=panel")),
        ("model..width=4", ("", "a.b", "--set data.table=panel")),
        ("model width=4", ("", "a.b", "--set data.table=panel")),
        ("design.seed=[0", ("design.seed",)),
        ("title=a: b: c", ("title",)),
        ("model={width: 4, width: 8}", ("model",)),
        ("study.name=x", ("study", "'toy'", "--set study=VALUE")),
        ("model.width.units=4", ("model.width", "4", "--set model.width=VALUE")),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, said: tuple[str, ...]) -> None:
    with refuses(f"--set {override}", *said):
        study_file.load(write(tmp_path), [override])


def test_a_study_file_named_without_its_suffix_is_the_one_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.path.basename(write(tmp_path)).removesuffix(".yaml")
    with refuses(name, "", f"use {name}.yaml"):
        study_file.load(name)


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


def test_default_storage_is_next_to_the_file_or_in_the_current_folder(
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


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("model: {width", "model: {widht", ("model.widht", "model.width")),
        ("model:", "modle:", ("modle", "model")),
        ("degrees", "degress", ("design.split.1.degress", "design.split.degrees")),
        ("seed:", "sedes:", ("design.sedes", "design.seed")),
        ("variant", "varaint", ("design.varaint", "design.variant")),
        ("design:", "desing:", ("desing", "design")),
        ("study: toy", "stduy: toy", ("stduy", "study")),
    ],
)
def test_a_misspelt_key_names_the_nearest(tmp_path: Path, old: str, new: str, said: tuple[str, ...]) -> None:
    refused(write(tmp_path, TOY.replace(old, new)), [], said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        # Three blocks have a seed: the one of the same block is meant.
        (
            "data={synthetic: {sede: 1}}",
            ("data.synthetic.sede", "data.synthetic.seed"),
        ),
        (
            "design.split={kind: random, sede: 1}",
            ("design.split.0.sede", "design.split.seed"),
        ),
        ("learning_rate=1", ("learning_rate", "train.learning_rate")),
        ("fusion=concat", ("fusion", "design.fusion")),
        (
            "model.zzzzz=1",
            ("model.zzzzz", "attention_units"),
        ),
        # The least nested of the keys with that name, and of these the first.
        ("seed=1", ("seed", "design.seed")),
        ("table=p.parquet", ("table", "data.table")),
        ("train.model={width: 4}", ("train.model", "model")),
        ("checkpoint=x.ckpt", ("checkpoint", "encoders.satclip.checkpoint")),
        ("heads=matched", ("heads", "design.head")),
        ("keep_weight=true", ("keep_weight", "keep_weights")),
        (
            "encoders.random={dmi: 8}",
            ("encoders.random.dmi", "encoders.random.dim"),
        ),
        (
            "encoders.table={path: v.parquet, tolerance: 1}",
            ("encoders.table.tolerance", "encoders.table.tolerance_deg"),
        ),
        ("neighbours={kk: 3}", ("neighbours.kk", "neighbours.k")),
        (
            "design.split={kind: temporal, test_from: 2021-10-01, seed: 0}",
            ("design.split.0.seed",),
        ),
        (
            "design.split={kind: clusters, fodls: 3}",
            ("design.split.0.fodls", "design.split.folds"),
        ),
        (
            "design.split={kind: checkerboard, degrees: 8, folds: 3}",
            ("design.split.0.folds",),
        ),
    ],
)
def test_the_nearest_key_is_one_of_the_same_block(
    tmp_path: Path, override: str, said: tuple[str, ...]
) -> None:
    refused(write(tmp_path), [override], said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("design.seed=-1", ("design.seed.0", "0", "-1")),
        ("design.seed=[0, 1.5]", ("design.seed.1", "1.5")),
        ("design.seed=[]", ("design.seed", "empty", "at least one value")),
        ("design.split=[]", ("design.split", "empty", "at least one value")),
        ("data.channels=[]", ("data.channels", "empty", "at least one value")),
        ('claims=[{claim: ""}]', ("claims.0.claim", "empty", "give a text")),
        ('storage=""', ("storage", "empty", "give a text")),
        ("storage.results=x", ("storage", "a text is needed")),
        ("storage=gs:/bucket/results", ("storage", "'gs:/bucket/results'", "two slashes")),
        ("storage='C:\\results'", ("storage", "neither a path nor an address")),
        ("data.table='C:\\panel.csv'", ("data.table", "neither a path nor an address")),
        (
            "design.variant=geoclop",
            (
                "design.variant.0",
                "'none'",
                "'latlon'",
                "'sincos'",
                "'geoclip'",
                "'satclip'",
                "'table'",
                "'random'",
                "'shuffled'",
                "'geoclop'",
            ),
        ),
        ("design.variant=[none, geoclop]", ("design.variant.1", "'geoclop'")),
        (
            "design.fusion=sum",
            ("design.fusion.0", "'hadamard'", "'concat'", "'film'", "'gated'", "'sum'"),
        ),
        ("design.head=both", ("design.head.0", "'plain'", "'matched'", "'both'")),
        ("design.head=[]", ("design.head", "[]")),
        ("analysis.test=wilcoxon", ("analysis.test", "remove analysis.test")),
        ("analysis.bootstrap=100", ("analysis.bootstrap", "remove analysis.bootstrap")),
        ("analysis.block_degrees=0", ("analysis.block_degrees", "0")),
        ("protocol=papr", ("protocol", "'strict'", "'paper'", "'papr'")),
        ("data.channels=[]", ("data.channels", "[]")),
        ("data.channels=[1]", ("data.channels.0", "1")),
        ("neighbours.k=0", ("neighbours.k", "0")),
        ("neighbours.hide=near", ("neighbours.hide", "'test_distance'", "'near'")),
        ("neighbours=true", ("neighbours", "true")),
        ("encoders.random.dim=0", ("encoders.random.dim", "1", "0")),
        ("encoders.shuffled.seed=-1", ("encoders.shuffled.seed", "0", "-1")),
        (
            "encoders.table={tolerance_deg: 1}",
            ("encoders.table.path",),
        ),
        (
            "encoders.satclip={}",
            ("encoders.satclip",),
        ),
        (
            "encoders.satclip={checkpoint: a.ckpt, model: b}",
            ("encoders.satclip",),
        ),
        (
            "design.variant=[none, satclip]",
            ("encoders.satclip", "HUB_NAME", "--set encoders.satclip.checkpoint=FILE"),
        ),
        (
            "design.variant=table",
            ("encoders.table", "VECTORS.parquet", "--set encoders.table.path=VECTORS"),
        ),
        ("design=[1]", ("design", "[1]")),
        ("data=null", ("data", "null")),
        ("model.width=wide", ("model.width", "'wide'")),
        ("model.width=3", ("model.width", "2", "3")),
        ("model.dropout=1", ("model.dropout", "1")),
        ("train.learning_rate=0", ("train.learning_rate", "0")),
        ("train.learning_rate=.inf", ("train.learning_rate", "inf")),
        ("window=0", ("window", "1", "0")),
        ("resources.gpu=some", ("resources.gpu", "'some'")),
        ("resources.cpu=0", ("resources.cpu", "0")),
        ("study=../escape", ("study", "'../escape'")),
        ("storage=5", ("storage", "5")),
        ("data.channels=[elev_m, elev_m]", ("data.channels", "elev_m")),
        ("data.synthetic={sites: 12}", ("data", "both", "--set data.synthetic=null")),
        ("data.table=null", ("data", "neither", "--set data.table=PANEL")),
        (
            "design.split={kind: randm}",
            ("design.split.0.kind", "'randm'", "random"),
        ),
        ("design.split={folds: 3}", ("design.split.0.kind", "random")),
        ("design.split={kind: group, values: [a]}", ("design.split.0.column",)),
        (
            "design.split={kind: group, column: x, values: ['']}",
            ("design.split.0.values.0", "''"),
        ),
        (
            "design.split={kind: group, column: state, values: [CA, CA]}",
            ("design.split.0.values",),
        ),
        (
            "design.split={kind: temporal, test_from: autumn}",
            ("design.split.0.test_from", "'autumn'"),
        ),
        ("design.split={kind: clusters, folds: 1}", ("design.split.0.folds", "1")),
        ("design.split={kind: random, fold: [a]}", ("design.split.0.fold.0", "'a'")),
        ("design.split={kind: checkerboard}", ("design.split.0.degrees",)),
        ("design.split={kind: random, folds: 1}", ("design.split.0.folds", "1")),
        (
            "design.split=[{kind: spatial}, {kind: random, fold: 5}]",
            ("design.split.1.fold", "5", "0", "4", "random"),
        ),
        ("design.split={kind: random, fold: [0, -1]}", ("design.split.0.fold", "0", "1")),
        (
            "design.split={kind: checkerboard, degrees: 8, fold: 2}",
            ("design.split.0.fold", "0", "2", "1", "checkerboard-8"),
        ),
        (
            "design.split={kind: checkerboards, degrees: 8, origins: 5, fold: 10}",
            ("design.split.0.fold", "0", "10", "9", "checkerboards-8"),
        ),
        (
            "design.split={kind: checkerboards, degrees: 8, origins: 5, holdout: rotate, fold: [49, 50]}",
            ("design.split.0.fold", "50", "49", "checkerboards-8-rotate"),
        ),
        (
            "design.split={kind: blocks, folds: 4, deals: 2, fold: 8}",
            ("design.split.0.fold", "8", "7", "blocks-8"),
        ),
        (
            "design.split={kind: checkerboards, degrees: 8, holdout: rotates}",
            ("design.split.0.holdout", "'rotates'", "0", "1", "rotate"),
        ),
        ("design.split={kind: checkerboards, degrees: 8, origins: 0}", ("design.split.0.origins", "0")),
        ("design.split={kind: rolling, folds: 4}", ("design.split.0.folds", "4")),
        (
            "design.split=[{kind: blocks, deals: 2}, {kind: blocks, deals: 3}]",
            ("design.split", "blocks-8"),
        ),
        (
            "design.split=[{kind: random, fold: 0}, {kind: random, fold: 1}]",
            ("design.split", "random"),
        ),
        (
            "design.split=[{kind: random, folds: 5}, {kind: random, folds: 10}]",
            ("design.split", "random"),
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_field(tmp_path: Path, override: str, said: tuple[str, ...]) -> None:
    refused(write(tmp_path), [override], said)


def test_a_folder_may_have_a_colon(tmp_path: Path) -> None:
    assert study_file.load(write(tmp_path), ["storage=/runs/12:30"]).storage == "/runs/12:30"
    assert study_file.load(write(tmp_path), ["storage=runs:1/x"]).storage.endswith("/runs:1/x")


def test_a_shift_of_a_checkerboard_stays_below_one_cell(tmp_path: Path) -> None:
    with refuses("origin: [8, 0]}") as raised:
        study_file.load(write(tmp_path), ["design.split={kind: checkerboard, degrees: 8, origin: [8, 0]}"])
    assert raised.value.field.startswith("design.split.0")
    assert {"origin", "8"} <= {*re.findall(r"\w+", str(raised.value))}


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        ("study: toy\n", ("study",)),
        ("  seed: [0, 1]\n", ("design.seed",)),
        ("  variant: [none, geoclip]\n", ("design.variant",)),
        ("data: {table: tables/panel.parquet}\n", ("data",)),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, dropped: str, said: tuple[str, ...]) -> None:
    assert dropped in TOY
    refused(write(tmp_path, TOY.replace(dropped, "")), [], said)


def test_a_loss_and_its_delta(tmp_path: Path) -> None:
    path = write(tmp_path, TOY + "train: {huber_delta: 0.5}\n")
    assert {(c.train.loss, c.train.huber_delta) for c in study_file.load(path).cells()} == {("huber", 0.5)}
    refused(path, ["train.loss=squared"], ("train.huber_delta", "0.5", "squared", "loss: huber"))
    squared = study_file.load(path, ["train.loss=squared", "train.huber_delta=null"])
    assert squared.train == study_file.load(write(tmp_path)).train


def test_the_published_protocol_has_its_own_loss_and_clipping_unless_told_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path)
    paper = study_file.load(path, ["protocol=paper", "train.patience=9"])
    assert (paper.train.loss, paper.train.huber_delta, paper.train.clip_norm) == ("huber", 1.0, None)
    assert {c.train for c in paper.cells()} == {paper.train}
    squared = study_file.load(path, ["protocol=paper", "train.loss=squared"])
    assert {c.train.loss for c in squared.cells()} == {"squared"}
    given = study_file.load(path, ["protocol=paper", "train.clip_norm=1"])
    assert {c.train.clip_norm for c in given.cells()} == {1.0}
    assert study_file.load(path).train.clip_norm == 1.0


def test_the_published_protocol_has_a_target_scale_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert {c.train.target for c in study_file.load(path, ["train.target=log1p"]).cells()} == {"log1p"}
    refused(
        path, ["train.target=log1p", "protocol=paper"], ("train.target", "log1p", "--set train.target=null")
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TOY + "study: again\n", ("line 10", "'study'")),
        (TOY.replace("width: 4", "width: 4, width: 8"), ("line 9", "'width'")),
        ("study: [toy", ("line 1",)),
        ("study: !!python/object:os.system x", ("line 1",)),
        (b"\xff\xfe\x00\x01", ("",)),
        ("? [a]\n: 1\n", ("line 1",)),
        ("", ("",)),
        ("- study\n- data\n", ("",)),
        ("only words", ("",)),
        ("5: 1\n" + TOY, ("5",)),
    ],
)
def test_a_file_that_is_not_a_study_is_refused(
    tmp_path: Path, text: str | bytes, said: tuple[str, ...]
) -> None:
    refused(write(tmp_path, text), [], said)


def test_yaml_s_own_merging_is_no_duplicate(tmp_path: Path) -> None:
    text = "train:\n  <<: {batch_size: 8, max_epochs: 3}\n  batch_size: 16\n"
    made = study_file.load(write(tmp_path, TOY + text))
    assert (made.train.batch_size, made.train.max_epochs) == (16, 3)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("dmeo", "use demo"),
        ("qick", "use quick"),
        ("nowhere/toy.yaml", "demo, paper2025, quick"),
        ("", "demo, paper2025, quick"),
        ("x" * 5000, "demo, paper2025, quick"),
    ],
)
def test_an_unknown_study_names_the_nearest(name: str, near: str) -> None:
    with refuses(name, "", near) as raised:
        study_file.load(name)
    assert "demo, paper2025, quick" in raised.value.problem


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    refused(path, [], ("", "Permission denied"))
