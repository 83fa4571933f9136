"""Referee of `chaos`: compares what a study stores and shows with a truth that is kept elsewhere."""

import json
import re
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from pm25.cell import Cell
from pm25.metrics import SCORES
from sweeps.bench import chaos_study
from sweeps.spec import study_file
from sweeps.spec.design import arm_of
from sweeps.store import integrity, search_trials
from sweeps.store.records import Record

KINDS = {
    "lost": "records that were stored, and are missing without a report",
    "doubled": "tasks trained again although a valid record existed, or two finished runs of one in MLflow",
    "believed": "numbers of a record, of `status` or of `export` that are not the truth",
    "undetected": "damaged files that `sweep fsck` does not name",
    "blamed": "cells and search trials recorded as failed, although their trainings cannot fail",
    "unclear": "ends without a documented exit status, or without one line that explains it",
    "orphaned": "processes, temporary folders and locks that are left after an end",
}
"""Bad outcomes with their meanings."""

CELLS, TRIALS = "cells", "search"
RECORD = "result.json"

_EXPECTED_LINES = (
    rf"{chaos_study.NAME}: ",
    r"sweep: ",
    r"\d+/\d+ done, ",
    r"MLflow: \d+ runs? left to write",
    r"  .*: epoch \d+ of ",
    r"\d+ trainings wait for a node",
)
"""Beginnings of the lines that a command may write to standard error."""


class Outcome(NamedTuple):
    """One bad outcome."""

    kind: str
    """Name among `KINDS`."""
    what: str
    """Description in one line."""


class Place(NamedTuple):
    """Folder of a cell or of a search trial."""

    folder: str
    key: str

    @property
    def name(self) -> str:
        """Path below the study's folder."""
        return f"{self.folder}/{self.key}"


class Seen(NamedTuple):
    """Record that was valid when it was first read."""

    content: bytes
    time: float
    """Time of its file in seconds since 1970."""


class Start(NamedTuple):
    """Start of a training, from the ledger."""

    key: str
    process: int
    time: float


@dataclass(frozen=True)
class Ending:
    """End of a command."""

    command: str
    status: int | None
    """Exit status, negative for a signal; None if it had to be killed, since it did not end in time."""
    output: str
    errors: str

    @property
    def last_line(self) -> str:
        """Last line of standard error, or of standard output if there is none."""
        lines = self.errors.strip().splitlines() or self.output.strip().splitlines()
        return lines[-1] if lines else ""


def starts(ledger: Path) -> list[Start]:
    """Read the ledger of `chaos_study.note_start`."""
    if not ledger.exists():
        return []
    fields = (line.split() for line in ledger.read_text(encoding="utf-8").splitlines())
    return [Start(key, int(process), float(time)) for key, process, time in fields]


def unclear(ending: Ending, allowed: Collection[int]) -> list[Outcome]:
    """Compare the end of a command with the exit statuses that what happened to it allows."""
    found = []
    if ending.status is None:
        found.append("does not end")
    elif ending.status not in allowed:
        found.append(f"exit status {ending.status} instead of {' or '.join(map(str, sorted(allowed)))}")
    text = ending.output + "\n" + ending.errors
    lines = [line for line in ending.errors.splitlines() if line.strip()]
    if "Traceback (most recent call last)" in text:
        found.append("traceback")
    elif ending.status is None or ending.status < 0:
        pass
    elif noise := [line for line in lines if not re.match("|".join(_EXPECTED_LINES), line)]:
        found.append(f"unexpected line {noise[0][:200]!r}")
    elif ending.status > 1 and not (lines and lines[-1].startswith("sweep: ")):
        found.append("no line explains the end")
    elif ending.status > 1 and sum("Fix: " in line for line in lines) > 1:
        found.append("more than one line explains the end")
    return [
        Outcome("unclear", f"{ending.command}: {what} (last line: {ending.last_line[:300]})")
        for what in found
    ]


class Referee:
    """Knows every record that was ever valid, and which of them were damaged on purpose."""

    def __init__(self, file: Path) -> None:
        self.study = study_file.load(str(file))
        self.key: Callable[[Cell], str] = self.study.keys(self.study.panel())
        self.root = Path(self.study.storage) / self.study.study
        """Folder of the study in its storage."""
        self.seen: dict[Place, Seen] = {}
        self.cells: dict[str, Cell] = {}
        """Cell of each key that had a valid record."""
        self.damaged: dict[Place, dict[str, bytes]] = {}
        """Content before the damage of each damaged file, by place and name."""
        self.failed: dict[Place, str] = {}
        """Errors of the failed records that are in the store."""

    def paths(self, *, name: str = RECORD) -> dict[Place, Path]:
        """Return the files of this name of all cells and search trials, by place."""
        return {
            Place(folder, path.parent.name): path
            for folder in (CELLS, TRIALS)
            for path in sorted((self.root / folder).glob(f"*/{name}"))
        }

    def look(self) -> list[Outcome]:
        """Read all records, and return what has gone wrong since the last look."""
        found, present = [], self.paths()
        for place in self.seen.keys() - present.keys() - self.damaged.keys():
            del self.seen[place]
            found.append(Outcome("lost", f"{place.name} had a valid record, and has none"))
        for place in self.failed.keys() - present.keys():
            del self.failed[place]
        for place, path in present.items():
            if place in self.damaged:
                continue
            try:
                content, time = path.read_bytes(), path.stat().st_mtime
            except FileNotFoundError:  # deleted since it was listed; the next look notes it
                continue
            known = self.seen.get(place)
            if known is not None and known.content == content:
                continue
            if known is not None:
                found.append(Outcome("doubled", f"{place.name} has another record than before"))
            found += self._judge(place, content, time)
        return found

    def _judge(self, place: Place, content: bytes, time: float) -> list[Outcome]:
        """Note a record that is read for the first time, and compare it with the truth."""
        try:
            record = json.loads(content)
            state = record["state"]
        except (ValueError, KeyError, TypeError):
            self.seen.pop(place, None)
            return [Outcome("believed", f"{place.name} was recorded, but is not a record")]
        if state == "failed":
            error = f"{record['error']['type']}: {record['error']['message']}"[:300]
            if self.failed.get(place) == error:
                return []
            self.failed[place] = error
            return [Outcome("blamed", f"{place.name} failed: {error}")]
        problem = (
            self._cell_problem(place, record) if place.folder == CELLS else self._trial_problem(place, record)
        )
        self.failed.pop(place, None)
        self.seen[place] = Seen(content, time)
        return [Outcome("believed", f"{place.name} was recorded with {problem}")] if problem else []

    def _cell_problem(self, place: Place, record: Record) -> str:
        cell = Cell.model_validate(record["cell"])
        if not place.key == record["key"] == self.key(cell):
            return f"the key {record['key']}, and the settings of {self.key(cell)}"
        self.cells[place.key] = cell
        metrics = record["metrics"]
        if missing := {f"{part}_{name}" for part in ("test", "val") for name in SCORES} - metrics.keys():
            return f"no {min(missing)}"
        expected = chaos_study.truth(cell, metrics)
        wrong = [name for name in metrics if metrics[name] != expected[name]]
        return f"{wrong[0]} = {metrics[wrong[0]]} instead of {expected[wrong[0]]}" if wrong else ""

    def _trial_problem(self, place: Place, record: Record) -> str:
        scopes = {arm_of(scope).label: scope for scope in self.study.scopes()}
        cells = search_trials.trainings(self.study, scopes[record["arm"]], record["params"])
        digest = search_trials.digest([self.key(cell) for cell in cells])
        if not place.key == record["key"] == integrity.trial_key(digest, record["number"]):
            return "another key than that of its point"
        for regime, scores in record.get("scores", {}).items():
            for name, value in scores.items():
                metric = f"val_{regime}_{name}"
                expected = sum(chaos_study.truth(cell, [metric])[metric] for cell in cells) / len(cells)
                if abs(value - expected) > 1e-9:
                    return f"{metric} = {value} instead of {expected}"
        return ""

    def doubled(self, started: Iterable[Start]) -> list[Outcome]:
        """Find trainings that started although their record was valid."""
        known = {place.key: seen for place, seen in self.seen.items() if place not in self.damaged}
        return [
            Outcome(
                "doubled",
                f"{one.key} was trained again {one.time - known[one.key].time:.1f} s after its record",
            )
            for one in started
            if one.key in known and one.time > known[one.key].time + 0.1
        ]

    def damage(self, path: Path, before: bytes) -> None:
        """Note that a file of a cell or a search trial was damaged on purpose; `before` was its content."""
        place = Place(path.parent.parent.name, path.parent.name)
        self.damaged.setdefault(place, {}).setdefault(path.name, before)

    def shown(self, rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """Compare rows of `export`, or of `status --cells`, with the truth."""
        found = []
        names = [f"{part}_{name}" for part in ("test", "wr", "val") for name in SCORES]
        for row in rows:
            if row["key"] is None:
                continue
            place = Place(CELLS, row["key"])
            if row["state"] != "done":
                if place in self.seen and place not in self.damaged and row["state"] != "failed":
                    found.append(
                        Outcome("lost", f"{place.name} has a valid record, and is shown as {row['state']}")
                    )
                continue
            if place.key not in self.cells:
                found.append(Outcome("believed", f"{place.name} is shown as done without a valid record"))
                continue
            expected = chaos_study.truth(self.cells[place.key], names)
            wrong = [
                n for n in names if row.get(n) is not None and row[n] == row[n] and row[n] != expected[n]
            ]
            if wrong or row.get("test_rmse") is None:
                name = wrong[0] if wrong else "test_rmse"
                words = f"{place.name} is shown with {name} = {row.get(name)} instead of {expected[name]}"
                found.append(Outcome("believed", words))
        return found

    def status(self, content: Mapping[str, Any]) -> list[Outcome]:
        """Compare the output of `status --cells --json` with the truth."""
        found = self.shown(content["each"])
        counts = dict(content["cells"])
        total = counts.pop("total")
        if sum(counts.values()) != total:
            found.append(Outcome("unclear", f"status: the counts {counts} do not add up to {total}"))
        trials = [place for place in self.seen if place.folder == TRIALS]
        damaged = [place for place in trials if RECORD in self.damaged.get(place, {})]
        shown = content["search"]["done"]
        if shown > len(trials) - len(damaged):
            words = (
                f"status shows {shown} search trials as done, and {len(damaged)} of {len(trials)} are damaged"
            )
            found.append(Outcome("believed", words))
        return found

    def fsck(self, ending: Ending) -> list[Outcome]:
        """Return the damaged files that the output of `fsck` does not name."""
        text = ending.output + ending.errors
        found = []
        for place, files in self.damaged.items():
            for name in files:
                gone = not (self.root / place.name / name).exists()
                # A deleted record leaves nothing to check, and weights are deleted by each run.
                if gone and name in (RECORD, "weights.pt"):
                    continue
                if f"{place.key}/{name}" not in text:
                    found.append(Outcome("undetected", f"{place.name}/{name} is damaged"))
        return found

    def settle(self) -> None:
        """Take up the store after `retry --damaged`: forget what it deleted, and repair what it left."""
        for place, files in self.damaged.items():
            if (self.root / place.name / RECORD).exists():
                for name, content in files.items():
                    (self.root / place.name / name).write_bytes(content)
            else:
                self.seen.pop(place, None)
        self.damaged.clear()

    def complete(self, database: Path) -> list[Outcome]:
        """Compare everything that a finished study stores with what it must store."""
        found = self.look()
        counts = {folder: sum(place.folder == folder for place in self.seen) for folder in (CELLS, TRIALS)}
        expected = {CELLS: len(self.study.cells()), TRIALS: len(chaos_study.ARMS) * chaos_study.TRIALS}
        stale = counts[CELLS] - len(self._current())
        if (len(self._current()), counts[TRIALS]) != (*expected.values(),):
            found.append(
                Outcome("lost", f"{counts} records in a finished study of {expected}, {stale} stale")
            )
        for kind, folder in (("cell", CELLS), ("trial", TRIALS)):
            found += self._mlflow(database, kind, folder)
        for pattern in ("*/*/checkpoint.pt", "*/*/.*.part", "running/*", "driver.json"):
            found += [
                Outcome("orphaned", f"{path.relative_to(self.root)} is left after the end")
                for path in self.root.glob(pattern)
                # A cell that became stale before it ended keeps its checkpoint, for the settings may return.
                if path.name != "checkpoint.pt" or (path.parent / RECORD).exists()
            ]
        kept = {place.key for place in self.paths(name="weights.pt")} & self._current()
        if kept != self._winners():
            found.append(
                Outcome("lost", f"weights of {sorted(kept)} are stored instead of {sorted(self._winners())}")
            )
        return found + self._journal()

    def _current(self) -> set[str]:
        """Keys of the recorded cells that have the settings which the stored trials choose."""
        records = {
            key: json.loads(self.seen[Place(CELLS, key)].content)
            for folder, key in self.seen
            if folder == CELLS
        }
        chosen = self._chosen()
        return {
            key
            for key, record in records.items()
            if record["cell"]["train"]["learning_rate"] == chosen.get(record["cell"]["variant"])
        }

    def _chosen(self) -> dict[str, float]:
        """Learning rate of each arm's best trial: the lowest within-region RMSE, the first of equals."""
        best: dict[str, tuple[float, int, float]] = {}
        for place, seen in self.seen.items():
            record = json.loads(seen.content)
            if place.folder == TRIALS and record["state"] == "done":
                rate = record["params"]["train.learning_rate"]
                score = record["scores"]["wr"]["rmse"], record["number"], rate
                best[record["arm"]] = min(best.get(record["arm"], score), score)
        return {arm: rate for arm, (_, _, rate) in best.items()}

    def _winners(self) -> set[str]:
        """Keys of each arm's winner: the first fold of the seed with the lowest pooled validation error."""
        seeds: dict[tuple[str, int], list[Record]] = {}
        for key in self._current():
            record = json.loads(self.seen[Place(CELLS, key)].content)
            if record["cell"]["split"]["kind"] == "random":
                seeds.setdefault((record["cell"]["variant"], record["cell"]["seed"]), []).append(record)

        def pooled(records: Iterable[Record]) -> float:
            records = [*records]
            weights = [record["counts"]["n_val"] for record in records]
            squares = (n * r["metrics"]["val_rmse"] ** 2 for n, r in zip(weights, records, strict=True))
            return float(sum(squares) / sum(weights))

        found = set()
        for arm in chaos_study.ARMS:
            of_arm = [records for (variant, _), records in seeds.items() if variant == arm]
            if of_arm:
                found.add(min(min(of_arm, key=pooled), key=lambda r: int(r["cell"]["fold"]))["key"])
        return found

    def _mlflow(self, database: Path, kind: str, folder: str) -> list[Outcome]:
        """Compare the runs of a kind in MLflow with the records: one finished run for each."""
        query = (
            "select k.value, r.status from runs r "
            "join tags k on k.run_uuid = r.run_uuid and k.key = 'key' "
            "join tags t on t.run_uuid = r.run_uuid and t.key = 'kind' "
            "where r.lifecycle_stage = 'active' and t.value = ?"
        )
        with sqlite3.connect(database) as connection:
            runs = connection.execute(query, [kind]).fetchall()
        keys = [key for key, status in runs if status == "FINISHED"]
        recorded = {place.key for place in self.seen if place.folder == folder}
        expected = self._current() if kind == "cell" else recorded
        found = [
            Outcome("doubled", f"MLflow has {keys.count(key)} finished runs of {kind} {key}")
            for key in sorted({*keys})
            if keys.count(key) > 1
        ]
        found += [
            Outcome("orphaned", f"MLflow has a run of {kind} {key} with status {status}")
            for key, status in runs
            if status != "FINISHED"
        ]
        found += [
            Outcome("believed", f"MLflow has a run of {kind} {key}, which has no record")
            for key in sorted({*keys} - recorded)
        ]
        if missing := expected - {*keys}:
            words = f"MLflow has no finished run of {len(missing)} {kind}s, such as {min(missing)}"
            found.append(Outcome("lost", words))
        return found

    def _journal(self) -> list[Outcome]:
        """Compare the trials in Optuna's journal with the records."""
        storage = JournalStorage(JournalFileBackend(str(self.root / "optuna.journal")))
        trials = [json.loads(seen.content) for place, seen in self.seen.items() if place.folder == TRIALS]
        found = []
        for arm in chaos_study.ARMS:
            study = optuna.load_study(storage=storage, study_name=f"{chaos_study.NAME}/{arm}")
            states = [trial.state.name for trial in study.get_trials()]
            if len(states) != chaos_study.TRIALS or not {*states} <= {"COMPLETE", "PRUNED"}:
                found.append(Outcome("lost", f"Optuna's journal has the trials {states} of {arm}"))
            numbers = sorted(trial["number"] for trial in trials if trial["arm"] == arm)
            if numbers != [*range(chaos_study.TRIALS)]:
                found.append(Outcome("doubled", f"the search trials of {arm} have the numbers {numbers}"))
        return found
