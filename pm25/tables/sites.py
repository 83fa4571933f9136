"""Checks the sites of a table: their names, their places and their groups."""

import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pm25.geo import (
    SAME_PLACE_DEG,
    distance_text,
    great_circle_km,
    is_same_place,
    place_codes,
    place_text,
)
from pm25.tables.columns import as_text, first_rows, rows_of
from pm25.tables.schema import Problem
from pm25.text import counted

ONE_PER_PLACE = "give the rows of one place one site_id, with the mean of each day, or keep one site of them"
"""Fix for several sites at one place."""

SHOWN = 3
"""Sites that a problem lists."""


def site_places(
    lat: np.ndarray, lon: np.ndarray, code: np.ndarray, sites: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of each site in degrees, (sites,) twice: the most frequent one of its rows.

    Of places that are equally frequent, it is the most southern, then the most western one. `code` is the
    site of each row. The result does not depend on the order of rows.
    """
    first = first_rows(code, sites)
    if ((lat == lat[first][code]) & (lon == lon[first][code])).all():
        return lat[first], lon[first]
    order = np.lexsort((lon, lat, code))
    rows = np.stack([code, lat, lon], axis=1)[order]
    start = np.flatnonzero(np.concatenate([[True], (np.diff(rows, axis=0) != 0).any(axis=1)]))
    count = np.diff([*start, len(order)])
    by_count = np.lexsort((np.arange(len(start)), -count, rows[start, 0]))
    chosen = start[by_count][first_rows(rows[start, 0][by_count].astype(np.int64), sites)]
    return rows[chosen, 1], rows[chosen, 2]


def find_moved_sites(
    lat: np.ndarray, lon: np.ndarray, code: np.ndarray, sites: np.ndarray, notices: list[Problem]
) -> list[Problem]:
    """Find sites with more than one place. Coordinates that differ by rounding are a notice."""
    own_lat, own_lon = site_places(lat, lon, code, len(sites))
    own_lat, own_lon = own_lat[code], own_lon[code]
    differs = (lat != own_lat) | (lon != own_lon)
    if not differs.any():
        return []
    km = np.where(differs, great_circle_km(lat, lon, own_lat, own_lon), 0.0)
    moved = differs & ~is_same_place(lat, lon, own_lat, own_lon)
    rounded = differs & ~moved
    if rounded.any():
        who = sites[np.unique(code[rounded])]
        what = (
            f"coordinates of {counted(len(who), 'site')} ({_names(who)}) differ by up to "
            f"{distance_text(km[rounded].max())}, which counts as rounding (at most {SAME_PLACE_DEG:.4f} "
            f"degrees); each site has its most frequent place"
        )
        notices.append(Problem("lat, lon", what, rows=rows_of(rounded)))
    if not moved.any():
        return []
    row = int(np.argmax(np.where(moved, km, -1)))
    who = sites[np.unique(code[moved])]
    others = f"; {counted(len(who), 'site')} in all move: {_names(who)}" if len(who) > 1 else ""
    places = f"{place_text(own_lat[row], own_lon[row])} and {place_text(lat[row], lon[row])}"
    what = f"site {sites[code[row]]} has several places, {distance_text(km[row])} apart: {places}{others}"
    fix = "write one place on all rows of a site, or give each place a site_id of its own"
    return [Problem("lat, lon", what, fix, rows_of(moved))]


def find_similar_ids(
    lat: np.ndarray, lon: np.ndarray, code: np.ndarray, sites: np.ndarray, notices: list[Problem]
) -> list[Problem]:
    """Find names of sites that are blank, or that differ from another one only by blanks or case.

    Names that differ by case at different places may be two sites, so they are a notice.
    """
    place = place_codes(*site_places(lat, lon, code, len(sites)))
    rows = np.bincount(code, minlength=len(sites))
    spelled: dict[str, list[int]] = {}
    for site, name in enumerate(sites.tolist()):
        spelled.setdefault(_without_blanks(name).casefold(), []).append(site)
    blank = np.isin(code, spelled.pop("", []))
    problems = []
    if blank.any():
        problems.append(Problem("site_id", "value is blank", "fill it in or drop the row", rows_of(blank)))
    same: list[list[int]] = []
    other: list[list[int]] = []
    for alike in (group for group in spelled.values() if len(group) > 1):
        alike.sort(key=lambda site: (-rows[site], len(sites[site]), sites[site]))
        by_blanks = len({_without_blanks(sites[site]) for site in alike}) < len(alike)
        by_place = len(set(place[alike].tolist())) < len(alike)
        (same if by_blanks or by_place else other).append(alike)
    for found, listed in ((same, problems), (other, notices)):
        if not found:
            continue
        first = " and ".join(repr(str(sites[site])) for site in found[0])
        what = f"{first} differ only by blanks or case"
        if len(found) > 1:
            what = f"{len(found)} sites have names that differ only by blanks or case, the first {first}"
        rest = np.isin(code, [site for alike in found for site in alike[1:]])
        fix = f"write one name on all rows of a site, such as {str(sites[found[0][0]]).strip()!r}"
        if found is other:
            what, fix = f"{what}, at different places; they count as different sites", ""
        listed.append(Problem("site_id", what, fix, rows_of(rest)))
    return problems


def find_shared_places(
    lat: np.ndarray, lon: np.ndarray, code: np.ndarray, sites: np.ndarray, observed: np.ndarray
) -> list[Problem]:
    """Find places with several sites that have targets, such as two instruments of one monitor.

    `observed` says which rows have a target. The result is a notice: splits in time may use such a table.
    """
    own_lat, own_lon = site_places(lat, lon, code, len(sites))
    used = np.unique(code[observed])
    place = place_codes(own_lat[used], own_lon[used])
    together = [used[place == one] for one in np.flatnonzero(np.bincount(place) > 1)]
    together = [group for group in together if len({_without_blanks(sites[s]).casefold() for s in group}) > 1]
    if not together:
        return []
    first = min(together, key=lambda group: int(group[0]))
    apart = great_circle_km(own_lat[first[0]], own_lon[first[0]], own_lat[first], own_lon[first]).max()
    what = f"{len(together)} places have several site_ids, the first" if len(together) > 1 else "a place has"
    what += f" {_names(sites[first])} at {place_text(own_lat[first[0]], own_lon[first[0]])}"
    what += f", up to {distance_text(apart)} apart" if apart else ""
    what += "; `sweep plan` and `sweep run` refuse a split that trains on one and tests on another"
    rows = rows_of(np.isin(code, np.concatenate(together)))
    return [Problem("site_id", what, ONE_PER_PLACE, rows)]


def _without_blanks(name: str) -> str:
    """Return a name without blanks and invisible characters, in Unicode's compatible form."""
    text = unicodedata.normalize("NFKC", name)
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf")


def _names(names: np.ndarray) -> str:
    """List the first `SHOWN` names."""
    return ", ".join(names[:SHOWN].tolist()) + (", ..." if len(names) > SHOWN else "")


def find_wrong_groups(
    table: pa.Table, groups: Sequence[str], code: np.ndarray, sites: np.ndarray
) -> list[Problem]:
    """Find group columns without exactly one value for each site."""
    problems = []
    first = first_rows(code, len(sites))
    for column in groups:
        if column not in table.column_names:
            fix = f"group by one of {', '.join(table.column_names)}"
            problems.append(Problem(column, "group column is missing", fix))
            continue
        value = as_text(table[column])
        empty = value == ""
        varies = (value != value[first][code]) & ~empty & ~empty[first][code]
        if empty.any():
            who = sites[code[empty][0]]
            fix = "give every site its group, on each of its rows"
            problems.append(Problem(column, f"value is missing for site {who}", fix, rows_of(empty)))
        if varies.any():
            row = int(np.argmax(varies))
            both = f"{str(value[first][code[row]])!r} and {str(value[row])!r}"
            fix = "give a site the same group on all its days"
            problems.append(Problem(column, f"site {sites[code[row]]} has both {both}", fix, rows_of(varies)))
    return problems
