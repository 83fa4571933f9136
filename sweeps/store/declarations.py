"""Declarations of a study: its claims and analysis settings, stored with a time before the first result.

`<storage>/<study>/declarations.json` is a list that only grows. `sweep run` appends a declaration before its
first training, unless the last one has the same hash. Nothing else writes the file.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pm25.errors import InputError
from pm25.text import parse_json
from sweeps.spec.claims import Contrast
from sweeps.spec.design import Arm
from sweeps.spec.study import Study
from sweeps.store import records
from sweeps.store.records import StorageError, Store

FILE = "declarations.json"
FORMAT = 1
"""Version of the file's format."""
ORIGIN = "origin.json"
"""File with the identity of the study's store (`origin`)."""

ANALYSIS = {"metric", "alpha", "rope", "block_degrees"}
"""Analysis settings that decide a verdict."""
SETTINGS = {"window", "protocol", "neighbours", "model", "train", "search"}
"""Settings of a study that its results depend on, beside the design and the channels."""


class Declaration(NamedTuple):
    """Content that a study declared at one time."""

    time: str
    """Time in UTC, in ISO format."""
    cells: int
    """Number of cells that had scores at this time."""
    trials: int
    """Number of search trials that had scores at this time."""
    content: Mapping[str, Any]
    """Declared claims and settings (`content`)."""

    @property
    def sha256(self) -> str:
        """Hash of the content."""
        return digest(self.content)

    @property
    def first(self) -> bool:
        """True if no result existed at this time."""
        return not self.cells and not self.trials


def content(study: Study) -> dict[str, Any]:
    """Return what a study declares, as JSON: contrasts, arms, splits, seeds, analysis and other settings.

    The settings are those that a result depends on. Locations of files are left out, because a study may be
    moved. Each claim gives one contrast with its text. Without claims, the contrasts are those that are
    tested together (`Study.contrasts`), and their text is empty.
    """
    found = [(claim.claim, claim.contrast) for claim in study.claims]
    found = found or [("", contrast) for contrast in study.contrasts()]
    declared = {
        "contrasts": [{"claim": text, **_contrast_content(contrast)} for text, contrast in found],
        "arms": [arm.label for arm in study.arms()],
        "splits": {factor.split.label: tuple(factor.folds) for factor in study.design.split},
        "split_settings": {
            factor.split.label: factor.split.in_cell().model_dump(mode="json")
            for factor in study.design.split
        },
        "seeds": study.design.model_dump(mode="json")["seed"],
        "analysis": study.analysis.model_dump(mode="json", include=ANALYSIS),
        "settings": study.model_dump(mode="json", by_alias=True, include=SETTINGS)
        | {"channels": study.data.channels},
    }
    plain: dict[str, Any] = json.loads(json.dumps(declared))  # as it is read again: lists, no tuples
    return plain


def contrasts(declared: Mapping[str, Any]) -> list[tuple[str, Contrast]]:
    """Return the text and the contrast of every item of a declaration's content."""
    found = []
    for item in declared["contrasts"]:
        fields = {name: item[name] for name in Contrast._fields}
        arms = {name: Arm(**fields[name]) for name in ("arm", "other")}
        found.append((str(item["claim"]), Contrast(**fields | arms)))
    return found


def digest(declared: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of the canonical JSON of a declaration's content."""
    text = json.dumps(declared, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read(store: Store) -> list[Declaration]:
    """Read the declarations, oldest first; none if the file does not exist.

    Raises InputError for a file that is damaged or was edited, and for a storage that cannot be read.
    """
    text = store.own_file(FILE)
    if text is None:
        return []
    try:
        return [_declaration(item) for item in parse_json(text)]
    except (ValueError, TypeError, LookupError):
        raise InputError(
            store.location(FILE)[1],
            "",
            "not a list of declarations, each with the hash of its content",
            "restore the file, or delete it; reports will then say that no declaration was stored",
        ) from None


def origin(store: Store) -> str:
    """Return the identity of a study's store: the time and the hash of its first declaration.

    It is empty before the first declaration. `origin.json` keeps it, so that the store has the same identity
    after its declarations were deleted or damaged. Raises InputError for a storage that cannot be read or
    written, and LockLost.
    """
    content = store.own_file(ORIGIN)
    if content is not None:
        with contextlib.suppress(ValueError, LookupError, TypeError):  # a damaged file is made again
            return str(parse_json(content)["origin"])
    first = read(store)[:1]
    if not first:
        return ""
    found = f"{first[0].time} {first[0].sha256[:8]}"
    system, path = store.location(ORIGIN)
    try:
        records.write(system, path, json.dumps({"origin": found}).encode(), store.fenced)
    except StorageError as error:
        raise store.refusal("written", error) from None
    return found


def declare(study: Study, store: Store) -> None:
    """Store what a study declares now, with the time, unless the last declaration is the same.

    Raises InputError for a damaged file, and for a storage that cannot be read or written. Raises LockLost.
    """
    known, declared = read(store), content(study)
    if known and known[-1].sha256 == digest(declared):
        return
    time = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        counts = _scored(store), _scored(store.search)
        system, path = store.location(FILE)
        items = [_json(one) for one in (*known, Declaration(time, *counts, declared))]
        records.write(system, path, json.dumps(items, indent=1).encode(), store.fenced)
    except StorageError as error:
        raise store.refusal("written", error) from None


def _scored(store: Store) -> int:
    """Count the records that have scores, whether the study still asks for their cells or not."""
    found = store.records(sorted(store.holding("result.json")))
    return sum(record["state"] not in ("failed", "damaged") for record in found.values())


def _contrast_content(contrast: Contrast) -> dict[str, Any]:
    arms = {"arm": contrast.arm._asdict(), "other": contrast.other._asdict()}
    return {**contrast._asdict(), **arms}


def _json(declaration: Declaration) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "time": declaration.time,
        "cells": declaration.cells,
        "trials": declaration.trials,
        "sha256": declaration.sha256,
        "declared": declaration.content,
    }


def _declaration(item: Mapping[str, Any]) -> Declaration:
    """Read one item of the file. Raises ValueError, TypeError or LookupError for a damaged one."""
    found = Declaration(item["time"], item["cells"], item["trials"], item["declared"])
    datetime.fromisoformat(found.time)
    counts_are_numbers = type(found.cells) is int and type(found.trials) is int
    if item["format"] != FORMAT or item["sha256"] != found.sha256 or not counts_are_numbers:
        raise ValueError
    contrasts(found.content)
    return found
