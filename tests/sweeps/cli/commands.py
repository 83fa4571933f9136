"""Run `sweep` in this process, and check what came of it."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from pm25.cell import Cell
from pm25.panel import Panel
from sweeps.engine import worker
from sweeps.spec import study_file
from sweeps.spec.study import Study
from sweeps.store.records import Store

STUDY = """\
study: toy
data: {table: panel.parquet}
design:
  variant: [none, latlon]
  split: [{kind: random, fold: 0}, {kind: checkerboard, degrees: 16, fold: 0}]
  seed: 0
model: {width: 4, attention_units: 4}
train: {max_epochs: 1, batch_size: 64}
"""


ON_A_STUDY = ("plan", "status", "run", "retry", "export", "report")


HERE = ("--cpus", "2", "--gpus", "0")


class Ended:
    """Exit status and output of a command; the lines that name storages are kept apart from the errors."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err
        self.storages: list[str] = []
        while found := re.match(r"\S+: storage (.+)\n", self.err):
            self.storages.append(found[1])
            self.err = self.err[found.end() :]


Sweep = Callable[..., Ended]


def by_key(declared: Study, panel: Panel) -> dict[str, Cell]:
    """Cells of a study's grid by their keys."""
    key = declared.keys(panel)
    return {key(cell): cell for cell in declared.cells()}


def tree(folder: Path) -> dict[str, str]:
    """Every file with a digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def arguments(command: str, reference: str | Path, folder: Path, *overrides: str) -> list[str]:
    """Build a command on a study, with the other arguments that it needs."""
    more = {"export": [str(folder / "out.csv")], "report": ["-o", str(folder / "report")]}
    sets = [part for override in overrides for part in ("--set", override)]
    return [command, str(reference), *more.get(command, []), *sets]


def check_refused(ended: Ended, *values: object) -> None:
    """Expect exit status 2, and one line that shows each of the values."""
    assert ended.status == 2, ended.err
    assert ended.out == ""
    assert ended.err.startswith("sweep: ")
    assert len(ended.err.splitlines()) == 1
    assert "Traceback" not in ended.err
    for value in values:
        assert str(value) in ended.err


def said(lines: list[str], name: str) -> str:
    """Find the value of the only line that begins with a name."""
    (found,) = [line.split(None, 1)[1] for line in lines if line.split()[:1] == [name]]
    return found


def toy_keys(toy: Path) -> list[str]:
    """The keys of the study's four cells: two done, one failed, one missing."""
    toy_study = study_file.load(str(toy))
    return [*by_key(toy_study, toy_study.panel())]


def study_keys(toy: Path, sets: list[str]) -> list[str]:
    toy_study = study_file.load(str(toy), sets[1::2])
    return [*by_key(toy_study, toy_study.panel())]


def done_keys(toy: Path) -> list[str]:
    toy_study = study_file.load(str(toy))
    records = Store(toy_study.storage, "toy").records(by_key(toy_study, toy_study.panel()))
    return [key for key, record in records.items() if record["state"] == "done"]


def fail(toy: Path, key: str, message: str, kind: str = "RuntimeError", host: str = "alpha") -> None:
    """Record a cell of the study as failed."""
    toy_study = study_file.load(str(toy))
    store = Store(toy_study.storage, "toy")
    cell = by_key(toy_study, toy_study.panel())[key]
    store.forget(key)
    record = worker.record_loss({"key": key, "cell": cell.resolved(), "host": host}, store, message)
    error = record["error"] | {"type": kind, "signature": f"{kind}: {message}"}
    store.write_record(record | {"error": error})
