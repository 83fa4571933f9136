"""Proof that a record and its files are those that were written: digests, keys, and types of fields.

A `result.json` holds the version of its format, its key, and the SHA-256 of every file beside it. It also
holds the SHA-256 of its own bytes, taken with the 64 digits of that hash set to zero. A record that fails a
check is damaged: it never becomes a number.
"""

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from pm25.cell import key_of
from pm25.errors import InputError
from pm25.limits import MOST_COUNTED, MOST_DAYS
from pm25.settings import REFERENCES, embeds

FORMAT = 2
"""Version of the format of `result.json`. Records of version 1 have no digest: they are unsealed."""

UNSET = "0" * 64
"""Digits that stand for a record's own digest while the digest is computed."""

SEAL = ("format", "sha256", "files")
"""Fields of a sealed record that an unsealed one does not have."""

MAY_BE_ABSENT = ("weights.pt",)
"""Sealed files that may be deleted after the record was written."""

TABLES = ("predictions.parquet", "history.parquet")
"""Files that every done cell has stored."""

PREDICTION_COLUMNS = ("part", "site_id", "lat", "lon", "date", "truth", "prediction")
"""Columns of a table of predictions."""

PARTS = ("test", "wr")
"""Evaluation sets whose predictions are stored."""

STARTED_FILE = "begun.json"
"""Start file of a trial, with its arm, number and params, written when the trial is given to a worker."""

SEALED_FILES = (*TABLES, *MAY_BE_ABSENT, STARTED_FILE)
"""Files beside a record whose digests it holds."""

ENDED = {"cells": ("done", "failed"), "search": ("done", "failed", "pruned")}
"""States of records, by the folder of a study in which they are stored."""

SHOWN = 5
"""Largest number of damaged records that a command describes in lines of their own."""

RETRY = "run `sweep retry STUDY --damaged`, and then `sweep run STUDY`"
"""Fix of a damaged record."""

CHECKPOINT = "checkpoint.pt"
"""State of an unfinished training; its first line has the hash of the rest."""

Folder = Literal["cells", "search"]

_KEY = re.compile("[0-9a-f]{20}")
_DIGEST = re.compile("[0-9a-f]{64}")
_FILE = re.compile(r"\w[\w.-]*")


class Damaged(ValueError):
    """Record or file whose content is not what was written; the message says what is wrong."""


class DamagedFile(InputError):
    """File of a record that is missing, or whose bytes are not those that its record names."""


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("no time zone")
    return text


_Number = Annotated[float, Field(allow_inf_nan=False)]
_Measurement = Annotated[float, Field(ge=-MOST_COUNTED, le=MOST_COUNTED)]
_Count = Annotated[int, Field(ge=0, le=MOST_COUNTED)]
_Samples = Annotated[int, Field(ge=1, le=MOST_COUNTED)]
_Seconds = Annotated[_Number, Field(ge=0)]
_Rmse = Annotated[_Number, Field(ge=0)]
_Moment = Annotated[str, AfterValidator(_moment)]


class _Block(BaseModel):
    """Types of some fields; those that are not listed may have any value."""

    model_config = ConfigDict(strict=True, frozen=True)


class _Error(_Block):
    type: str
    message: str
    signature: str = ""
    traceback: str = ""


class _Split(_Block):
    kind: str


class _Cell(_Block):
    """Settings by which a cell of any version is labelled; its key holds the others."""

    variant: str
    fusion: str | None = None
    head: str | None = None
    split: _Split
    fold: _Count
    seed: int


class _Metrics(_Block):
    """Metrics of a done cell; an undefined one is null, but the test RMSE."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Number | None]

    test_rmse: _Rmse
    val_rmse: _Rmse | None


class _Sets(_Block):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Count]

    n_train: _Samples
    n_val: _Samples
    n_test: _Samples


class _Counts(_Sets):
    epochs: _Samples
    best_epoch: _Samples


class _ReferenceCounts(_Sets):
    """Counts of a reference, which has no epochs."""

    epochs: None = None
    best_epoch: None = None


class _Audit(_Block):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, bool | _Measurement]

    failed: list[str] = Field(default_factory=list)


class _Scores(_Block):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Number]

    rmse: _Rmse


class _Searched(_Block):
    test_share: _Number = 0.0


_EMPTY: Any = Field(default_factory=dict)
"""Default that pydantic does not copy; with it, the check of a record takes a third less time."""


class _Ended(_Block):
    """Fields of every record. Those of the place of a training are absent if its worker was lost."""

    key: str
    data: str = ""
    encoder: str | None = None
    numerics: _Count = 0
    commit: str = ""
    dirty: bool = False
    host: str = ""
    device: str = ""
    threads: _Samples = 1
    versions: dict[str, str] = _EMPTY
    share: dict[str, _Number] = _EMPTY
    gpu_memory_mb: _Number = 0.0
    seconds: _Seconds = 0.0
    started: _Moment = ""
    ended: _Moment


class _EndedCell(_Ended):
    cell: _Cell
    stacked: _Samples = 1
    search: dict[str, Any] = _EMPTY
    searched: _Searched = _Searched()
    tuned: dict[str, Any] = _EMPTY


class _DoneCell(_EndedCell):
    data: str
    encoder: str | None
    numerics: _Count
    metrics: _Metrics
    counts: _Sets
    audit: _Audit
    seconds: _Seconds
    threads: _Samples
    device: str
    versions: dict[str, str]


class _DoneTraining(_DoneCell):
    counts: _Counts


class _DoneReference(_DoneCell):
    counts: _ReferenceCounts


class _FailedCell(_EndedCell):
    error: _Error


class _EndedTrial(_Ended):
    kind: Literal["trial"]
    arm: str
    split: str = ""
    fold: _Count = 0
    number: _Count
    params: dict[str, Any]
    point: str
    seconds: _Seconds
    epochs: _Count
    reported: list[_Number | None]


class _DoneTrial(_EndedTrial):
    scores: Annotated[dict[str, _Scores], Field(min_length=1)]


class _FailedTrial(_EndedTrial):
    error: _Error


_FIELDS: dict[str, dict[str, type[_Ended]]] = {
    "cells": {"done": _DoneTraining, "failed": _FailedCell},
    "search": {"done": _DoneTrial, "failed": _FailedTrial, "pruned": _EndedTrial},
}
"""Fields that readers need, with their types, by folder and state. Version 0.1.0 has written them, too."""


class Checked(NamedTuple):
    """Record that passed every check."""

    record: dict[str, Any]
    """Fields of the record without the seal; `files` has the digests of its files, if it has files."""
    sealed: bool


def digest(content: bytes | pa.Buffer) -> str:
    """Compute the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def trial_key(point: str, number: int) -> str:
    """Return the key of a search trial: a hash of its point and its number in the search of the arm."""
    return hashlib.sha256(f"{point}/{number}".encode()).hexdigest()[:20]


def start_file(record: Mapping[str, Any]) -> bytes:
    """Return the bytes of the start file of a search trial, from its record or its first fields."""
    names = ("kind", "arm", "split", "fold", "number", "params", "point")
    return json.dumps({name: record[name] for name in names if name in record}, indent=1).encode()


def seal(record: Mapping[str, Any], files: Mapping[str, str]) -> bytes:
    """Return the bytes of a `result.json`; `files` are the digests of the files beside it, by name.

    Raises ValueError for a number that is not finite.
    """
    content = {name: value for name, value in record.items() if name not in SEAL}
    sealed = {"format": FORMAT, "sha256": UNSET, **content, "files": dict(files)}
    text = json.dumps(sealed, indent=1, allow_nan=False).encode()
    # The first 64 zeros are those of the second field.
    return text.replace(UNSET.encode(), digest(text).encode(), 1)


def check(content: bytes, key: str, folder: Folder) -> Checked:
    """Read the bytes of the `result.json` in the folder of `key`. Raises Damaged."""
    record = _parse(content)
    sealed = any(name in record for name in SEAL)
    if sealed:
        _check_seal(content, record)
    if record.get("key") != key:
        raise Damaged(f"it is the record of key {_shown(record.get('key'))}")
    state = record.get("state")
    if state not in ENDED[folder]:
        raise Damaged(f"its state is {_shown(state)}")
    named = _KEY.fullmatch(key) is not None  # no study asks for a folder with another name
    try:
        _fields(record, folder).model_validate(record)
    except ValidationError as error:
        if problem := _field_problem(record, error, complete=named):
            raise Damaged(problem) from None
    if named:
        _check_identity(record, folder)
    if named and sealed and folder == "cells" and state == "done":
        _check_tables(record["files"])
    for name in ("format", "sha256"):
        record.pop(name, None)
    if not record.get("files", True):
        del record["files"]
    return Checked(record, sealed)


def _fields(record: Mapping[str, Any], folder: Folder) -> type[_Ended]:
    """Return the types of a record's fields, by its folder, its state and its kind of cell."""
    found, cell = _FIELDS[folder][record["state"]], record.get("cell")
    is_reference = isinstance(cell, dict) and cell.get("variant") in REFERENCES
    return _DoneReference if is_reference and found is _DoneTraining else found


def check_file(name: str, content: bytes | None, record: Mapping[str, Any]) -> None:
    """Check one file of a record that passed `check`; `content` is None if it is missing. Raises Damaged.

    A table must also be one that a cell stores (`check_table`), since its digest may be forged.
    """
    wanted = file_digest(record, name)
    if content is None:
        if name not in MAY_BE_ABSENT:
            raise Damaged(f"{name} is missing")
    elif wanted is not None and digest(content) != wanted:
        raise Damaged(f"the SHA-256 of {name} is not the one in its record")
    elif name.endswith(".parquet"):
        try:
            file = pyarrow.parquet.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            table = file.read(use_threads=False)  # threads take longer for a small file
        except (OSError, pa.ArrowException):
            raise Damaged(f"{name} is not a readable table") from None
        check_table(name, table)


def check_table(name: str, table: pa.Table) -> None:
    """Check columns, types and values of a table of predictions or of a history; others have any columns.

    Raises Damaged for a table that no cell stores, and of which no number could be computed.
    """
    if name == TABLES[0]:
        _check_predictions(name, table)
    elif name == TABLES[1]:
        _check_history(name, table)


def _check_predictions(name: str, table: pa.Table) -> None:
    for column in PREDICTION_COLUMNS:
        values = _column(name, table, column)
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        if column in ("part", "site_id"):
            fits = pa.types.is_string(kind)
        elif column == "date":
            fits = pa.types.is_date32(kind)
        else:
            fits = pa.types.is_float32(kind) or pa.types.is_float64(kind)
        if not fits:
            raise Damaged(f"column {column} of {name} has the type {values.type}")
        if values.null_count:
            raise Damaged(f"column {column} of {name} has a missing value")
        if pa.types.is_floating(kind):
            # A prediction of the second evaluation set may be infinite, where undoing log1p overflows.
            numbers = values.to_numpy()
            wrong = np.isnan(numbers) if column == "prediction" else ~np.isfinite(numbers)
            if wrong.any():
                raise Damaged(f"column {column} of {name} has a value that is not finite")
    if other := {*pc.unique(table["part"].cast(pa.string())).to_pylist()} - {*PARTS}:
        raise Damaged(f"column part of {name} has the value {_shown(min(other))}")
    days = pc.min_max(table["date"].cast(pa.int32()))
    if table.num_rows and days["max"].as_py() - days["min"].as_py() > MOST_DAYS:  # sums by day need memory
        raise Damaged(f"column date of {name} has more than {MOST_DAYS:,} days")


def _check_history(name: str, table: pa.Table) -> None:
    if not pa.types.is_integer(_column(name, table, "epoch").type) or table["epoch"].null_count:
        raise Damaged(f"column epoch of {name} does not have numbers of epochs")
    _column(name, table, "validation_rmse")
    for field in table.schema:
        if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            raise Damaged(f"column {field.name} of {name} has the type {field.type}")


def _column(name: str, table: pa.Table, column: str) -> pa.ChunkedArray:
    if table.column_names.count(column) != 1:
        raise Damaged(f"{name} has {table.column_names.count(column)} columns named {column}")
    return table[column]


def file_digest(record: Mapping[str, Any] | None, name: str) -> str | None:
    """Return the SHA-256 that a record names for one of its files; None for a file that it does not name."""
    found: str | None = (record or {}).get("files", {}).get(name)
    return found


def files_of(found: Checked, *, all_files: bool = True) -> list[str]:
    """Return the names of the files beside a record that are to be checked: all, or those that readers read.

    Weights may be deleted, and an ended trial is identified by its own record, not by its start file.
    """
    record = found.record
    names = [*record.get("files", {})]
    if not found.sealed and record["state"] == "done" and "cell" in record:
        names = [*TABLES]
    return [name for name in names if all_files or name not in (*MAY_BE_ABSENT, STARTED_FILE)]


def damaged(key: str, path: str, problem: str) -> dict[str, Any]:
    """Return what readers get in place of a damaged record: a state, and no number."""
    return {"key": key, "state": "damaged", "damage": {"file": path, "problem": problem}}


def describe(record: Mapping[str, Any]) -> str:
    """Describe the damage of a record that `damaged` made, in one line with its fix."""
    damage = record["damage"]
    return str(InputError(damage["file"], "", f"damaged: {damage['problem']}", RETRY))


def notices(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe damaged records, one line each; of many, the first ones and the number of the others."""
    lines = [describe(record) for record in found[:SHOWN]]
    return lines + [f"{len(found) - SHOWN} more are damaged; `sweep fsck` lists them"] * (len(found) > SHOWN)


def checkpoint_is_intact(content: bytes) -> bool:
    """Return True if the first line of a checkpoint has the SHA-256 of the rest."""
    header, _, state = content.partition(b"\n")
    try:
        return bool(json.loads(header)["sha256"] == digest(state))
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def _parse(content: bytes) -> dict[str, Any]:
    try:
        record = from_json(content, allow_inf_nan=False)  # a third of the time of the standard library
    except ValueError:
        try:  # which also reads half of a surrogate pair, as the traceback of a failure may have it
            record = _DECODER.decode(content.decode())
        except (ValueError, RecursionError):
            raise Damaged("it is not JSON") from None
    if not isinstance(record, dict):
        raise Damaged("it is not a record in JSON")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
"""Decoder that refuses NaN and infinities; one is kept, because making one takes as long as a record."""


def _check_seal(content: bytes, record: Mapping[str, Any]) -> None:
    version, declared, files = (record.get(name) for name in SEAL)
    if version != FORMAT:
        raise Damaged(f"its format is {_shown(version)}, and this version reads {FORMAT}")
    if not isinstance(declared, str) or not _DIGEST.fullmatch(declared):
        raise Damaged("it has no SHA-256 of its own content")
    if digest(content.replace(declared.encode(), UNSET.encode(), 1)) != declared:
        raise Damaged("its content does not have the SHA-256 that it declares")
    if not isinstance(files, dict) or not all(
        _FILE.fullmatch(name) and isinstance(one, str) and _DIGEST.fullmatch(one)
        for name, one in files.items()
    ):
        raise Damaged("it does not list the SHA-256 of its files")


def _check_tables(files: Mapping[str, str]) -> None:
    for name in TABLES:
        if name not in files:
            raise Damaged(f"it does not list the SHA-256 of {name}")


def _field_problem(record: Mapping[str, Any], error: ValidationError, *, complete: bool) -> str:
    """Describe the first field that has a wrong value or, if `complete`, is missing; empty without one."""
    for fault in error.errors(include_url=False):
        missing = fault["type"] == "missing"
        names: list[str] = []
        value: Any = record
        for name in fault["loc"]:  # which may end with a type that the value does not have
            if not isinstance(value, dict):
                break
            names.append(str(name))
            value = value.get(str(name))
        if complete or not missing:
            return f"{'.'.join(names)} is {'missing' if missing else _shown(value)}"
    return ""


def _check_identity(record: Mapping[str, Any], folder: Folder) -> None:
    """Compare the key with the hash of what it stands for, as far as the record has all of it.

    The key of a split by groups also hashes a column of the table, and the record of a lost worker has no
    encoder. The cell of such a record is compared with the one that is asked for (`StudyState.of_its_cell`).
    """
    if folder == "search":
        if record["key"] != trial_key(record["point"], record["number"]):
            raise Damaged("its point and its number are those of another trial")
        return
    if not {"cell", "data", "numerics"} <= record.keys():
        return
    cell, split = record["cell"], record["cell"]["split"]
    encoded = embeds(cell["variant"])
    lost = record["state"] == "failed" and "encoder" not in record
    if split["kind"] == "group" or (encoded and lost):
        return
    encoder = {"encoder": record.get("encoder")} if encoded else {}
    try:
        key = key_of(cell, record["data"], record["numerics"], **encoder)
    except (ValueError, RecursionError):
        raise Damaged("its cell is not one that a key can stand for") from None
    if record["key"] != key:
        raise Damaged("its cell, data, encoder and numerics are those of another key")


def _shown(value: Any) -> str:
    """Show a value of a record, long ones in part."""
    return "missing" if value is None else reprlib.repr(value)
