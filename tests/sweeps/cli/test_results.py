"""`sweep export`, `report`, `verify` and `importance`."""

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from pm25.metrics import SCORES
from sweeps.engine import worker
from sweeps.spec import study_file
from sweeps.store.records import Store
from tests.sweeps.cli.commands import Sweep, by_key, check_refused, done_keys, tree


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_export_has_a_row_for_each_cell(sweep: Sweep, toy: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"cells.{suffix}"
    ended = sweep("export", toy, out)
    assert ended.status == 0
    assert all(value in ended.out for value in (str(out), "4 cells", "2 done"))
    frame = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    named = [
        "key",
        "variant",
        "fusion",
        "split",
        "regime",
        "fold",
        "seed",
        "state",
        "n_train",
        "n_val",
        "n_test",
    ]
    assert list(frame.columns)[: len(named)] == named
    metrics = [f"{part}_{name}" for part in ("test", "wr") for name in SCORES]
    assert {*metrics} <= {*frame.columns}
    assert frame["state"].tolist() == ["done", "done", "failed", "missing"]
    assert frame["variant"].tolist() == ["none", "latlon"] * 2
    assert frame["split"].tolist() == ["random"] * 2 + ["checkerboard-16"] * 2
    assert frame.loc[:1, ["test_rmse", "test_r2", "n_test"]].notna().all(axis=None)
    assert frame.loc[2:, [*metrics, "n_train", "n_test", "seconds"]].isna().all(axis=None)
    assert frame.loc[2, "error"] == "RuntimeError: the worker died"
    toy_study = study_file.load(str(toy))
    record = Store(toy_study.storage, "toy").record(frame.loc[0, "key"])
    assert record is not None
    assert frame.loc[0, "test_rmse"] == pytest.approx(record["metrics"]["test_rmse"], rel=1e-12)


@pytest.mark.parametrize("name", ["cells.xlsx", "cells", "cells.csv.gz"])
def test_export_knows_two_formats(sweep: Sweep, toy: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    out.write_text("mine")
    check_refused(sweep("export", toy, out), f"{out}: ", repr(out.suffix), ".parquet", ".csv")
    assert out.read_text() == "mine"


@pytest.mark.parametrize("out", ["missing/cells.csv", "missing/cells.parquet", "file/cells.csv"])
def test_export_to_no_place(sweep: Sweep, toy: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    check_refused(sweep("export", toy, tmp_path / out), f"{tmp_path / out}: ")
    assert tree(tmp_path) == before


def test_a_full_disk_keeps_the_old_export(
    sweep: Sweep, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cells.csv"
    assert sweep("export", toy, out).status == 0
    before = tree(tmp_path)

    def full(path: Path, content: bytes) -> None:
        path.write_text("key,")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    check_refused(sweep("export", toy, out), f"{out}: ", "No space left on device")
    assert tree(tmp_path) == before


def test_report_writes_its_files(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    ended = sweep("report", toy, "-o", out)
    assert (ended.status, ended.err) == (0, "")
    files = [
        "index.html",
        "report.md",
        "cells.csv",
        "means.csv",
        "contrasts.csv",
        "leverage.csv",
        "applicability.csv",
        "monitors.csv",
        "coverage.csv",
    ]
    files += [f"latex/{name}.tex" for name in ("verdicts", "wr", "oor", "contrasts", "all")]
    assert ended.out.splitlines() == [str(out / name) for name in files]
    assert all((out / name).stat().st_size for name in files)
    drawn = {path.name for path in (out / "figures").iterdir()}
    assert {"cells-rmse.svg", "cells-rmse.png", "learning.svg", "split-checkerboard-16.png"} <= drawn
    assert {name.split(".")[0] for name in drawn if name.endswith("svg")} == {
        name.split(".")[0] for name in drawn if name.endswith("png")
    }
    assert pd.read_csv(out / "cells.csv")["state"].tolist() == ["done", "done", "failed", "missing"]


def test_report_refuses_outlines_that_are_none(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    file = tmp_path / "states.geojson"
    file.write_text("{}")
    ended = sweep("report", toy, "-o", tmp_path / "out", "--outlines", file)
    assert (ended.status, ended.out) == (2, "")
    check_refused(ended, f"{file}: ", "GeoJSON")
    assert not (tmp_path / "out").exists()


def test_report_to_no_place(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "report"
    check_refused(sweep("report", toy, "-o", out), f"{out}: ", "-o")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("one_thread")
def test_verify_finds_what_was_stored(sweep: Sweep, toy: Path) -> None:
    before = tree(toy.parent)
    ended = sweep("verify", toy)
    assert (ended.status, ended.err) == (0, "")
    first, second = done_keys(toy)
    assert ended.out.splitlines() == [
        f"  {first} none random fold 0 seed 0: bitwise equal",
        f"  {second} latlon random fold 0 seed 0: bitwise equal",
    ]
    assert tree(toy.parent) == before


@pytest.mark.usefixtures("one_thread")
def test_verify_names_the_cell_that_differs(sweep: Sweep, toy: Path) -> None:
    first, second = done_keys(toy)
    path = toy.parent / "results" / "toy" / "cells" / second / "result.json"
    record = json.loads(path.read_text())
    record["metrics"]["test_mae"] += 1e-9
    record["counts"]["epochs"] += 1
    Store(str(toy.parent / "results"), "toy").write_record(record, record["files"])
    ended = sweep("verify", toy)
    assert (ended.status, ended.err) == (1, "")
    assert ended.out.splitlines() == [
        f"  {first} none random fold 0 seed 0: bitwise equal",
        f"  {second} latlon random fold 0 seed 0: differs in counts, test_mae",
    ]
    whole = ended.out.splitlines()
    ended = sweep("verify", toy, "--sample", "1")
    (drawn,) = ended.out.splitlines()
    assert drawn in whole
    assert ended.status == int("differs" in drawn)
    assert sweep("verify", toy, "--sample", "1").out == ended.out  # the same draw again
    assert len(sweep("verify", toy, "--sample", "9").out.splitlines()) == 2


@pytest.mark.parametrize("sample", range(1, 9))
def test_a_sample_is_as_large_as_was_asked(
    sweep: Sweep, toy: Path, monkeypatch: pytest.MonkeyPatch, sample: int
) -> None:
    first, _ = done_keys(toy)
    store = Store(str(toy.parent / "results"), "toy")
    record = store.record(first) or {}
    seeds = [f"design.seed=[{', '.join(map(str, range(4)))}]", "design.split={kind: random, fold: 0}"]
    toy_study = study_file.load(str(toy), seeds)
    for key, cell in by_key(toy_study, toy_study.panel()).items():
        store.write_record(record | {"key": key, "cell": cell.resolved()}, record["files"])
    monkeypatch.setattr(worker, "differences", lambda *_, **__: [])
    ended = sweep("verify", toy, "--sample", str(sample), *(p for s in seeds for p in ("--set", s)))
    assert (ended.status, len(set(ended.out.splitlines()))) == (0, sample)  # of 8
    if sample == 4:  # arms take turns in the grid: every second cell would be of one arm
        assert {line.split()[1] for line in ended.out.splitlines()} == {"none", "latlon"}


def test_verify_of_nothing_is_refused(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    check_refused(sweep("verify", toy, "--set", "window=14"), f"{toy}: ", "sweep run")
    assert sweep("verify", toy, "--sample", "0").status == 2
    assert tree(tmp_path) == before


@pytest.mark.usefixtures("one_thread")
def test_verify_says_which_cells_have_weights(sweep: Sweep, toy: Path, kept: list[str]) -> None:
    *sets, key = kept
    label = f"  {key} random-hadamard random fold 0 seed 0: "
    assert sweep("verify", toy, *sets).out == f"{label}bitwise equal, with weights\n"
    store = Store(str(toy.parent / "results"), "toy")
    found = torch.load(io.BytesIO(store.read_file(key, "weights.pt") or b""), weights_only=True)
    found["weights"]["output.bias"] += 1e-6
    buffer = io.BytesIO()
    torch.save(found, buffer)
    store.write_file(key, "weights.pt", buffer.getvalue())
    ended = sweep("verify", toy, *sets)
    assert (ended.status, ended.out) == (1, f"{label}differs in weights, with weights\n")


@pytest.fixture
def kept(toy: Path, here: list[str], sweep: Sweep) -> list[str]:
    """Name of a study whose only cell, an encoder arm, has stored weights; then the key of that cell."""
    overrides = (
        *("keep_weights=true", "design.variant=random", "encoders.random.dim=4"),
        *("design.split={kind: random, fold: 0}", "data.channels=[elev_m, crn_tmax_c, day_sin]"),
    )
    sets = [part for override in overrides for part in ("--set", override)]
    assert sweep("run", toy, *sets).status == 0
    return [*sets, here[-1]]


def test_importance_lists_every_channel_and_the_embedding(sweep: Sweep, toy: Path, kept: list[str]) -> None:
    *sets, key = kept
    before = tree(toy.parent)
    ended = sweep("importance", toy, key[:8], "--repeats", "3", *sets)
    assert (ended.status, ended.err) == (0, "")
    head, *lines = ended.out.splitlines()
    assert all(value in head for value in ("random-hadamard random fold 0 seed 0", "ug/m3", "3 permutations"))
    found = [re.fullmatch(r"  (\S+) +([+-]\d+\.\d{3}) ± (\d+\.\d{3})", line) for line in lines]
    assert all(found)
    parts = [match.groups() for match in found if match]
    assert {what for what, _, _ in parts} == {"elev_m", "crn_tmax_c", "day_sin", "embedding"}
    increase = [float(value) for _, value, _ in parts]
    assert increase == sorted(increase, reverse=True)
    assert any(increase)
    assert sweep("importance", toy, key, "--repeats", "3", *sets).out == ended.out
    stored = toy.parent / "results" / "toy" / "cells" / key / "importance.parquet"
    frame = pd.read_parquet(stored)
    assert [*frame] == ["what", "rmse_increase", "sd", "repeats"]
    assert frame["what"].tolist() == [what for what, _, _ in parts]
    assert [f"{value:+.3f}" for value in frame["rmse_increase"]] == [value for _, value, _ in parts]
    assert frame["repeats"].tolist() == [3] * 4
    stored.unlink()
    assert tree(toy.parent) == before


def test_importance_without_a_key_is_of_the_winners(sweep: Sweep, toy: Path, here: list[str]) -> None:
    sets = ("--set", "design.split={kind: random, folds: 2}", "--set", "data.channels=[elev_m, crn_tmax_c]")
    check_refused(sweep("importance", toy, *sets), "toy: ", "`sweep run ")
    assert sweep("run", toy, *sets).status == 0
    best: dict[str, tuple[float, str]] = {}
    for path in (toy.parent / "results" / "toy" / "cells").glob("*/result.json"):
        record = json.loads(path.read_text())
        if record["key"] in here:
            variant, mine = record["cell"]["variant"], (record["metrics"]["val_rmse"], record["key"])
            best[variant] = min(mine, best.get(variant, mine))
    store = Store(str(toy.parent / "results"), "toy")
    winners = {key for _, key in best.values()}
    assert (len(here), len(winners)) == (4, 2)
    assert store.holding("weights.pt") == winners
    ended = sweep("importance", toy, "--repeats", "2", *sets)
    assert (ended.status, ended.err) == (0, "")
    assert store.holding("importance.parquet") == winners
    heads = [line for line in ended.out.splitlines() if "permutations" in line]
    assert [line.split()[0] for line in heads] == ["none", "latlon"]
    loser = next(key for key in here if key not in winners)
    check_refused(sweep("importance", toy, loser, *sets), f"{loser}: ", "keep_weights: true", *winners)
    # A winner that was trained without keeping its weights is named, and the others are done.
    key = best["none"][1]
    store.delete_file(key, "weights.pt")
    ended = sweep("importance", toy, "--repeats", "2", *sets)
    assert ended.status == 0
    assert ended.err.startswith("sweep: none random fold ")
    assert f"{key}: " in ended.err
    assert "keep_weights: true" in ended.err
    assert "latlon" in ended.out


def test_importance_needs_one_cell_and_its_weights(sweep: Sweep, toy: Path) -> None:
    before = tree(toy.parent)
    check_refused(sweep("importance", toy, "xyz"), "xyz: ", "0 cells", "`sweep export`")
    # Of 17 keys in hexadecimal two begin alike.
    more = [f"design.seed=[{', '.join(map(str, range(17)))}]", "design.split={kind: random, fold: 0}"]
    toy_study = study_file.load(str(toy), more)
    starts = [key[0] for key in by_key(toy_study, toy_study.panel())]
    often = max(starts, key=starts.count)
    sets = [part for override in more for part in ("--set", override)]
    assert starts.count(often) > 1
    check_refused(
        sweep("importance", toy, often, *sets), often, f"{starts.count(often)} cells", "`sweep export`"
    )
    first, _ = done_keys(toy)
    check_refused(sweep("importance", toy, first), f"{first}: ", "keep_weights: true")
    assert sweep("importance", toy).status == 2
    assert sweep("importance", toy, first, "--repeats", "1").status == 2
    assert tree(toy.parent) == before
