"""Why a cell is done, failed, missing or stale: what differs between its key and its nearest relative's."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

import pm25
from pm25 import encoders
from pm25.cell import Cell
from pm25.errors import InputError
from pm25.settings import ENCODERS
from pm25.splits import GroupSplit
from sweeps.spec.design import Arm
from sweeps.state import StudyState
from sweeps.store.records import Record

NOT_SET = "not set"
"""Of a setting that one of the two keys leaves out: it means nothing there, or is the default."""

NOT_RECORDED = "not recorded"

CUT = ("split.seed", "split.validation", "split.holdout")
"""Settings of a split that its label does not show: with others it is the same split, cut otherwise."""

_MEANING = {
    "data": "the table's values, sites, days or channels",
    "encoder": "the encoder's weights or options",
    "numerics": "the version of the code's numbers",
}


@dataclass(frozen=True)
class KeyDifference:
    """One part of a key, as the stored cell has it and as the study asks for it."""

    part: str
    """A dotted setting such as `model.width`; `data`, `data.<group column>`, `encoder` or `numerics`."""
    stored: Any
    asked: Any
    tuned: bool = False
    """Whether the search of the arm chooses it."""

    def line(self, back: bool) -> str:
        """`model.width: 32 -> 64`, from the older to the newer; `back` turns it round."""
        old, new = map(self._told, (self.stored, self.asked))
        meaning = _MEANING.get(self.part, "")
        if self.part.startswith("data."):
            meaning = "which site is in which group"
        elif self.tuned:
            meaning = "chosen by the arm's search"
        change = f"{new} -> {old}" if back else f"{old} -> {new}"
        return f"{self.part}: {change}{f'  ({meaning})' if meaning else ''}"

    def _told(self, value: Any) -> str:
        if isinstance(value, str):
            return value[:12] if self.part.split(".")[0] in _MEANING else value
        return json.dumps(value)


@dataclass(frozen=True)
class Relative:
    """The cell most like the one asked for: stored, of a missing one; of the grid, of a stale one."""

    key: str | None
    """None of a cell whose settings the search of its arm has not chosen yet."""
    label: str
    state: str
    """`done`, `failed`, `missing`, or `waiting` for its arm's search."""
    differences: tuple[KeyDifference, ...]


@dataclass(frozen=True)
class Explanation:
    """What is known of one cell."""

    key: str
    label: str
    state: str
    """Of a cell of the grid `done`, `failed` or `missing`; of a stored one that is not in it, `stale`."""
    record: Record | None = None
    relative: Relative | None = None
    where: str = ""
    """The filter that chooses this cell of the grid alone."""

    @property
    def content(self) -> dict[str, Any]:
        """As JSON has it."""
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
            **({"marked": record["audit"].get("failed", [])} if "audit" in record else {}),
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
        """For people."""
        record, relative = self.record or {}, self.relative
        said = {
            "done": "done, as the study asks for it",
            "failed": "failed",
            "missing": "missing",
            "stale": f"stale: {record.get('state')}, and the study no longer asks for it",
        }
        lines = [f"{self.key} {self.label}: {said[self.state]}"]
        if record:
            where = f" on {record['host']}" if "host" in record else ""
            where += f" ({record['device']})" if "device" in record else ""
            took = f", {record['seconds']:g} s" if "seconds" in record else ""
            lines.append(f"  ended   {record['ended']}{where}{took}")
        if marked := record.get("audit", {}).get("failed"):
            lines.append(f"  marked  {'; '.join(marked)}")
        if "error" in record:
            lines.append(f"  error   {record['error']['type']}: {record['error']['message']}")
            lines += [f"    {line}" for line in record["error"]["traceback"].splitlines()]
        if relative is None:
            lines += ["  nothing is stored to compare it with"] * (self.state == "missing")
            return lines
        stale = self.state == "stale"
        name = " ".join(filter(None, (relative.key, relative.label)))
        lines.append(f"  nearest {'in the grid' if stale else 'stored'}: {name} ({relative.state})")
        if relative.state == "waiting":
            lines.append("  whether its settings are asked for, the search of its arm will say")
        if relative.differences:
            lines.append("  to have it asked for again, change back" if stale else "  what differs")
        lines += [f"    {difference.line(back=stale)}" for difference in relative.differences]
        return lines


def explain(state: StudyState, key: str) -> Explanation:
    """Explain the cell that `key`, or its first digits, names. Raises InputError when it names not one."""
    key = _named(state, key)
    cell, record = state.cells.get(key), state.store.record(key)
    if cell is None:
        if record is None:
            raise InputError(
                f"key {key!r}: begun and never recorded, and the study does not ask for it; delete it"
            )
        return Explanation(key, _label(record), "stale", record, _asked_instead(state, record))
    if record is None:
        return Explanation(key, cell.label, "missing", None, _stored_instead(state, cell))
    levels = {"arm": Arm.of(cell).label, "split": cell.split.label, "fold": cell.fold, "seed": cell.seed}
    only = ",".join(f"{field}={level}" for field, level in levels.items())
    return Explanation(key, cell.label, record["state"], record, where=only)


def _named(state: StudyState, key: str) -> str:
    known = {*state.cells, *state.store.keys()}
    found = [key] if key in known else sorted(name for name in known if key and name.startswith(key))
    if len(found) > 1:
        raise InputError(
            f"key {key!r} names {len(found)} cells, {found[0]} and {found[1]} first; give more digits"
        )
    if not found:
        raise InputError(
            f"key {key!r}: no cell of {state.study.study} or its store has it; `sweep export` lists the keys"
        )
    return found[0]


def _stored_instead(state: StudyState, cell: Cell) -> Relative | None:
    """The stored cell most like a missing one; of equally like ones a done one, then the newest."""
    records = state.store.records(state.store.keys()).values()
    newest_first = sorted(records, key=lambda record: (record["ended"], record["key"]), reverse=True)
    asked = next(_asked_parts(state, [cell]))
    tuned = _tuned(state, cell)
    found = [(_differences(_stored_parts(record), asked, tuned), record) for record in newest_first]
    if not found:
        return None
    parts, record = min(found, key=lambda pair: (*_distance(pair[0]), pair[1]["state"] != "done"))
    parts = parts or _unrecorded(record, asked, state, cell)
    return Relative(record["key"], _label(record), record["state"], parts)


def _asked_instead(state: StudyState, record: Record) -> Relative:
    """The cell of the grid most like a stale one; of equally like ones the first."""
    stored = _stored_parts(record)
    grid: list[tuple[str | None, Cell]] = [*state.cells.items(), *((None, cell) for cell in state.waiting)]
    found = []
    for (key, cell), asked in zip(grid, _asked_parts(state, [cell for _, cell in grid]), strict=True):
        parts = _differences(stored, asked, _tuned(state, cell))
        if key is None:  # what the search is still to choose is no difference
            parts = tuple(difference for difference in parts if not difference.tuned)
        found.append((parts, key, cell, asked))
    parts, key, cell, asked = min(found, key=lambda one: _distance(one[0]))
    if key is None:
        return Relative(None, cell.label, "waiting", parts)
    parts = parts or _unrecorded(record, asked, state, cell)
    its = state.store.record(key)
    return Relative(key, cell.label, "missing" if its is None else its["state"], parts)


def _asked_parts(state: StudyState, cells: Iterable[Cell]) -> Iterator[dict[str, Any]]:
    """Every part of the key of each of `cells`, but for the groups of sites that a split goes by."""
    fingerprints: dict[str, str] = {}
    for cell in cells:
        parts = _flat(cell.resolved()) | {"data": state.panel.fingerprint}
        if cell.variant in ENCODERS:
            if cell.variant not in fingerprints:
                options = state.study.encoder_options(cell.variant)
                fingerprints[cell.variant] = encoders.fingerprint(cell.variant, **options)
            parts["encoder"] = fingerprints[cell.variant]
        yield parts | {"numerics": pm25.NUMERICS}


def _stored_parts(record: Record) -> dict[str, Any]:
    """As far as they are recorded: of a worker that was lost only the settings are."""
    parts = _flat(record["cell"]) | {"data": record.get("data", NOT_RECORDED)}
    if parts["variant"] in ENCODERS:
        parts["encoder"] = record.get("encoder", NOT_RECORDED)
    return parts | {"numerics": record.get("numerics", NOT_RECORDED)}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _tuned(state: StudyState, cell: Cell) -> Collection[str]:
    """The settings of a cell that the search of its arm chooses."""
    arm = Arm.of(cell)
    return state.searches[arm].space if arm in state.searches else ()


def _differences(
    stored: Mapping[str, Any], asked: Mapping[str, Any], tuned: Collection[str]
) -> tuple[KeyDifference, ...]:
    """The parts that are known to differ."""
    differing = (
        KeyDifference(part, stored.get(part, NOT_SET), asked.get(part, NOT_SET), part in tuned)
        for part in dict.fromkeys([*asked, *stored])
        # Two encoders have two fingerprints: the variant says it.
        if part != "encoder" or stored["variant"] == asked["variant"]
    )
    return tuple(d for d in differing if d.stored != d.asked and d.stored != NOT_RECORDED)


def _distance(differences: Sequence[KeyDifference]) -> tuple[int, int]:
    """Of two cells: how many factors tell them apart, then how many parts of the key."""
    factors = {_factor(difference.part) for difference in differences} - {""}
    return len(factors), len(differences)


def _factor(part: str) -> str:
    """The factor of the design that a part belongs to; empty for a setting."""
    if part.startswith("split."):
        return "" if part in CUT else "split"
    return part if part in ("variant", "fusion", "head", "fold", "seed") else ""


def _unrecorded(
    record: Record, asked: Mapping[str, Any], state: StudyState, cell: Cell
) -> tuple[KeyDifference, ...]:
    """What differs by elimination: keys that differ in no part that is recorded."""
    parts = ("data", "encoder", "numerics")
    missing = [KeyDifference(p, NOT_RECORDED, asked[p]) for p in parts if p in asked and p not in record]
    if isinstance(cell.split, GroupSplit):
        column = cell.split.column
        missing.append(KeyDifference(f"data.{column}", NOT_RECORDED, state.panel.fingerprint_by(column)))
    return tuple(missing)


def _label(record: Record) -> str:
    try:
        return Cell.model_validate(record["cell"]).label
    except ValidationError:  # its settings were those of another version
        cell = record["cell"]
        arm = Arm(cell["variant"], cell.get("fusion"), cell.get("head")).label
        return f"{arm} {cell['split']['kind']} fold {cell['fold']} seed {cell['seed']} (of another version)"
