"""Explanation of a cell's state: the parts of its key that differ from the key of the most similar cell."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pm25 import encoders
from pm25.cell import Cell
from pm25.errors import InputError
from pm25.settings import dotted, embeds
from pm25.splits import GroupSplit, KNNDMSplit
from sweeps.spec.design import Arm
from sweeps.state import StudyState
from sweeps.store import integrity
from sweeps.store.records import Record, failed_checks, intact

NOT_SET = "not set"
"""Value of a setting that one of two keys leaves out because it does not apply there or is the default."""

NOT_RECORDED = "not recorded"
"""Value of a part of a key that the record does not contain."""

CUT = ("split.seed", "split.validation", "split.holdout")
"""Settings of a split that its label does not include."""

_MEANING = {
    "data": "the table's values, sites, days or channels",
    "encoder": "the encoder's weights or options",
    "numerics": "the version of the code's numbers",
}


@dataclass(frozen=True)
class KeyDifference:
    """Part of a key whose value in the store differs from the value that the study requests."""

    part: str
    """Dotted setting such as `model.width`.

    Others are `data`, `data.<group column>`, `data.domain`, `encoder` and `numerics`.
    """
    stored: Any
    asked: Any
    tuned: bool = False
    """True if the search of the arm chooses this setting."""

    def line(self, back: bool) -> str:
        """Return `model.width: 32 -> 64`, from the stored to the requested value; reversed with `back`."""
        old, new = map(self._shown, (self.stored, self.asked))
        meaning = _MEANING.get(self.part, "")
        if self.part == "data.domain":
            meaning = "which places are the prediction domain"
        elif self.part.startswith("data."):
            meaning = "which site is in which group"
        elif self.tuned:
            meaning = "chosen by the arm's search"
        change = f"{new} -> {old}" if back else f"{old} -> {new}"
        return f"{self.part}: {change}{f'  ({meaning})' if meaning else ''}"

    def _shown(self, value: Any) -> str:
        """Format a value; fingerprints are cut to 12 digits."""
        if isinstance(value, str):
            return value[:12] if self.part.split(".")[0] in _MEANING else value
        return json.dumps(value)


@dataclass(frozen=True)
class Relative:
    """Most similar cell: a stored one for a missing cell, one of the grid for a stale cell."""

    key: str | None
    """Key; None if the search of the arm has not chosen the settings yet."""
    label: str
    state: str
    """State: `done`, `failed`, `missing`, or `waiting` for the search of its arm."""
    differences: tuple[KeyDifference, ...]


@dataclass(frozen=True)
class Explanation:
    """State of one cell, and the comparison with its most similar cell."""

    key: str
    label: str
    state: str
    """State: `done`, `failed`, `missing` or `damaged` for a cell of the grid; `stale` for one outside it."""
    record: Record | None = None
    relative: Relative | None = None
    where: str = ""
    """Filter that chooses only this cell of the grid."""

    @property
    def content(self) -> dict[str, Any]:
        """Content of the explanation in JSON output."""
        record, relative = self.record or {}, self.relative
        return {
            "key": self.key,
            "label": self.label,
            "state": self.state,
            "stored": record.get("state"),
            **{
                name: record[name]
                for name in ("ended", "host", "device", "seconds", "error")
                if name in record
            },
            **({"damage": record["damage"]} if "damage" in record else {}),
            **({"marked": failed_checks(record)} if "audit" in record else {}),
            "relative": None
            if relative is None
            else {
                "key": relative.key,
                "label": relative.label,
                "state": relative.state,
                "differences": [vars(difference) for difference in relative.differences],
            },
        }

    @property
    def lines(self) -> list[str]:
        """Lines of the explanation in terminal output."""
        record, relative = self.record or {}, self.relative
        states = {
            "done": "done, as the study asks for it",
            "failed": "failed",
            "missing": "missing",
            "damaged": "damaged",
            "stale": f"stale: {record.get('state')}, and the study no longer asks for it",
        }
        lines = [f"{self.key} {self.label}: {states[self.state]}"]
        if "damage" in record:
            return [*lines, f"  {integrity.describe(record)}"]
        if record:
            machine = f" on {record['host']}" if "host" in record else ""
            machine += f" ({record['device']})" if "device" in record else ""
            duration = f", {record['seconds']:g} s" if "seconds" in record else ""
            lines.append(f"  ended   {record['ended']}{machine}{duration}")
        if audit_failed := failed_checks(record):
            lines.append(f"  audit   failed: {'; '.join(audit_failed)}")
        if "error" in record:
            lines.append(f"  error   {record['error']['type']}: {record['error']['message']}")
            lines += [f"    {line}" for line in record["error"].get("traceback", "").splitlines()]
        if relative is None:
            lines += ["  nothing is stored to compare it with"] * (self.state == "missing")
            return lines
        stale = self.state == "stale"
        name = " ".join(filter(None, (relative.key, relative.label)))
        lines.append(f"  nearest {'in the grid' if stale else 'stored'}: {name} ({relative.state})")
        if relative.state == "waiting":
            lines.append("  the search of its arm has not chosen its settings yet")
        if relative.differences:
            lines.append("  change these back to request it again" if stale else "  what differs")
        lines += [f"    {difference.line(back=stale)}" for difference in relative.differences]
        return lines


def explain(state: StudyState, key: str) -> Explanation:
    """Explain the cell whose key is `key`, or begins with it.

    Raises InputError if no cell or more than one cell has such a key.
    """
    key = _complete(state, key)
    cell, record = state.cells.get(key), state.store.record(key, "tables")
    if cell is not None and record is not None:
        record = state.of_its_cell(key, record)
    if record is not None and record["state"] == "damaged":
        return Explanation(key, "a stored cell" if cell is None else cell.label, "damaged", record)
    if cell is None:
        if record is None:
            _, folder = state.store.location(state.store.folder, key)
            raise InputError(
                f"key {key!r}",
                "",
                "incomplete, without a record, and not part of the study",
                f"delete {folder}",
            )
        return Explanation(key, _label(record), "stale", record, _nearest_requested(state, record))
    if record is None:
        return Explanation(key, cell.label, "missing", None, _nearest_stored(state, cell))
    levels = {"arm": Arm.of(cell).label, "split": cell.split.label, "fold": cell.fold, "seed": cell.seed}
    only = ",".join(f"{field}={level}" for field, level in levels.items())
    return Explanation(key, cell.label, record["state"], record, where=only)


def _complete(state: StudyState, key: str) -> str:
    """Return the complete key that begins with `key`. Raises InputError."""
    known = {*state.cells, *state.store.keys()}
    found = [key] if key in known else sorted(name for name in known if key and name.startswith(key))
    if len(found) > 1:
        raise InputError(
            f"key {key!r}",
            "",
            f"{len(found)} keys begin with it, such as {found[0]} and {found[1]}",
            "give more digits",
        )
    if not found:
        raise InputError(
            f"key {key!r}",
            "",
            f"neither study {state.study.study} nor its store has such a cell",
            "use a key that `sweep export` lists",
        )
    return found[0]


def _nearest_stored(state: StudyState, cell: Cell) -> Relative | None:
    """Return the stored cell most similar to a missing one; of equals a done one, then the newest."""
    records = intact(state.store.records(state.store.keys())).values()
    of_cells = [record for record in records if {"cell", "ended"} <= record.keys()]
    newest_first = sorted(of_cells, key=lambda record: (record["ended"], record["key"]), reverse=True)
    asked = next(_asked_parts(state, [cell]))
    tuned = _tuned(state, cell)
    found = [(_differences(_stored_parts(record), asked, tuned), record) for record in newest_first]
    if not found:
        return None
    parts, record = min(found, key=lambda pair: (*_distance(pair[0]), pair[1]["state"] != "done"))
    parts = parts or _unrecorded(record, asked, state, cell)
    return Relative(record["key"], _label(record), record["state"], parts)


def _nearest_requested(state: StudyState, record: Record) -> Relative:
    """Return the cell of the grid most similar to a stale one, the first of equals."""
    stored = _stored_parts(record)
    grid: list[tuple[str | None, Cell]] = [*state.cells.items(), *((None, cell) for cell in state.waiting)]
    found = []
    for (key, cell), asked in zip(grid, _asked_parts(state, [cell for _, cell in grid]), strict=True):
        parts = _differences(stored, asked, _tuned(state, cell))
        if key is None:  # settings that the search will choose do not count as differences
            parts = tuple(difference for difference in parts if not difference.tuned)
        found.append((parts, key, cell, asked))
    parts, key, cell, asked = min(found, key=lambda one: _distance(one[0]))
    if key is None:
        return Relative(None, cell.label, "waiting", parts)
    parts = parts or _unrecorded(record, asked, state, cell)
    its = state.store.record(key)
    return Relative(key, cell.label, "missing" if its is None else its["state"], parts)


def _asked_parts(state: StudyState, cells: Iterable[Cell]) -> Iterator[dict[str, Any]]:
    """Yield the parts of each cell's key, without the fingerprint of a group split's column."""
    fingerprints: dict[str, str] = {}
    for cell in cells:
        parts = dotted(cell.resolved()) | {"data": state.panel.fingerprint}
        if embeds(cell.variant):
            if cell.variant not in fingerprints:
                options = state.study.encoder_options(cell.variant)
                fingerprints[cell.variant] = encoders.fingerprint(cell.variant, **options)
            parts["encoder"] = fingerprints[cell.variant]
        yield parts | {"numerics": cell.numerics}


def _stored_parts(record: Record) -> dict[str, Any]:
    """Return the recorded parts of a key; the record of a lost worker has only the settings."""
    parts = dotted(record["cell"]) | {"data": record.get("data", NOT_RECORDED)}
    if embeds(parts["variant"]):
        parts["encoder"] = record.get("encoder", NOT_RECORDED)
    return parts | {"numerics": record.get("numerics", NOT_RECORDED)}


def _tuned(state: StudyState, cell: Cell) -> Collection[str]:
    """Return the names of the cell's settings that the search of its arm chooses."""
    scope = state.study.scope(cell)
    return state.searches[scope].space if scope in state.searches else ()


def _differences(
    stored: Mapping[str, Any], asked: Mapping[str, Any], tuned: Collection[str]
) -> tuple[KeyDifference, ...]:
    """Return the parts that differ, without those that are not recorded."""
    differing = (
        KeyDifference(part, stored.get(part, NOT_SET), asked.get(part, NOT_SET), part in tuned)
        for part in dict.fromkeys([*asked, *stored])
        # With two variants, the fingerprints of their encoders differ anyway.
        if part != "encoder" or stored["variant"] == asked["variant"]
    )
    return tuple(d for d in differing if d.stored != d.asked and d.stored != NOT_RECORDED)


def _distance(differences: Sequence[KeyDifference]) -> tuple[int, int]:
    """Return the distance of two cells: the number of factors that differ, then of parts of the key."""
    factors = {_factor(difference.part) for difference in differences} - {""}
    return len(factors), len(differences)


def _factor(part: str) -> str:
    """Return the factor of the design that a part of a key belongs to; empty for a setting."""
    if part.startswith("split."):
        return "" if part in CUT else "split"
    return part if part in ("variant", "fusion", "head", "fold", "seed") else ""


def _unrecorded(
    record: Record, asked: Mapping[str, Any], state: StudyState, cell: Cell
) -> tuple[KeyDifference, ...]:
    """Return the parts that may differ between two keys whose recorded parts are all equal."""
    parts = ("data", "encoder", "numerics")
    unknown = [KeyDifference(p, NOT_RECORDED, asked[p]) for p in parts if p in asked and p not in record]
    if isinstance(cell.split, GroupSplit):
        column = cell.split.column
        unknown.append(KeyDifference(f"data.{column}", NOT_RECORDED, state.panel.fingerprint_by(column)))
    if isinstance(cell.split, KNNDMSplit):
        domain = state.panel.fingerprint_with_domain()
        unknown.append(KeyDifference("data.domain", NOT_RECORDED, domain))
    return tuple(unknown)


def _label(record: Record) -> str:
    """Return the label of a stored cell, also if another version of the program wrote it."""
    try:
        return Cell.model_validate(record["cell"]).label
    except ValidationError:  # settings of another version
        cell = record["cell"]
        arm = Arm(cell["variant"], cell.get("fusion"), cell.get("head")).label
        return f"{arm} {cell['split']['kind']} fold {cell['fold']} seed {cell['seed']} (of another version)"
