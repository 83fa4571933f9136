"""Damage to the files of a study between two runs: flipped, truncated, edited, swapped or deleted."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from sweeps.bench.chaos_referee import CELLS, RECORD, TRIALS, Place, Referee
from sweeps.engine.worker import CHECKPOINT, WEIGHTS
from sweeps.store import declarations
from sweeps.store.integrity import STARTED_FILE

OPERATIONS = ("flipped byte in", "truncated", "deleted", "swapped", "edited")

OF_TASKS = {
    "record of a cell": (CELLS, RECORD),
    "record of a trial": (TRIALS, RECORD),
    "predictions": (CELLS, "predictions.parquet"),
    "history": (CELLS, "history.parquet"),
    "weights": (CELLS, WEIGHTS),
    "checkpoint": (CELLS, CHECKPOINT),
    "start file of a trial": (TRIALS, STARTED_FILE),
}
"""Files of cells and search trials: folder and name."""

OF_THE_STUDY = {
    "driver.json": "driver.json",
    "declarations": declarations.FILE,
    "Optuna's journal": "optuna.journal",
    "MLflow's database": "../mlflow.db",
}
"""Files of the study, relative to its folder."""

_LIKELY = ("record of a cell", "record of a trial", "predictions", "history", "start file of a trial")


class Damage(NamedTuple):
    """Damage that was drawn, and is still to be done."""

    operation: str
    target: str
    seed: int

    @property
    def kind(self) -> str:
        """Name in the table of faults."""
        return f"{self.operation} {self.target}"

    @property
    def detectable(self) -> bool:
        """True if `sweep fsck` must name the damaged file."""
        return self.target in OF_TASKS and self.target != "checkpoint"


def possible(operation: str, target: str) -> bool:
    """Return whether an operation makes sense for a target."""
    if operation == "edited":
        return target in ("record of a cell", "record of a trial", "predictions", "history")
    return operation != "swapped" or (target in OF_TASKS and target not in ("weights", "checkpoint"))


def draw(rng: random.Random) -> Damage:
    """Draw one damage; files of cells and trials are likelier than others."""
    while True:
        target = rng.choice(_LIKELY if rng.random() < 0.8 else [*OF_TASKS, *OF_THE_STUDY])
        operation = rng.choice(OPERATIONS)
        if possible(operation, target):
            return Damage(operation, target, rng.randrange(2**32))


def do(damage: Damage, referee: Referee) -> list[Path]:
    """Damage files and return their paths; empty if no file is left that has no damage yet."""
    rng = random.Random(damage.seed)
    if damage.target in OF_THE_STUDY:
        file = (referee.root / OF_THE_STUDY[damage.target]).resolve()
        if not file.exists() or not file.stat().st_size:
            return []
        _write(damage.operation, file, rng)
        return [file]
    folder, name = OF_TASKS[damage.target]
    whole = [
        path
        for place, path in referee.paths(name=name).items()
        if place.folder == folder and place not in referee.damaged and _may_be_damaged(place, name, referee)
    ]
    count = 2 if damage.operation == "swapped" else 1
    if len(whole) < count:
        return []
    files = rng.sample(whole, count)
    before = [file.read_bytes() for file in files]
    if damage.operation == "swapped":
        if before[0] == before[1]:
            return []
        for file, content in zip(files, reversed(before), strict=True):
            file.write_bytes(content)
    else:
        _write(damage.operation, files[0], rng)
    if damage.detectable:
        for file, content in zip(files, before, strict=True):
            referee.damage(file, content)
    return files


def _may_be_damaged(place: Place, name: str, referee: Referee) -> bool:
    """Return True for a file beside a valid record, and for a checkpoint, which has no record."""
    return place in referee.seen or name == CHECKPOINT


def _write(operation: str, file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    if operation == "deleted":
        file.unlink()
    elif operation == "truncated":
        file.write_bytes(content[: rng.randrange(len(content))])
    elif operation == "edited":
        file.write_bytes(_EDITS[file.name](content))
    else:
        at = rng.randrange(len(content))
        flipped = content[at] ^ (1 << rng.randrange(8))
        file.write_bytes(content[:at] + bytes([flipped]) + content[at + 1 :])


def _edit_record(content: bytes) -> bytes:
    """Lower the scores of a record by 0.5, as somebody might who wants a better result."""
    record = json.loads(content)
    scores = [record["metrics"]] if "metrics" in record else [*record.get("scores", {}).values()]
    for score in scores:
        for name in score:
            score[name] -= 0.5
    if not scores:  # a pruned trial
        record["reported"] = [value - 0.5 for value in record["reported"]]
    return json.dumps(record, indent=1).encode()


def _edit_table(column: str) -> Callable[[bytes], bytes]:
    """Return a function that adds 0.5 to a column of a Parquet file."""

    def edit(content: bytes) -> bytes:
        table = pyarrow.parquet.read_table(pa.BufferReader(content))
        at = table.schema.get_field_index(column)
        values = pyarrow.compute.add(table[column], 0.5).cast(table.schema.field(at).type)
        sink = pa.BufferOutputStream()
        pyarrow.parquet.write_table(table.set_column(at, column, values), sink, compression="zstd")
        return sink.getvalue().to_pybytes()

    return edit


_EDITS: dict[str, Callable[[bytes], bytes]] = {
    RECORD: _edit_record,
    "predictions.parquet": _edit_table("prediction"),
    "history.parquet": _edit_table("validation_rmse"),
}
