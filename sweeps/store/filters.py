"""Filters that choose cells by their factors, such as `variant=geoclip,split=random|spatial,seed=0`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pm25 import suggest
from pm25.cell import Cell
from pm25.errors import InputError
from sweeps.spec.design import Arm
from sweeps.spec.limits import MOST_CHARACTERS
from sweeps.store import failures
from sweeps.store.records import Record

FIELDS = ("variant", "fusion", "head", "arm", "split", "regime", "fold", "seed")
FAILURE_FIELDS = ("error", "host", "signature")


Values = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class CellFilter:
    """A parsed filter (`parse`): it chooses the cells that have one of its values in every field."""

    wanted: Values
    """Values by field; kinds of splits are replaced by the labels of their splits."""

    def matches(self, cell: Cell, record: Record | None = None) -> bool:
        """Return True if the filter chooses the cell.

        Fields of failures match only with the `record` of a failed cell.
        """
        values = _values(cell, record)
        return all(any(_has(values, field, v) for v in wanted) for field, wanted in self.wanted.items())


def parse(text: str, cells: Sequence[Cell], failed: Sequence[Record] | None = None) -> CellFilter:
    """Parse a filter that must choose at least one of `cells`.

    `fusion` is `-` for arms without one. `arm` is a label such as geoclip-hadamard. `split` is a label, or a
    kind such as checkerboard for all labels of that kind. With `failed`, the records of the same cells, a
    filter may also name the failure's `error` (type) and `host`, and a substring of its `signature`.

    Raises InputError for an unknown field, for a value that none of the cells has, and for values that no
    cell has together.
    """
    if len(text) > MOST_CHARACTERS:
        problem = f"{len(text):,} characters, but at most {MOST_CHARACTERS:,} are allowed"
        raise InputError("filter", "", problem, "name fewer values, or filter in several commands")
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
            raise InputError(f"filter {text!r}", field, "is named twice", f"write {field}=A|B")
        known = list(dict.fromkeys(value for cell in among for value in cell.get(field, ())))
        if field == "split":
            known += kinds
            values = tuple(label for value in values for label in kinds.get(value, (value,)))
        for value in values:
            if not any(_has(cell, field, value) for cell in among):
                raise InputError(
                    f"filter {text!r}", field, f"no {what} has {value!r}", suggest.fix(value, known)
                )
        chosen = [cell for cell in left if any(_has(cell, field, value) for value in values)]
        if not chosen:
            others = dict.fromkeys(value for cell in left for value in cell.get(field, ()))
            so_far = ",".join(f"{name}={'|'.join(values)}" for name, values in wanted.items())
            raise InputError(
                f"filter {text!r}",
                field,
                f"no {what} with {so_far} has {field}={'|'.join(values)}",
                suggest.use_one_of(others),
            )
        wanted[field], left = values, chosen
    return CellFilter(wanted)


def _terms(text: str, fields: Sequence[str]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Yield the field and the values of every `field=value|value`.

    A comma belongs to the value if no field follows it; labels of group splits may contain commas.
    """
    for term in re.split(r",(?=\s*\w*\s*=)", text):
        field, equals, values = (part.strip() for part in term.partition("="))
        listed = tuple(dict.fromkeys(value.strip() for value in values.split("|")))
        if not equals or not field or not all(listed):
            raise InputError(
                f"filter {text!r}",
                "",
                f"{term.strip()!r} is not of the form FIELD=VALUE",
                "write, for example, variant=geoclip,seed=0|1",
            )
        if field not in fields:
            raise InputError(f"filter {text!r}", field, "unknown field", suggest.fix(field, fields))
        yield field, listed


def _values(cell: Cell, record: Record | None) -> dict[str, tuple[str, ...]]:
    """Return a cell's values in every field; the fields of failures are absent unless it failed."""
    values: dict[str, tuple[str, ...]] = {f: (level,) for f, level in failures.factors(cell).items()}
    values["regime"] = (cell.split.regime,)
    values["arm"] = (Arm.of(cell).label,)
    if record is not None and record["state"] == "failed":
        values["error"] = (record["error"]["type"],)
        values["signature"] = (failures.signature_of(record),)
        if "host" in record:  # absent if the worker was lost
            values["host"] = (record["host"],)
    return values


def _has(values: Values, field: str, value: str) -> bool:
    """Return True if `value` is one of the values of `field`, or a substring of the signature."""
    if field == "signature":
        return any(value in known for known in values.get(field, ()))
    return value in values.get(field, ())
