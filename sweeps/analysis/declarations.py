"""Comparison of what a study declares now with what it declared before its first result.

The last declaration before the first result is the reference. A contrast that it lacks was declared after
results: it is exploratory, and takes no part in Holm's method. A contrast that it has and the study no longer
declares was withdrawn. It stays in the family, so that nobody can make the family smaller. After a change of
the level, or of the region of practical equivalence, verdicts follow another rule than the declared one. Then
every contrast is exploratory.

Whether results of a store without such a reference were declared before is not known. Its contrasts are
tested, and the report says so. Results are cells and search trials that have scores.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pm25.text import counted
from sweeps.spec.claims import Contrast
from sweeps.store.declarations import Declaration, contrasts

RULES = ("alpha", "rope")
"""Analysis settings that decide a verdict."""
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
    settings = {name: _setting(name, reference, present, later) for name in ("alpha", "rope", "metric")}
    settings["seeds"] = _setting("seeds", reference, present, later)
    rules = "; ".join(settings[name] for name in RULES if settings[name])

    before: dict[Contrast, str] = {}
    for text, contrast in contrasts(reference.content):
        before.setdefault(contrast, text)
    gone = [contrast for contrast in before if contrast not in now]
    unknown = "" if reference.first else f"first declared {_Point(*reference, ()).after}"
    found: dict[Contrast, Status] = {}
    changes, origins = [], set()
    for contrast in now:
        if contrast in before:
            found[contrast] = Status(reference.time, rules or unknown, exploratory=bool(rules))
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
        found[contrast] = Status(reference.time, what, exploratory=bool(rules))
        if contrast not in origins:
            changes.append(f"{_name(contrast, before[contrast])} was {what}")
    return History(found, (*changes, *filter(None, settings.values())), reference, results)


def shown_time(time: str) -> str:
    """Format a time in ISO format: '2026-11-28 08:10 UTC'."""
    return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC"


def _results(cells: int, trials: int) -> str:
    found = [counted(cells, "result")] if cells else []
    return " and ".join([*found, *([counted(trials, "search trial")] if trials else [])])


def _setting(name: str, reference: Declaration, present: Mapping[str, Any], later: Sequence[_Point]) -> str:
    """Describe the change of one setting; '' if it is as declared."""

    def value(declared: Mapping[str, Any]) -> Any:
        return declared["seeds"] if name == "seeds" else declared["analysis"][name]

    old, new = value(reference.content), value(present)
    if old == new:
        return ""
    point = next(point for point in later if value(point.content) == new)
    dotted = "design.seed" if name == "seeds" else f"analysis.{name}"
    return f"{dotted} was changed from {old} to {new} {point.after}"


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
