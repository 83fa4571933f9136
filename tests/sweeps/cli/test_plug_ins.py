"""A study with an encoder of another package, from the command line."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sweeps.spec import study_file
from tests import processes
from tests.errors import refuses
from tests.pm25.encoders import packages
from tests.sweeps.cli.commands import STUDY, Sweep

ROOT = Path(__file__).parents[3]


@pytest.fixture
def study(tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study of the variants `none` and `scaled`, whose package is not installed yet."""
    table.to_parquet(tmp_path / "panel.parquet", index=False)
    text = STUDY.replace("[none, latlon]", "[none, scaled]")
    (tmp_path / "toy.yaml").write_text(text + "encoders: {scaled: {scale: 2, path: weights.bin}}\n")
    (tmp_path / "weights.bin").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_study_waits_for_its_package(study: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sweep("plan", "toy.yaml")
    assert before.status == 2
    assert len(before.err.splitlines()) == 1
    assert "'scaled'" in before.err
    packages.install(study / "site", "scaled")
    monkeypatch.syspath_prepend(str(study / "site"))
    made = study_file.load("toy.yaml")
    assert made.encoder_options("scaled") == {"scale": 2, "path": str(study / "weights.bin")}
    assert [arm.label for arm in made.arms()] == ["none", "scaled-hadamard"]
    planned = sweep("plan", "toy.yaml", "--no-calibrate")
    assert planned.status == 0, planned.err
    with refuses(None, "design.variant.1", "scald", "use scaled"):
        study_file.load("toy.yaml", ["design.variant=[none, scald]"])
    with refuses(None, "encoders.scald", "encoders.scaled"):
        study_file.load("toy.yaml", ["encoders.scald.scale=3"])
    with refuses(None, "encoders.scaled"):
        study_file.load("toy.yaml", ["encoders.scaled=3"])


def test_a_broken_package_ends_in_one_line(
    study: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.install(study / "site", "scaled", package="pkg-broken", top="import no_module_of_this_name")
    monkeypatch.syspath_prepend(str(study / "site"))
    for command in (["plan", "--no-calibrate"], ["status"]):
        ended = sweep(*command, "toy.yaml")
        assert ended.status == 2
        assert len(ended.err.splitlines()) == 1
        assert "pkg-broken 1.0" in ended.err


def test_two_variants_have_two_labels(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages.install(study / "site", "mine", packages.GOOD + "\n    label = 'GeoCLIP'\n")
    monkeypatch.syspath_prepend(str(study / "site"))
    assert study_file.load("toy.yaml", ["design.variant=[none, mine]", "encoders={}"]).arms()
    with refuses(None, "design.variant", "GeoCLIP"):
        study_file.load("toy.yaml", ["design.variant=[none, mine, geoclip]", "encoders={}"])


@pytest.mark.usefixtures("undrawn")
def test_results_have_the_label_and_outlive_the_package(
    study: Path, sweep: Sweep, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = packages.GOOD + "\n    label = 'Scaled place'\n"
    packages.install(study / "site", "scaled", body, package="pkg-labelled")
    monkeypatch.syspath_prepend(str(study / "site"))
    ended = sweep("run", "toy.yaml")
    assert ended.status == 0, ended.err
    assert len(here) == 4
    states = [json.loads(path.read_text()) for path in study.glob("results/toy/cells/*/result.json")]
    found = {(one["cell"]["variant"], one["state"]) for one in states}
    assert found == {("none", "done"), ("scaled", "done")}
    reported = sweep("report", "toy.yaml", "-o", "report")
    assert reported.status == 0, reported.err
    assert "Scaled place · Hadamard" in (study / "report" / "index.html").read_text()
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(study / "site")])
    assert sweep("status", "toy.yaml").status == 2
    # Stale cells of a package that is no longer installed can be counted and explained.
    without = ["--set", "design.variant=none", "--set", "encoders={}"]
    left = sweep("status", "toy.yaml", *without)
    assert left.status == 0, left.err
    assert "2 stored cells are stale" in left.out
    stale = next(one["key"] for one in states if one["cell"]["variant"] == "scaled")
    why = sweep("why", "toy.yaml", stale, *without)
    assert why.status == 0, why.err
    assert "scaled-hadamard" in why.out


@pytest.mark.slow
def test_a_study_runs_with_an_installed_package(tmp_path: Path, table: pd.DataFrame) -> None:
    """The package of the documentation, built and installed by pip; Ray's workers load it by its name."""
    source, site = tmp_path / "harbours", tmp_path / "site"
    source.mkdir()
    for name, text in packages.of_readme().items():
        (source / name).write_text(text)
    install = ["pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([sys.executable, "-m", *install, "--target", site, source], check=True)
    table.to_parquet(tmp_path / "panel.parquet", index=False)
    (tmp_path / "toy.yaml").write_text(STUDY.replace("[none, latlon]", "[none, harbours]"))
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}

    width = ["--set", "encoders.harbours.width=20"]
    run = functools.partial(processes.run_sweep, tmp_path, env=environment)
    run("run", "toy.yaml", *width)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("results/toy/cells/*/result.json")]
    states = {(record["cell"]["variant"], record["state"]) for record in records}
    assert states == {("none", "done"), ("harbours", "done")}
    assert len({record["encoder"] for record in records if record["cell"]["variant"] == "harbours"}) == 1
    run("report", "toy.yaml", *width, "-o", "report")
    assert "Near harbours · Hadamard" in (tmp_path / "report" / "index.html").read_text()
    # Other options are other cells.
    other, _ = run("status", "toy.yaml", "--set", "encoders.harbours.width=21", "--cells")
    assert "missing" in other
