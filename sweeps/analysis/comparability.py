"""Whether the two results of a contrast differ in the declared factor alone."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sweeps.store.records import Record

_ABSENT: Any = object()
_FACTORS = frozenset({"variant", "fusion", "head"})
"""Of a cell: what an arm is, and so what a contrast is about."""


class ArmDifference(NamedTuple):
    """What sets an arm's result apart from another's, as 'train.learning_rate 0.003 against 0.001'."""

    undeclared: tuple[str, ...]
    """Can move the number, and is neither the declared factor nor implied by it: the contrast is unfair."""
    tuned: tuple[str, ...]
    """Settings that a search chose, for one arm or for both."""


def differences(arm: Record, other: Record) -> ArmDifference:
    """Compare the records of two finished cells; values are the arm's, then the other's.

    Compared are the resolved settings, the data, the code's numerics, device, threads and versions, the
    sample counts and what the audit measured: equal seeds mean equal samples. The factors may differ, and
    what they imply: an encoder's weights, and the projection of an embedding that only one arm has. Tuned
    settings may differ, but not the searches: one searched arm, or two budgets, is unfair. Samples that
    differ are unfair even if a tuned setting makes them so.
    """
    implied = set(_FACTORS)
    if arm["cell"]["variant"] != other["cell"]["variant"]:
        implied |= {"encoder", "audit.encoder_trained_on_target"}
    if (arm["cell"].get("fusion") is None) != (other["cell"].get("fusion") is None):
        implied.add("model.projection")
    if ("tuned" in arm) != ("tuned" in other):
        implied.add("search")  # said by 'searched'
    chosen = arm.get("tuned", {}).keys() | other.get("tuned", {}).keys()

    undeclared, tuned = [], []
    for name, mine, theirs in _apart(_compared(arm), _compared(other)):
        found = f"{name} {shown(mine)} against {shown(theirs)}"
        if name in chosen:
            tuned.append(found)
        elif name not in implied:
            undeclared.append(found)
    return ArmDifference(tuple(undeclared), tuple(tuned))


def summary(pairs: Sequence[str]) -> list[str]:
    """One line for each name that differs: 'in 3 of 4 pairs: torch 2.12.0 against 2.13.0'.

    `pairs` holds the differences of every pair of a contrast, joined by '; ', with '' for none.
    """
    lines = []
    for texts in by_name(pairs).values():
        where = "every pair" if len(texts) == len(pairs) else f"{len(texts)} of {len(pairs)} pairs"
        further = len(set(texts)) - 1
        others = f" (and {further} other value{'s' * (further > 1)})" if further else ""
        lines.append(f"in {where}: {texts[0]}{others}")
    return lines


def by_name(pairs: Iterable[str]) -> dict[str, list[str]]:
    """The differences of `pairs` (see `summary`) by the name of what differs."""
    found: dict[str, list[str]] = {}
    for text in (text for pair in pairs for text in pair.split("; ") if text):
        found.setdefault(text.partition(" ")[0], []).append(text)
    return found


def _compared(record: Record) -> dict[str, Any]:
    """All of a record that can move its numbers, or proves that the samples are the same."""
    audit = {name: value for name, value in record["audit"].items() if name != "failed"}
    names = ("data", "encoder", "numerics", "device", "threads", "search")
    return {
        **record["cell"],
        **{name: record.get(name, _ABSENT) for name in names},
        **record["versions"],
        **{name: count for name, count in record["counts"].items() if name.startswith("n_")},
        "audit": audit or _ABSENT,  # one that could not be made
        "searched": "yes" if "tuned" in record else "no",
    }


def _apart(
    arm: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Dotted name and both values of every leaf that differs; a block that one side lacks is one leaf."""
    for name in sorted(arm.keys() | other.keys()):
        mine, theirs = arm.get(name, _ABSENT), other.get(name, _ABSENT)
        if mine == theirs:
            continue
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            yield from _apart(mine, theirs, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", mine, theirs


def shown(value: Any) -> str:
    """A JSON value in a line for people."""
    if value is _ABSENT:
        return "not set"
    if isinstance(value, Mapping):
        return "set"
    # '; ' parts one difference from the next.
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).replace(";", ",")
