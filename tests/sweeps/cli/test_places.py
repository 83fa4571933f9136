"""Folders, files, ports and locales as they are on the machines of others."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from pm25.files import check_folder
from tests.odd_names import names
from tests.sweeps.cli.commands import ON_A_STUDY, Sweep, arguments, check_refused, done_keys, toy_keys, tree

# The storage in the first line


@pytest.mark.parametrize("command", ["status", "plan", "export", "report", "why", "retry", "verify"])
def test_every_command_says_first_where_the_storage_is(
    sweep: Sweep, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None, command: str
) -> None:
    monkeypatch.chdir(toy.parent)  # paths are relative, and the line is not
    more = {
        "why": [toy_keys(toy)[0]],
        "verify": ["--sample", "1"],
        "plan": ["--no-calibrate", "--cpus", "1", "--gpus", "0"],
    }
    ended = sweep(*arguments(command, "toy.yaml", tmp_path), *more.get(command, []))
    assert (ended.status, ended.err) == (0, "")
    assert ended.storages == [str(toy.parent / "results")]


def test_a_run_says_first_where_its_storage_is(sweep: Sweep, toy: Path, here: list[str]) -> None:
    ended = sweep("run", toy)
    assert ended.storages == [str(toy.parent / "results")]


def test_a_comparison_says_where_both_are(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy.parent / "results", tmp_path / "other")
    ended = sweep("compare", toy, toy, "--set-b", f"storage={tmp_path / 'other'}")
    assert (ended.status, ended.err) == (0, "")
    assert ended.storages == [str(toy.parent / "results"), str(tmp_path / "other")]


@pytest.mark.parametrize("command", ["status", "plan", "why"])
def test_json_has_the_storage_and_no_other_line_is_printed(sweep: Sweep, toy: Path, command: str) -> None:
    more = {"why": [toy_keys(toy)[0]], "plan": ["--no-calibrate", "--cpus", "1", "--gpus", "0"]}
    ended = sweep(command, toy, "--json", *more.get(command, []))
    assert (ended.status, ended.err, ended.storages) == (0, "", [])
    assert json.loads(ended.out)["storage"] == str(toy.parent / "results")


def test_a_report_without_a_record_is_refused(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    before = tree(tmp_path)
    command = arguments("report", toy, tmp_path, f"storage={elsewhere}")
    check_refused(sweep(*command), f"{elsewhere}: ", "study toy", "--set storage=", "`sweep run ")
    check_refused(sweep("compare", toy, toy, "--set-b", f"storage={elsewhere}"), f"{elsewhere}: ")
    # The records of other settings make no report either, and the line says that they are there.
    command = arguments("report", toy, tmp_path, "design.seed=7")
    check_refused(sweep(*command), str(toy.parent / "results"), "3 stored cells")
    assert tree(tmp_path) == before
    ended = sweep("status", toy, "--set", f"storage={elsewhere}")
    assert "--set storage=" in ended.out
    assert ended.storages == [str(elsewhere)]


# Names


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names)
def test_a_storage_and_a_table_may_have_any_name(sweep: Sweep, toy: Path, name: str) -> None:
    folder = toy.parent / f"n{name}"
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(toy.parent / "results", folder)
    shutil.copy(toy.parent / "panel.parquet", folder / "panel.parquet")
    declared = yaml.safe_load(toy.read_text())
    declared |= {"data": {"table": f"n{name}/panel.parquet"}, "storage": f"n{name}"}
    study = toy.parent / "named.yaml"
    study.write_text(yaml.safe_dump(declared))
    ended = sweep("status", study, "--json")
    assert (ended.status, ended.err) == (0, "")
    assert json.loads(ended.out)["cells"]["done"] == 2


@pytest.mark.parametrize("command", ON_A_STUDY)
@pytest.mark.parametrize("mark", ["\n", "\t", "\x00", "\x1b", "\udce9"])
def test_control_characters_are_refused(
    sweep: Sweep, toy: Path, tmp_path: Path, command: str, mark: str
) -> None:
    before = tree(tmp_path)
    for field in ("storage", "data.table"):
        override = f"{field}={json.dumps(f'{tmp_path}/a{mark}b')}"
        check_refused(sweep(*arguments(command, toy, tmp_path, override)), f"{field}: ")
    assert tree(tmp_path) == before


# A folder in place of a file, and a file in place of a folder


@pytest.mark.parametrize("command", ON_A_STUDY)
def test_a_folder_is_no_study(sweep: Sweep, toy: Path, tmp_path: Path, command: str) -> None:
    check_refused(sweep(*arguments(command, toy.parent, tmp_path)), f"{toy.parent}: ", "folder", "toy.yaml")


@pytest.mark.parametrize("command", ["plan", "run", "status"])
def test_a_folder_is_no_table(sweep: Sweep, toy: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "folder").mkdir()
    command_line = arguments(command, toy, tmp_path, f"data.table={tmp_path / 'folder'}")
    check_refused(sweep(*command_line), f"{tmp_path / 'folder'}: ")


@pytest.mark.parametrize("place", ["/proc/new", "{file}", "{file}/below", "{folder}/{long}"])
@pytest.mark.parametrize("command", ["report", "export", "compare", "synth"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    sweep: Sweep, toy: Path, tmp_path: Path, command: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the work has started")

    monkeypatch.setattr("sweeps.state.StudyState.rows", work)
    monkeypatch.setattr("pm25.sources.synthetic.synthesize", work)
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    place = place.format(file=tmp_path / "file", folder=tmp_path, long="n" * 300)
    table = f"{place}/cells.csv"
    commands = {
        "report": ["report", toy, "-o", place],
        "export": ["export", toy, table],
        "compare": ["compare", toy, toy, "-o", table],
        "synth": ["data", "synth", table.replace(".csv", ".parquet")],
    }
    ended = sweep(*commands[command])
    check_refused(ended)
    assert place in ended.err
    assert tree(tmp_path) == before


def test_a_file_where_the_report_has_a_folder_is_refused(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "figures").touch()
    before = tree(tmp_path)
    check_refused(sweep("report", toy, "-o", tmp_path / "report"), f"{tmp_path / 'report'}: ")
    check_refused(sweep("report", toy, "-o", tmp_path / "new", "--outlines", tmp_path / "no.json"), "no.json")
    assert tree(tmp_path) == before


@given(names)
def test_a_folder_that_can_be_created_is_accepted(name: str) -> None:
    before = {*Path("/tmp").iterdir()}
    check_folder(Path("/tmp", f"new-{name}", "below"))
    assert not any(path.name == f"new-{name}" for path in {*Path("/tmp").iterdir()} - before)


def test_a_deleted_current_folder_is_named(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    check_refused(sweep("status", "demo"), "current folder: ")


# Addresses and ports


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:9"])
def test_an_address_is_checked_before_the_study_is_locked(sweep: Sweep, toy: Path, address: str) -> None:
    before = tree(toy.parent)
    ended = sweep("run", toy, "--address", address)
    check_refused(ended, f"--address {address}: ", "HOST:6379")
    assert tree(toy.parent) == before


def test_a_temporary_folder_is_checked_before_the_study_is_locked(
    sweep: Sweep, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    before = tree(toy.parent)
    check_refused(sweep("run", toy), "RAY_TMPDIR=/proc/nowhere: ")
    assert tree(toy.parent) == before


@pytest.fixture
def taken() -> Iterator[int]:
    """A port where another program listens."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_that_is_in_use_is_named_before_any_address(sweep: Sweep, toy: Path, taken: int) -> None:
    before = tree(toy.parent)
    check_refused(sweep("ui", toy, "--port", str(taken)), f"--port {taken}: ", "such as --port ")
    assert tree(toy.parent) == before


def test_the_ui_of_a_storage_without_a_database_is_refused(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    before = tree(tmp_path)
    ended = sweep("ui", toy, "--port", str(port), "--set", f"storage={tmp_path / 'elsewhere'}")
    check_refused(ended, str(tmp_path / "elsewhere" / "mlflow.db"), "`sweep sync ", "--set storage=")
    assert tree(tmp_path) == before


# Locales


@pytest.mark.parametrize("utf8", ["0", ""])
def test_a_locale_without_utf8_changes_no_file(toy: Path, tmp_path: Path, utf8: str) -> None:
    folder = tmp_path / "größe 日本"
    shutil.move(toy.parent, folder)
    declared = yaml.safe_load((folder / "toy.yaml").read_text())
    text = yaml.safe_dump(declared | {"title": "größe ± 日本"}, allow_unicode=True)
    (folder / "toy.yaml").write_text(text, encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": utf8, "PYTHONIOENCODING": "ascii"}
    study = str(folder / "toy.yaml")
    for command in (["compare", study, study], ["report", study, "-o", str(tmp_path / "ü")]):
        arguments = [sys.executable, "-m", "sweeps", *command]
        ended = subprocess.run(arguments, env=environment, capture_output=True, check=False, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.decode().splitlines()[0] == f"toy: storage {folder / 'results'}"
    assert "größe ± 日本" in (tmp_path / "ü" / "report.md").read_text(encoding="utf-8")
    assert len(done_keys(folder / "toy.yaml")) == 2
