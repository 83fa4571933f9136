"""Reads a table whose columns have other names, and suggests which column is which.

A column map has the names that this package uses as keys, and the names in the file as values, such as
`{"site_id": "station", "pm25": "PM2.5"}`.
"""

import difflib
import json
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from pm25.errors import InputError
from pm25.tables.notes import attach, notes_of
from pm25.tables.reading import read_table
from pm25.tables.schema import REQUIRED, Problem

ColumnMap = Mapping[str, str]

NO_MAP: ColumnMap = MappingProxyType({})
"""Map of a table whose columns have the names that this package uses."""

SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "site_id": (
            *("siteid", "site", "stationid", "station", "monitorid", "monitor", "aqsid", "aqssiteid"),
            *("sitecode", "stationcode", "fullaqscode", "sensorid", "sensorindex", "sensor", "locationid"),
            *("location", "stnid", "stn", "siteno", "sitenumber", "sitenum", "sitename", "stationname", "id"),
        ),
        "date": (
            *("date", "datelocal", "localdate", "day", "sampledate", "datetime", "datetimelocal", "time"),
            *("timestamp", "observationdate", "dateutc", "dategmt", "datum", "fecha", "yyyymmdd", "ymd"),
        ),
        "lat": ("lat", "latitude", "sitelatitude", "latdeg", "latitudedeg", "ylat", "latwgs84", "y"),
        "lon": (
            *("lon", "long", "lng", "longitude", "sitelongitude", "londeg", "longitudedeg", "xlon"),
            *("lonwgs84", "x"),
        ),
        "pm25": (
            *("pm25", "pm25ugm3", "pm25mean", "meanpm25", "dailymeanpm25concentration", "arithmeticmean"),
            *("pm25concentration", "pm25conc", "pm25atm", "concentration", "conc", "samplemeasurement"),
            *("measurement", "value", "target"),
        ),
    }
)
"""Other names of the required columns, without case, blanks and punctuation, the most probable first."""

OTHER_MEANING = re.compile("flag|unit|count|code|num|std|error|method|qualif|aqi|lag|min|max|poc|qc")
"""Parts of names that resemble a required column and mean something else."""

OF_A_SITE = re.compile("elev|alt|lat|lon|dist|type")
"""Parts of names that describe a site and do not name it."""

AIRDATA = ("statecode", "countycode")
"""Columns of EPA's daily files, which have no column for the complete site."""
PUBLISHED = ("sampleduration", "eventtype")
"""Columns of EPA's daily files that `sweep data aqs` needs as well."""


def read_mapped(
    path: Path | str,
    channels: Sequence[str] | None = None,
    groups: Sequence[str] = (),
    columns: ColumnMap = NO_MAP,
) -> pa.Table:
    """Read a table like `read_table`, with its columns renamed; `channels` and `groups` are new names.

    A column of the file whose name `columns` gives to another column is left out. Raises InputError if the
    file lacks a column.
    """
    return renamed(read_unmapped(path, channels, groups, columns), columns, str(path))


def read_unmapped(
    path: Path | str,
    channels: Sequence[str] | None = None,
    groups: Sequence[str] = (),
    columns: ColumnMap = NO_MAP,
) -> pa.Table:
    """Read the columns that `read_mapped` needs, with the names of the file."""
    if not columns:
        return read_table(path, channels, groups)
    refuse_repeats(columns, str(path))
    # Strings keep the leading zeros of a site and of groups, and a date keeps its time zone.
    text = [columns.get(name, name) for name in ("site_id", "date", *groups)]
    needed = None
    if channels is not None:
        needed = [columns.get(name, name) for name in (*REQUIRED, *channels)]
        needed = list(dict.fromkeys([*needed, *columns.values()]))
    return read_table(path, needed, text)


def refuse_repeats(columns: ColumnMap, where: str) -> None:
    """Raise InputError if one column of the file has two names."""
    names: dict[str, str] = {}
    for name, source in columns.items():
        if source in names:
            problem = f"column {source!r} is already {names[source]}"
            raise InputError(where, name, problem, f"map {name} to another column")
        names[source] = name


def renamed(table: pa.Table, columns: ColumnMap, source: str) -> pa.Table:
    """Rename the columns of a table, and leave out those whose name another column gets."""
    has = table.column_names
    for name, column in columns.items():
        if column in has:
            continue
        problem = f"the table has no column {column!r}"
        if column in REQUIRED and name in has and name not in REQUIRED:
            fix = f"write the name of this package first: {column}={name}"
            raise InputError(source, name, problem, fix)
        near = _nearest(column, has)
        fix = f"use {near}" if near is not None else f"use one of {_listed(has)}"
        raise InputError(source, name, problem, fix)
    name_of = {column: name for name, column in columns.items()}
    lost = set(displaced(has, columns))
    kept = [index for index, name in enumerate(has) if name not in lost]
    found = table.select(kept).rename_columns([name_of.get(has[i], has[i]) for i in kept])
    read = notes_of(table)
    notices = [(name_of.get(column, column), what) for column, what in read.notices if column not in lost]
    return attach(found, read.numbering, notices)


def displaced(names: Sequence[str], columns: ColumnMap) -> list[str]:
    """Columns of a file that are left out, because another column gets their name."""
    return [
        name
        for name in dict.fromkeys(names)
        if name in columns and columns[name] != name and name not in columns.values()
    ]


def notices_of(names: Sequence[str], columns: ColumnMap) -> list[Problem]:
    """Notices of the columns of a file that are left out; `names` are all of its columns."""
    return [
        Problem(name, f"the file's own column {name} is left out; {columns[name]} is read in its place")
        for name in displaced(names, columns)
    ]


def with_source(field: str, columns: ColumnMap) -> str:
    """Name of a column, or of several with commas, with its name in the file: `pm25 (PM2.5)`."""
    parts = [f"{n} ({columns[n]})" if columns.get(n, n) != n else n for n in field.split(", ")]
    return ", ".join(parts)


def as_in_file(problem: Problem, columns: ColumnMap) -> Problem:
    """Name the columns of a problem as `with_source` does."""
    return replace(problem, column=with_source(problem.column, columns))


def flags(columns: ColumnMap) -> str:
    """Options of `sweep data check` that give this map."""
    return "".join(f" --map {_shell(f'{name}={column}')}" for name, column in columns.items())


def find_missing(names: Sequence[str], source: str, columns: ColumnMap = NO_MAP) -> list[Problem]:
    """Find required columns that a table lacks. The fix says what to type for the columns that resemble them.

    `names` are those of the renamed table, `columns` the map that renamed it, and `source` is the file.
    """
    missing = [name for name in REQUIRED if name not in names]
    if not missing:
        return []
    is_missing = "column is missing" if len(missing) == 1 else f"{len(missing)} columns are missing"
    problem = f"{is_missing}; the table has {', '.join(names) or 'none'}"
    found = suggestions(missing, [name for name in names if name not in REQUIRED])
    normal = {_normal(name) for name in names}
    in_parts = normal >= {*AIRDATA} and "site_id" in missing
    if in_parts:
        found.pop("site_id", None)  # a number of a site is unique only within its county
    given = {name: column for name, column in columns.items() if name not in found.values()}
    # A column that the map renamed has another name in the file.
    found = {name: columns.get(column, column) for name, column in found.items()}
    wanted = given | {name: found.get(name, "COLUMN") for name in missing}
    check = f"`sweep data check {_shell(source)}{flags(wanted)}`"
    study, option = f"data: {{columns: {yaml_flow(wanted)}}}", f"data.columns={yaml_flow(wanted)}"
    fix = f"type {check}; in the study write `{study}`, or type `--set {_shell(option)}`"
    if not found:
        fix = f"add it, or name its column: `{flags(wanted).strip()}` here, and `{study}` in the study"
    if len(found) < len(missing):
        fix += ", with a column of the table in place of COLUMN"
    if in_parts:
        fix = f"join the numbers of state, county and site to a column site_id; then {fix}"
    if in_parts and normal >= {*PUBLISHED}:
        fix = f"make a panel of an EPA file: `sweep data aqs {_shell(source)} -o panel.parquet`; or {fix}"
    return [Problem(", ".join(missing), problem, fix)]


def suggestions(missing: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Column for each missing name that one resembles, by name; no column is suggested twice."""
    ranked = sorted(
        (rank, REQUIRED.index(wanted), place, wanted, name)
        for wanted in missing
        for place, name in enumerate(names)
        if (rank := _rank(wanted, name)) is not None
    )
    found: dict[str, str] = {}
    for *_, wanted, name in ranked:
        if wanted not in found and name not in found.values():
            found[wanted] = name
    return {wanted: found[wanted] for wanted in missing if wanted in found}


def yaml_flow(columns: ColumnMap) -> str:
    """Format a map as YAML in one line."""
    return "{" + ", ".join(f"{name}: {_yaml(column)}" for name, column in columns.items()) + "}"


def _rank(wanted: str, name: str) -> int | None:
    """Rank of a column as one with another name, lowest first; None if it does not resemble it."""
    normal, known = _normal(name), SYNONYMS[wanted]
    if normal in known:
        return known.index(normal)
    if not normal or OTHER_MEANING.search(normal):
        return None
    if wanted == "site_id" and OF_A_SITE.search(normal):
        return None
    words = re.findall(r"[a-z]+|[0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())
    if wanted in ("lat", "lon", "date") and any(len(word) >= 3 and word in known for word in words):
        return 50
    for place, one in enumerate(known):
        if len(one) >= 4 and one in normal:
            return 100 + place
    near = difflib.get_close_matches(normal, [one for one in known if len(one) >= 4], 1, 0.8)
    return 200 + known.index(near[0]) if near else None


def _normal(name: str) -> str:
    """Name without case, accents, blanks and punctuation."""
    text = unicodedata.normalize("NFKD", name).casefold()
    return "".join(c for c in text if c.isalnum())


def _nearest(name: str, names: Sequence[str]) -> str | None:
    """Most similar name, without regard to case and punctuation; None if no name is similar."""
    by_normal = {_normal(one): one for one in reversed(names)}
    near = difflib.get_close_matches(_normal(name), by_normal, 1)
    return by_normal[near[0]] if near else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _shell(word: str) -> str:
    """Quote a word for the shell where it needs it."""
    return shlex.quote(word)


def _yaml(text: str) -> str:
    """Quote a text for YAML where it needs it."""
    words = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
    plain = re.fullmatch(r"[A-Za-z][\w.]*( [\w.]+)*", text) and text.lower() not in words
    if plain:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
