"""Suggestions for a name that is not known: the nearest known name, or the list of known names."""

import difflib
from collections.abc import Collection

LISTED = 12
"""Most names that one suggestion lists."""


MOST_SHOWN = 80
"""Most characters of a value that an error shows."""


def shortened(text: str) -> str:
    """Return the first `MOST_SHOWN` characters of a text, with dots if there are more."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def nearest(name: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """Known name that is most similar to `name`, ignoring case; None where none is similar.

    `cutoff` is the lowest similarity ratio of `difflib`, from 0 (any name) to 1 (the same name).
    """
    by_lower = {one.lower(): one for one in reversed(list(known))}
    found = difflib.get_close_matches(name.lower(), by_lower, 1, cutoff)
    return by_lower[found[0]] if found else None


def fix(name: str, known: Collection[str]) -> str:
    """Text of an error's fix: the nearest known name, or else the first `LISTED` known names."""
    near = nearest(name, known)
    return f"use {near}" if near is not None else use_one_of(known)


def use_one_of(known: Collection[str]) -> str:
    """Text of a fix that lists the first `LISTED` known names; empty where no name is known."""
    if not known:
        return ""
    names = list(known)[:LISTED]
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"use {names[0]}" if len(known) == 1 else f"use one of {', '.join(names)}{more}"
