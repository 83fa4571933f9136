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
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from pm25.cell import key_of
from pm25.errors import InputError
from pm25.settings import ENCODERS

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

_ENCODERS = tuple(ENCODERS)  # a damaged record may have a list there, which a set cannot look up
_KEY = re.compile("[0-9a-f]{20}")
_DIGEST = re.compile("[0-9a-f]{64}")
_Number = Annotated[float, Field(allow_inf_nan=False)]


class Damaged(ValueError):
    """Record or file whose content is not what was written; the message says what is wrong."""


class DamagedFile(InputError):
    """File of a record that is missing, or whose bytes are not those that its record names."""


class _Error(BaseModel):
    model_config = ConfigDict(strict=True)

    type: str
    message: str = ""
    signature: str = ""
    traceback: str = ""


class _Fields(BaseModel):
    """Types of a record's fields, each of which may be absent; an undefined metric is null."""

    model_config = ConfigDict(strict=True)

    cell: dict[str, Any] = {}
    data: str = ""
    encoder: str | None = None
    numerics: int = 0
    metrics: dict[str, _Number | None] = {}
    counts: dict[str, NonNegativeInt] = {}
    audit: dict[str, bool | int | _Number | list[str]] = {}
    seconds: Annotated[_Number, Field(ge=0)] = 0.0
    started: str = ""
    ended: str = ""
    threads: int = 0
    versions: dict[str, str] = {}
    error: _Error | None = None
    arm: str = ""
    number: NonNegativeInt = 0
    params: dict[str, Any] = {}
    point: str = ""
    scores: dict[str, dict[str, _Number]] = {}
    reported: list[_Number | None] = []
    epochs: NonNegativeInt = 0
    stacked: NonNegativeInt = 0


TYPES = frozenset(_Fields.model_fields)
"""Fields of a record whose types are checked."""

_REQUIRED = {
    ("cells", "done"): ("cell", "data", "metrics", "counts", "audit", "seconds", "versions", "ended"),
    ("cells", "failed"): ("cell", "error", "ended"),
    ("search", "done"): ("number", "params", "scores", "epochs", "ended"),
    ("search", "failed"): ("number", "params", "error", "epochs", "ended"),
    ("search", "pruned"): ("number", "params", "reported", "epochs", "ended"),
}
"""Fields of unsealed records. A sealed record has the fields that its writer gave it."""


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
    try:
        _Fields.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"][:2])
        raise Damaged(f"{name} is {_shown(first['input'])}") from None
    if not sealed:
        _check_complete(record, folder, state)
    _check_identity(record, folder)
    for name in ("format", "sha256"):
        record.pop(name, None)
    if not record.get("files", True):
        del record["files"]
    return Checked(record, sealed)


def check_file(name: str, content: bytes | None, record: Mapping[str, Any]) -> None:
    """Check one file of a record that passed `check`; `content` is None if it is missing. Raises Damaged.

    A file without a digest must be readable if it is a table.
    """
    wanted = file_digest(record, name)
    if content is None:
        if name not in MAY_BE_ABSENT:
            raise Damaged(f"{name} is missing")
    elif wanted is not None and digest(content) != wanted:
        raise Damaged(f"the SHA-256 of {name} is not the one in its record")
    elif wanted is None and name.endswith(".parquet"):
        try:
            pyarrow.parquet.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
        except (OSError, pa.ArrowException):
            raise Damaged(f"{name} is not a readable table") from None


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
        isinstance(one, str) and _DIGEST.fullmatch(one) for one in files.values()
    ):
        raise Damaged("it does not list the SHA-256 of its files")


def _check_complete(record: Mapping[str, Any], folder: Folder, state: str) -> None:
    for name in _REQUIRED[folder, state]:
        if name not in record:
            raise Damaged(f"{name} is missing")
    if state == "failed" and "message" not in record["error"]:
        raise Damaged("error.message is missing")
    if folder == "search" and state == "done":
        if not record["scores"]:
            raise Damaged("scores is empty")
        for regime, scores in record["scores"].items():
            if "rmse" not in scores:
                raise Damaged(f"scores.{regime}.rmse is missing")
    if folder == "cells" and state == "done":
        for name in ("val_rmse", "test_rmse"):
            if name not in record["metrics"]:
                raise Damaged(f"metrics.{name} is missing")
        if record["metrics"]["test_rmse"] is None:
            raise Damaged("metrics.test_rmse is null")


def _check_identity(record: Mapping[str, Any], folder: Folder) -> None:
    """Compare the key with the hash of what it stands for, as far as the record has all of it.

    The key of a split by groups also hashes a column of the table, and the record of a lost worker has no
    encoder.
    """
    if not _KEY.fullmatch(record["key"]):  # no study asks for such a name
        return
    if folder == "search":
        if {"point", "number"} <= record.keys() and record["key"] != trial_key(
            record["point"], record["number"]
        ):
            raise Damaged("its point and its number are those of another trial")
        return
    if not {"cell", "data", "numerics"} <= record.keys():
        return
    cell, split = record["cell"], record["cell"].get("split")
    encoded = cell.get("variant") in _ENCODERS
    if (isinstance(split, dict) and split.get("kind") == "group") or (encoded and "encoder" not in record):
        return
    encoder = {"encoder": record["encoder"]} if encoded else {}
    try:
        key = key_of(cell, record["data"], record["numerics"], **encoder)
    except (ValueError, RecursionError):
        raise Damaged("its cell is not one that a key can stand for") from None
    if record["key"] != key:
        raise Damaged("its cell, data, encoder and numerics are those of another key")


def _shown(value: Any) -> str:
    """Show a value of a record, long ones in part."""
    return "missing" if value is None else reprlib.repr(value)
