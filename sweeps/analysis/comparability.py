"""Comparability of the two results of a contrast: they may differ in the declared factor alone."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pm25.text import counted
from sweeps.store.records import Record

_ABSENT: Any = object()
_FACTORS = frozenset({"variant", "fusion", "head"})
"""Settings of a cell that define its arm, the factor of every contrast."""


class ArmDifference(NamedTuple):
    """Differences between the results of two arms, as 'train.learning_rate 0.003 against 0.001'."""

    undeclared: tuple[str, ...]
    """Differences that may change the number and do not follow from the factor; they confound it."""
    tuned: tuple[str, ...]
    """Differences in settings that a search chose, for one arm or for both."""


def differences(arm: Record, other: Record) -> ArmDifference:
    """Compare the records of two finished cells; each difference has the value of `arm` first.

    The comparison covers resolved settings, data, numerics, device, threads, versions, sample counts and the
    measurements of the audit. Variant, fusion and head may differ, and so may what they imply: an encoder's
    weights, and the projection of an embedding that only one arm has. Tuned settings may differ, but not the
    searches: a contrast of a tuned and an untuned arm, or of two budgets, is confounded. Different samples
    confound it even if a tuned setting is their cause.
    """
    implied = set(_FACTORS)
    if arm["cell"]["variant"] != other["cell"]["variant"]:
        implied |= {"encoder", "audit.encoder_trained_on_target"}
    if (arm["cell"].get("fusion") is None) != (other["cell"].get("fusion") is None):
        implied.add("model.projection")
    if ("tuned" in arm) != ("tuned" in other):
        implied.add("search")  # the entry 'searched' reports it
    chosen = arm.get("tuned", {}).keys() | other.get("tuned", {}).keys()

    undeclared, tuned = [], []
    for name, a, b in _differing_leaves(_compared(arm), _compared(other)):
        found = f"{name} {shown(a)} against {shown(b)}"
        if name in chosen:
            tuned.append(found)
        elif name not in implied:
            undeclared.append(found)
    return ArmDifference(tuple(undeclared), tuple(tuned))


class Comparisons:
    """Differences between the records of finished cells, by key; each pair is compared once."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self._records = records
        self._known: dict[tuple[str, str], ArmDifference] = {}

    def of(self, pair: tuple[str, str]) -> ArmDifference:
        """Compare the records of two keys (`differences`)."""
        if pair not in self._known:
            self._known[pair] = differences(*(self._records[key] for key in pair))
        return self._known[pair]


def summary(pairs: Sequence[str]) -> list[str]:
    """Summarise the differences by name: 'in 3 of 4 pairs: torch 2.12.0 against 2.13.0'.

    `pairs` has one text for every pair of a contrast: its differences joined by '; ', or ''.
    """
    lines = []
    for texts in by_name(pairs).values():
        where = "every pair" if len(texts) == len(pairs) else f"{len(texts)} of {len(pairs)} pairs"
        further = len(set(texts)) - 1
        others = f" (and {counted(further, 'other value')})" if further else ""
        lines.append(f"in {where}: {texts[0]}{others}")
    return lines


def by_name(pairs: Iterable[str]) -> dict[str, list[str]]:
    """Group the differences of `pairs` (see `summary`) by the name of what differs."""
    found: dict[str, list[str]] = {}
    for text in (text for pair in pairs for text in pair.split("; ") if text):
        found.setdefault(text.partition(" ")[0], []).append(text)
    return found


def _compared(record: Record) -> dict[str, Any]:
    """Select everything in a record that may change its numbers, or shows that the samples are the same."""
    audit = {name: value for name, value in record["audit"].items() if name != "failed"}
    names = ("data", "encoder", "numerics", "device", "threads", "search")
    return {
        **record["cell"],
        **{name: record.get(name, _ABSENT) for name in names},
        **record["versions"],
        **{name: count for name, count in record["counts"].items() if name.startswith("n_")},
        "audit": audit or _ABSENT,  # an audit that raised an error measured nothing
        "searched": "yes" if "tuned" in record else "no",
    }


def _differing_leaves(
    a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted name and both values of every leaf that differs; a block of one side alone is one."""
    for name in sorted(a.keys() | b.keys()):
        value_a, value_b = a.get(name, _ABSENT), b.get(name, _ABSENT)
        if value_a == value_b:
            continue
        if isinstance(value_a, Mapping) and isinstance(value_b, Mapping):
            yield from _differing_leaves(value_a, value_b, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value_a, value_b


def shown(value: Any) -> str:
    """Format a JSON value in one line of text."""
    if value is _ABSENT:
        return "not set"
    if isinstance(value, Mapping):
        return "set"
    # '; ' separates differences.
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).replace(";", ",")
