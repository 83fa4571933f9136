"""Failures: signatures that are equal for equal causes, groups by signature, and the circuit breaker."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pm25.cell import Cell
from pm25.text import counted
from sweeps.store.records import Record

PACKAGES = ("pm25", "sweeps")

MESSAGE_LENGTH = 120
"""Characters of a message that are compared; the end of a CUDA message lists the memory of each process."""

LINE_LENGTH = 160
"""Longest error, in characters, in the line of a group."""

_CHANGING = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r"(?<!\w)(['\"])(?:(?!\1).)*/(?:(?!\1).)*\1(?!\w)", "<path>"),  # quoted, maybe with spaces
        (r"\b[A-Za-z][\w+.-]*://\S+", "<path>"),
        (r"(?<![\w./])~?(?:/[^\s/'\",:;()\[\]]+)+/?", "<path>"),  # not ug/m3
        (r"\b0x[0-9a-fA-F]+", "#"),
        (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "#"),
        (r"(?<![\w.])(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}\b", "#"),  # a key, or an id of Ray's
        (r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?", "#"),
        (r"(?<![A-Za-z_\d])\d+|\d{3,}", "#"),  # site S00012; but float32 and pm25 are names
        (r"# ?(?:[KMGT]i?B|bytes)\b", "# bytes"),
    )
)


def signature(error: BaseException) -> str:
    """Return the text that equal failures share: `Type: message [pm25/fit.py:fit]`.

    Numbers, addresses and paths, which differ from cell to cell, are replaced in the message. The brackets
    name the innermost function of this project in the traceback, if there is one.
    """
    place = _place(error)
    return _named(type(error).__name__, str(error)) + (f" [{place}]" if place else "")


def signature_of(record: Record) -> str:
    """Return the signature of a failed cell's record, from its type and message if it stores none."""
    error = record["error"]
    return error["signature"] if "signature" in error else _named(error["type"], error["message"])


def alike(message: str) -> str:
    """Return a message in one line, without numbers, addresses and paths, cut to `MESSAGE_LENGTH`."""
    text = " ".join(message.split())
    for pattern, put in _CHANGING:
        text = pattern.sub(put, text)
    return _cut(text, MESSAGE_LENGTH)


def _cut(text: str, length: int) -> str:
    """Shorten a text to `length` characters with an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _named(kind: str, message: str) -> str:
    """Return `Type: message`, the signature without a function."""
    return f"{kind}: {alike(message)}".rstrip(": ")


def _place(error: BaseException) -> str:
    """Return the innermost function of this project in a traceback, such as `pm25/fit.py:fit`.

    The line number is left out, because any edit of the file changes it.
    """
    place, trace = "", error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        if module.split(".")[0] in PACKAGES:
            function = trace.tb_frame.f_code.co_qualname.split(".<locals>")[0]
            place = f"{module.replace('.', '/')}.py:{function}"
        trace = trace.tb_next
    return place


def factors(cell: Cell) -> dict[str, str]:
    """Return a cell's level of every factor of the design, as a filter writes it."""
    return {
        "variant": cell.variant,
        "fusion": cell.fusion or "-",
        "head": cell.head or "plain",
        "split": cell.split.label,
        "fold": str(cell.fold),
        "seed": str(cell.seed),
    }


@dataclass(frozen=True)
class FailureGroup:
    """Cells whose failures have one signature."""

    signature: str
    type: str
    message: str
    """Stored message if it is the same for all cells, or else the message without its differences."""
    keys: tuple[str, ...]
    """Keys of the cells, in the order of the grid."""
    shared: Mapping[str, str]
    """Factor levels that all these cells have in common and that not all cells of the study have."""
    hosts: tuple[str, ...]
    """Names of the machines, sorted; empty where a worker was lost."""

    @property
    def line(self) -> str:
        """Summary of the group in one line."""
        error = _cut(": ".join(filter(None, (self.type, self.message))), LINE_LENGTH)
        cells = counted(len(self.keys), "cell")
        levels = ",".join(f"{factor}={level}" for factor, level in self.shared.items())
        hosts = f" on {', '.join(self.hosts[:3])}" if self.hosts else ""
        more = f" and {len(self.hosts) - 3} more hosts" if len(self.hosts) > 3 else ""
        known = _named(self.type, self.message)  # what follows it in the signature is the place
        place = self.signature[len(known) :] if self.signature.startswith(known) else ""
        return f"{cells}: {levels + ', ' if levels else ''}{error}{place} ({self.keys[0]}{hosts}{more})"

    @property
    def content(self) -> dict[str, Any]:
        """Content of the group in JSON output."""
        return {
            "cells": len(self.keys),
            "where": dict(self.shared),
            "error": self.type,
            "message": self.message,
            "signature": self.signature,
            "hosts": list(self.hosts),
            "key": self.keys[0],
        }


def groups(
    cells: Mapping[str, Cell], records: Mapping[str, Record], waiting: Iterable[Cell] = ()
) -> list[FailureGroup]:
    """Group the failed cells among `cells` by signature, the largest group first.

    `waiting` are cells of the study that have no key yet. They count where a group's factor levels are
    compared with those of all cells.
    """
    by_signature: dict[str, list[str]] = {}
    for key in cells:
        if key in records and records[key]["state"] == "failed":
            by_signature.setdefault(signature_of(records[key]), []).append(key)
    if not by_signature:
        return []
    everywhere = _common([*cells.values(), *waiting])
    found = []
    for name, keys in by_signature.items():
        failed = [records[key] for key in keys]
        messages = {record["error"]["message"] for record in failed}
        common = _common([cells[key] for key in keys])
        found.append(
            FailureGroup(
                signature=name,
                type=failed[0]["error"]["type"],
                message=messages.pop() if len(messages) == 1 else alike(failed[0]["error"]["message"]),
                keys=tuple(keys),
                shared={factor: level for factor, level in common.items() if factor not in everywhere},
                hosts=tuple(sorted({record["host"] for record in failed if "host" in record})),
            )
        )
    return sorted(found, key=lambda group: -len(group.keys))


def _common(cells: Iterable[Cell]) -> dict[str, str]:
    """Return the factor levels that all of `cells` have in common."""
    first, *others = map(factors, cells)
    return {f: level for f, level in first.items() if all(other[f] == level for other in others)}


class Breaker:
    """Circuit breaker that stops a run after `limit` failures with one signature."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._counts: Counter[str] = Counter()
        self.reason: str | None = None
        """Reason to stop the run, in one line; None as long as it may continue."""

    def failed(self, signature: str) -> None:
        """Count a failure of this run. Equal failures need not be consecutive."""
        self._counts[signature] += 1
        # The reason is not changed afterwards, although trainings that are still running may fail too.
        if self.reason is None and self._counts[signature] >= self.limit:
            count = self._counts[signature]
            self.reason = (
                f"{count} equal failures in this run, {signature}; fix the cause, then `sweep retry`"
            )
