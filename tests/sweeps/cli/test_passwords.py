"""A password in the address of a study is in no output and in no file but the study's own."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.engine import measure, submit, worker
from sweeps.plan.capacity import Capacity
from sweeps.spec import study_file
from sweeps.store.records import Store
from tests.sweeps.cli.commands import Sweep, done_keys, toy_keys

PASSWORD = "s3cr/t@%21x"
TRACKING = f"postgresql://ana:{PASSWORD}@127.0.0.1:9/mlflow"


@pytest.mark.usefixtures("undrawn")
def test_no_command_shows_or_stores_it(toy: Path, sweep: Sweep, here: list[str]) -> None:
    text = toy.read_text()
    toy.write_text(f"{text}tracking: {TRACKING}\n")
    key = done_keys(toy)[0]
    given = ("--set", f"tracking={TRACKING}", "--set", "train.max_epochs=1")
    for command in (
        ("status", toy),
        ("status", toy, "--json", *given),
        ("list", toy.parent / "results", "--json"),
        ("plan", toy, "--no-calibrate", "--json"),
        ("run", toy, "--dry-run"),
        ("run", toy, *given),
        ("retry", toy, *given),
        ("why", toy, toy_keys(toy)[2]),
        ("export", toy, toy.parent / "out.csv"),
        ("report", toy, "-o", toy.parent / "report"),
        ("importance", toy, key),
        ("ui", toy, *given),
        ("sync", toy, *given),
        ("sync", toy, "--set", f"tracking=postgresql:{TRACKING}"),
        ("status", toy, "--set", f"tracking=[{TRACKING}]"),
        ("status", toy, "--set", f"tracking: {TRACKING}"),
        ("submit", toy, "--address", f"http://ana:{PASSWORD}@127.0.0.1:9"),
        ("run", toy, "--address", f"http://ana:{PASSWORD}@127.0.0.1:9"),
    ):
        ended = sweep(*command)
        shown = ended.out + ended.err + "".join(ended.storages)
        assert shown, command
        assert "s3cr" not in shown, (command[0], shown)
        assert "Traceback" not in shown, (command[0], shown)
    for file in toy.parent.rglob("*"):
        if file.is_file() and file != toy:
            assert b"s3cr" not in file.read_bytes(), file


def test_no_record_of_a_failure_stores_it(toy: Path) -> None:
    study = study_file.load(str(toy))
    store, (key, *_) = Store(study.storage, study.study), toy_keys(toy)
    store.forget(key)
    record = worker.record_loss({"key": key}, store, f"lost {TRACKING}: no answer")
    assert record["error"]["message"] == "lost postgresql://ana:***@127.0.0.1:9/mlflow: no answer"
    assert "s3cr" not in json.dumps(store.record(key))


def test_the_process_that_measures_is_not_given_it_as_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(command: list[str], **how: object) -> object:
        asked.append((command, how["input"]))
        return SimpleNamespace(returncode=0, stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    measure.in_child("toy.yaml", [f"tracking={TRACKING}"], Capacity(1, 0, 1, 0))
    ((command, content),) = asked
    assert "s3cr" not in " ".join(command)
    assert json.loads(content)["overrides"] == [f"tracking={TRACKING}"]


def test_the_dashboard_shows_a_storage_without_its_key(toy: Path) -> None:
    study = study_file.load(str(toy), [f"storage=s3://AKIA:{PASSWORD}@bucket/results"])
    assert submit._metadata(study) == {"study": "toy", "storage": "s3://bucket/results"}
