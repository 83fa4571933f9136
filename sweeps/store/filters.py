"""The filter that chooses cells by their factors: `variant=geoclip,split=random|spatial,seed=0`."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pm25.cell import Cell
from pm25.errors import InputError
from sweeps.spec.design import Arm
from sweeps.store import failures
from sweeps.store.records import Record

FIELDS = ("variant", "fusion", "head", "arm", "split", "regime", "fold", "seed")
FAILURE_FIELDS = ("error", "host", "signature")

NAMED = 12
"""Known values that an error lists at most."""

Values = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class CellFilter:
    """A filter that was read (`parse`): it chooses the cells that have, in every field, one of its values.

    Kinds of splits stand in it as the labels that they mean.
    """

    wanted: Values

    def matches(self, cell: Cell, record: Record | None = None) -> bool:
        """Whether it chooses the cell. By a failure's fields it does so only with the `record` of one."""
        values = _values(cell, record)
        return all(any(_has(values, field, v) for v in wanted) for field, wanted in self.wanted.items())


def parse(text: str, cells: Sequence[Cell], failed: Sequence[Record] | None = None) -> CellFilter:
    """Read a filter that is to choose some of `cells`.

    `fusion` is `-` without one; `arm` is such as geoclip-hadamard; `split` is a label, or a kind such as
    checkerboard, for all labels of that kind where it is no label itself. With
    `failed`, the records of the same cells, a filter may also name `error` (the type), `host`, and a part
    of the `signature`.

    Raises InputError for a field that there is not, for a value that none of the cells has, with the
    nearest one, and for values that no cell has together: a filter never chooses nothing.
    """
    what = "cell" if failed is None else "failed cell"
    records = [None] * len(cells) if failed is None else failed
    among = [_values(cell, record) for cell, record in zip(cells, records, strict=True)]
    kinds: dict[str, tuple[str, ...]] = {}
    for kind, label in dict.fromkeys((cell.split.kind, cell.split.label) for cell in cells):
        kinds[kind] = (*kinds.get(kind, ()), label)
    kinds = {kind: labels for kind, labels in kinds.items() if kind not in labels}
    wanted: dict[str, tuple[str, ...]] = {}
    left = among
    for field, values in _terms(text, FIELDS if failed is None else FIELDS + FAILURE_FIELDS):
        if field in wanted:
            raise InputError(f"filter {text!r}: {field} stands twice; write {field}=A|B")
        known = list(dict.fromkeys(value for cell in among for value in cell.get(field, ())))
        if field == "split":
            known += kinds
            values = tuple(label for value in values for label in kinds.get(value, (value,)))
        for value in values:
            if not any(_has(cell, field, value) for cell in among):
                raise InputError(
                    f"filter {text!r}: no {what} has {field} {value!r}; {_nearest(value, known)}"
                )
        chosen = [cell for cell in left if any(_has(cell, field, value) for value in values)]
        if not chosen:
            others = dict.fromkeys(value for cell in left for value in cell.get(field, ()))
            so_far = ",".join(f"{name}={'|'.join(values)}" for name, values in wanted.items())
            raise InputError(
                f"filter {text!r}: no {what} with {so_far} has {field}={'|'.join(values)}; {_listed(others)}"
            )
        wanted[field], left = values, chosen
    return CellFilter(wanted)


def _terms(text: str, fields: Sequence[str]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Every `field=value|value`; a comma that no field follows is part of a value, as of a group's name."""
    for term in re.split(r",(?=\s*\w*\s*=)", text):
        field, equals, values = (part.strip() for part in term.partition("="))
        listed = tuple(dict.fromkeys(value.strip() for value in values.split("|")))
        if not equals or not field or not all(listed):
            raise InputError(f"filter {text!r}: write it as FIELD=VALUE, such as variant=geoclip,seed=0|1")
        if field not in fields:
            raise InputError(f"filter {text!r}: there is no field {field!r}; {_nearest(field, fields)}")
        yield field, listed


def _values(cell: Cell, record: Record | None) -> dict[str, tuple[str, ...]]:
    """What a cell has in every field; nothing in those of failures where it has not failed."""
    values: dict[str, tuple[str, ...]] = {f: (level,) for f, level in failures.factors(cell).items()}
    values["regime"] = (cell.split.regime,)
    values["arm"] = (Arm.of(cell).label,)
    if record is not None and record["state"] == "failed":
        values["error"] = (record["error"]["type"],)
        values["signature"] = (failures.signature_of(record),)
        if "host" in record:  # unknown of a worker that was lost
            values["host"] = (record["host"],)
    return values


def _has(values: Values, field: str, value: str) -> bool:
    if field == "signature":
        return any(value in known for known in values.get(field, ()))
    return value in values.get(field, ())


def _nearest(value: str, known: Sequence[str]) -> str:
    by_lower = {name.lower(): name for name in reversed(known)}
    for near in difflib.get_close_matches(value.lower(), by_lower, 1):
        return f"did you mean {by_lower[near]}?"
    return _listed(known)


def _listed(known: Collection[str]) -> str:
    if not known:
        return "there is no value to choose from"
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return f"known are {', '.join(list(known)[:NAMED])}{more}"
