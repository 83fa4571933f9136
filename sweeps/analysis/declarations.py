"""Comparison of what a study declares now with what it declared before its first result.

The last declaration before the first result is the reference. A contrast that it lacks was declared after
results: it is exploratory, and takes no part in Holm's method. A contrast that it has and the study no longer
declares was withdrawn. It stays in the family, so that nobody can make the family smaller.

A contrast is exploratory too if it is tested in another way than declared. The level or the region of
practical equivalence is another one, or the blocks of monitors on a spatial split are. Or its split has
another draw, or lacks folds or seeds that were declared. Folds and seeds that were added, and changed
settings of the trainings, are said.

Whether results of a store without such a reference were declared before is not known. Its contrasts are
tested, and the report says so. Results are cells and search trials that have scores.
"""

import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pm25.text import counted
from sweeps.analysis.units import BY_SITE
from sweeps.spec.claims import Contrast
from sweeps.store.declarations import Declaration, contrasts

RULES = ("analysis.alpha", "analysis.rope")
"""Settings that decide every verdict."""
SEEDS = "design.seed"
LONGEST = 80
"""Most characters of two values that a sentence shows."""
BLOCKS = "analysis.block_degrees"
"""Setting that decides the verdicts on spatial splits."""
NOT_STORED = "no declaration was stored"


class Status(NamedTuple):
    """Time and manner of a contrast's declaration."""

    declared_at: str
    """Time of the first declaration that has it, in ISO format; '' if none has it."""
    changed: str
    """Change after results, when, and after how many; '' if it was declared before the first one."""
    exploratory: bool
    """True if it takes no part in the declared family."""


class History(NamedTuple):
    """Declarations of a study, compared with what it declares now."""

    contrasts: Mapping[Contrast, Status]
    """Status of every contrast that is declared now, then of those that were withdrawn."""
    changes: tuple[str, ...]
    """Changes after the first result, in words: of claims, then of settings."""
    reference: Declaration | None
    """Last declaration without results, or the first one if each has results; None if none is stored."""
    results: int
    """Number of results at present."""


class _Point(NamedTuple):
    """A declaration after the reference, or the study as it is now."""

    time: str
    """Time in ISO format; '' for the present."""
    cells: int
    trials: int
    content: Mapping[str, Any]
    contrasts: Sequence[Contrast]

    @property
    def after(self) -> str:
        """Number of results and time, in words."""
        when = f"({shown_time(self.time)})" if self.time else "(in no run since)"
        return f"after {_results(self.cells, self.trials)} {when}"


def history(stored: Sequence[Declaration], present: Mapping[str, Any], cells: int, trials: int) -> History:
    """Compare the stored declarations, oldest first, with what the study declares at present.

    `cells` and `trials` are the numbers of results at present.
    """
    texts = {contrast: text for text, contrast in reversed(contrasts(present))}
    now = list(dict.fromkeys(contrast for _, contrast in contrasts(present)))
    results = cells + trials
    if not stored or not results:
        time = stored[-1].time if stored and stored[-1].content == present else ""
        status = Status(time, NOT_STORED if results else "", exploratory=False)
        last = stored[-1] if time else None
        return History(dict.fromkeys(now, status), (), last, results)
    # A later declaration without results follows a deletion of results that somebody may have seen.
    start = max(sum(1 for _ in itertools.takewhile(lambda one: one.first, stored)) - 1, 0)
    reference = stored[start]
    later = [_Point(*one, [c for _, c in contrasts(one.content)]) for one in stored[start + 1 :]]
    later.append(_Point("", cells, trials, present, now))
    changed = [*_changes(reference.content, present, later)]

    def of(contrast: Contrast) -> list[_Change]:
        return [one for one in changed if one.concerns(contrast)]

    before: dict[Contrast, str] = {}
    for text, contrast in contrasts(reference.content):
        before.setdefault(contrast, text)
    gone = [contrast for contrast in before if contrast not in now]
    unknown = "" if reference.first else f"first declared {_Point(*reference, ()).after}"
    found: dict[Contrast, Status] = {}
    changes, origins = [], set()
    for contrast in now:
        if contrast in before:
            exploratory = any(one.rule for one in of(contrast))
            words = "; ".join(one.text for one in of(contrast))
            found[contrast] = Status(reference.time, words or unknown, exploratory)
            continue
        point = next(point for point in later if contrast in point.contrasts)
        free = [old for old in gone if old not in origins]  # one claim does not become two
        origin = _origin(contrast, texts[contrast], before, free)
        origins.add(origin)
        what = f"{_difference(origin, contrast)} {point.after}"
        found[contrast] = Status(point.time, what, exploratory=True)
        changes.append(f"{_name(contrast, texts[contrast])} was {what}")
    for contrast in gone:
        point = next(point for point in later if contrast not in point.contrasts)
        what = f"withdrawn {point.after}"
        found[contrast] = Status(reference.time, what, any(one.rule for one in of(contrast)))
        if contrast not in origins:
            changes.append(f"{_name(contrast, before[contrast])} was {what}")
    return History(found, (*changes, *(one.text for one in changed)), reference, results)


def shown_time(time: str) -> str:
    """Format a time in ISO format: '2026-11-28 08:10 UTC'."""
    return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC"


def _results(cells: int, trials: int) -> str:
    found = [counted(cells, "result")] if cells else []
    return " and ".join([*found, *([counted(trials, "search trial")] if trials else [])])


class _Change(NamedTuple):
    """A change of the settings after results."""

    text: str
    rule: bool
    """True if contrasts are then tested in another way than declared."""
    splits: Collection[str] | None
    """Splits whose contrasts it is said beside; None for all."""

    def concerns(self, contrast: Contrast) -> bool:
        """Return True if it is said beside a contrast."""
        return self.splits is None or contrast.split in self.splits


def _changes(
    reference: Mapping[str, Any], present: Mapping[str, Any], later: Sequence[_Point]
) -> Iterator[_Change]:
    """Yield the changes of settings and seeds, then those of the splits that both declare.

    What one of the two does not list is not compared, because declarations of other versions list less.
    """
    olds, news = _settings(reference), _settings(present)
    for name, old in olds.items():
        if name not in news or news[name] == old:
            continue
        new = news[name]
        point = next(point for point in later if _settings(point.content).get(name) == new)
        text = f"{name} was changed{_values(old, new)} {point.after}"
        if name in RULES:
            yield _Change(text, rule=True, splits=None)
        elif name == BLOCKS:
            spatial = [split for split in present["splits"] if split.partition("-")[0] in BY_SITE]
            yield _Change(text, rule=True, splits=spatial)
        elif name == SEEDS and _numbers(old) - _numbers(new):
            yield _Change(text, rule=True, splits=None)
        else:
            yield _Change(text, rule=False, splits=())
    for split in reference["splits"]:
        if split in present["splits"]:
            yield from _split_changes(split, reference, present, later)


def _split_changes(
    split: str, reference: Mapping[str, Any], present: Mapping[str, Any], later: Sequence[_Point]
) -> Iterator[_Change]:
    """Yield the changes of the folds of one split, and of its settings."""
    old, new = ({*declared["splits"][split]} for declared in (reference, present))
    if old != new:
        point = next(point for point in later if {*point.content["splits"].get(split, ())} == new)
        counts = ((len(old - new), "left out"), (len(new - old), "added"))
        words = ", ".join(f"{number} {what}" for number, what in counts if number)
        text = f"the folds of {split} were changed ({words}) {point.after}"
        yield _Change(text, rule=bool(old - new), splits=(split,))
    olds, news = (declared.get("split_settings", {}).get(split, {}) for declared in (reference, present))
    for name in (name for name in olds if name in news and olds[name] != news[name]):

        def value(point: _Point, name: str = name) -> Any:
            return point.content.get("split_settings", {}).get(split, {}).get(name)

        point = next(point for point in later if value(point) == news[name])
        text = f"{name} of split {split} was changed{_values(olds[name], news[name])} {point.after}"
        yield _Change(text, rule=True, splits=(split,))


def _settings(declared: Mapping[str, Any]) -> dict[str, Any]:
    """List the settings of a declaration by their dotted names, those of the analysis first."""
    found = {f"analysis.{name}": value for name, value in declared["analysis"].items()}
    found[SEEDS] = declared["seeds"]
    for name, value in declared.get("settings", {}).items():
        if isinstance(value, Mapping) and name in ("model", "train"):
            found |= {f"{name}.{own}": inner for own, inner in value.items()}
        else:
            found[name] = value
    return found


def _numbers(seeds: Any) -> set[int]:
    """Return the training seeds that a study may run."""
    return {*range(seeds["max"])} if isinstance(seeds, Mapping) else {*seeds}


def _values(old: Any, new: Any) -> str:
    """Format two values of a setting; empty if they are long."""
    old, new = (value if isinstance(value, str) else json.dumps(value) for value in (old, new))
    return f" from {old} to {new}" if len(old) + len(new) <= LONGEST else ""


def _origin(
    contrast: Contrast, text: str, before: Mapping[Contrast, str], gone: Iterable[Contrast]
) -> Contrast | None:
    """Find the declared contrast that `contrast` was made from; None if it is a new one.

    The reverse comes first, then the contrast with the same text. Last comes a withdrawn one of the same arms
    that differs in the metric or in the evaluation set alone.
    """
    reverse = contrast._replace(arm=contrast.other, other=contrast.arm)
    if reverse in before:
        return reverse
    same_text = [old for old, known in before.items() if text and known == text]
    same_arms = [
        old
        for old in gone
        if {old.arm, old.other} == {contrast.arm, contrast.other}
        and (old.metric == contrast.metric or _place(old) == _place(contrast))
    ]
    return next(iter([*same_text, *same_arms]), None)


def _difference(old: Contrast | None, new: Contrast) -> str:
    """Describe how a contrast differs from the declared one: 'reversed', 'added' and so on."""
    if old is None:
        return "added"
    found = []
    if (old.arm, old.other) == (new.other, new.arm):
        found.append("reversed")
    elif (old.arm, old.other) != (new.arm, new.other):
        found.append(f"changed from {_arms(old)} to {_arms(new)}")
    if old.metric != new.metric:
        found.append(f"changed from {old.metric} to {new.metric}")
    if _place(old) != _place(new):
        found.append(f"moved from {_place(old)} to {_place(new)}")
    return " and ".join(found)


def _name(contrast: Contrast, text: str) -> str:
    return f"'{text}'" if text else f"{_arms(contrast)} on {_place(contrast)} by {contrast.metric}"


def _arms(contrast: Contrast) -> str:
    return f"{contrast.arm.label} against {contrast.other.label}"


def _place(contrast: Contrast) -> str:
    """Name an evaluation set: the split, then the fold and the part if they are not the usual ones."""
    fold = "" if contrast.fold is None else f", fold {contrast.fold}"
    return contrast.split + fold + ("" if contrast.part == "test" else f", {contrast.part}")
