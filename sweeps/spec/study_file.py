"""Reading of a study file: overrides, absolute paths, and errors that name the file and the key."""

import os
import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pm25 import suggest
from pm25.errors import InputError, SettingError
from pm25.settings import FILE_OPTIONS
from pm25.splits import AnySplit
from pm25.text import counted
from sweeps.spec import yaml_text
from sweeps.spec.design import ADAPTIVE, LISTED, SplitFactor, listed
from sweeps.spec.limits import MOST_BYTES
from sweeps.spec.study import Study, is_foreign
from sweeps.spec.tracking_address import shown_override

KINDS = tuple(split.model_fields["kind"].default for split in get_args(AnySplit))
"""Kinds of splits."""

TABLES = (".parquet", ".csv", ".tsv", ".gz", ".zip")
"""Suffixes of files that are tables, not studies."""

NEEDED = {
    **dict.fromkeys(("tuple_type", "list_type"), ("a list", "write a list, such as [{value}]")),
    **dict.fromkeys(
        ("model_type", "model_attributes_type", "dict_type"),
        ("a block of keys", "write keys with values, such as {{KEY: VALUE}}"),
    ),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), ("a whole number", "give a whole number")),
    **dict.fromkeys(("float_type", "float_parsing"), ("a number", "give a number")),
    **dict.fromkeys(("bool_type", "bool_parsing"), ("true or false", "give true or false")),
}
"""Needed kind of value and the fix, by the types of pydantic's errors."""

SHIPPED = resources.files("sweeps") / "studies"
"""Folder of the studies that come with the package."""


class NoStudy(InputError):
    """Name of a study that no file has, and no shipped study."""


def load(reference: str, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, or a shipped study by its name, with `a.b=value` overrides (YAML values).

    Relative paths in the file are relative to its folder. Those in overrides, and in shipped studies, are
    relative to the current folder. Raises InputError with the file, the key, the value and the nearest known
    key.
    """
    return resolve(reference, overrides)[0]


def resolve(reference: str, overrides: Sequence[str] = ()) -> tuple[Study, dict[str, Any]]:
    """Read a study as `load` does; return it with the content of a file that declares it in any folder.

    The content includes the overrides, its paths are absolute, and it has no claims about arms or splits that
    the overrides removed.
    """
    path, base = _find(reference)
    text, content = _read(path)
    _make_absolute(content, base)
    for override in overrides:
        _override(content, override)
    _make_absolute(content, Path.cwd())
    content.setdefault("storage", str(base / "results"))
    # Claims must fit the design of the file; an override that removes an arm also removes its claims.
    narrowed = any(re.match(r"design(\.(variant|fusion|head|split))?=", text) for text in overrides)
    try:
        study = Study.model_validate(content, context={"narrowed": narrowed})
    except ValidationError as error:
        raise input_error(str(path), error, text, overrides) from None
    kept = {claim.claim for claim in study.claims}
    content["claims"] = [claim for claim in listed(content.get("claims", ())) if claim["claim"] in kept]
    return study, content


def _source(field: str, overrides: Sequence[str]) -> str:
    """Return the last override that set a dotted key or a part of its value; empty if the file set it."""
    for override in reversed(overrides):
        name = override.partition("=")[0]
        if f"{field}.".startswith(f"{name}.") or name.startswith(f"{field}."):
            return override
    return ""


def _find(reference: str) -> tuple[Path, Path]:
    """Return the study file, and the folder that its paths are relative to."""
    path = Path(reference)
    if os.path.isfile(path):  # Path.is_file raises for a name that is too long
        return path, path.resolve().parent
    shipped = {Path(str(f)).stem: Path(str(f)) for f in SHIPPED.iterdir() if f.name.endswith(".yaml")}
    if reference in shipped:
        return shipped[reference], Path.cwd()
    if reference and os.path.isdir(path):
        inside = ", ".join(sorted(found.name for found in path.glob("*.yaml"))[:5])
        fix = f"name a study file in it ({inside})" if inside else "name a study file"
        raise InputError(reference, "", "a folder, where a study file is expected", fix)
    beside = f"{reference}.yaml"
    fix = f"use {beside}" if reference and os.path.isfile(beside) else suggest.fix(reference, sorted(shipped))
    raise NoStudy(
        reference or "study",
        "",
        f"no such study file, and not a shipped study ({', '.join(sorted(shipped))})",
        fix,
    )


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a study file and its content. Raises InputError."""
    if path.suffix.lower() in TABLES:
        problem, fix = "a table, not a study file", f"write, for example, quick --set data.table={path}"
        raise InputError(str(path), "", problem, fix)
    try:
        with path.open("rb") as file:
            text = yaml_text.decode(file.read(MOST_BYTES + 1))
        content = yaml_text.parse(text)
    except OSError as error:
        raise InputError(
            str(path), "", f"cannot be read ({error.strerror})", "give another study file"
        ) from None
    except yaml_text.Fault as fault:
        line = "" if fault.line is None else f"line {fault.line}"
        raise InputError(str(path), line, fault.problem, fault.fix) from None
    if not isinstance(content, dict):
        problem = "empty" if content is None else f"a {_kind(content)}, not keys with values"
        raise InputError(str(path), "", problem, "write keys such as study, data and design")
    return text, content


def _override(content: dict[str, Any], override: str) -> None:
    """Set one key of `content` to the value of an `a.b=value` override. Raises InputError."""
    where = f"--set {shown_override(override)}"
    name, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", name):
        raise InputError(
            where, "", "not of the form a.b=value", "write, for example, --set data.table=panel.parquet"
        )
    try:
        value = yaml_text.parse(text)
    except yaml_text.Fault as fault:
        fix = f"{fault.fix}, and put the option in single quotes for the shell"
        shown = shown_override(override).partition("=")[2]
        raise InputError(where, name, f"the value {shown!r}: {fault.problem}", fix) from None
    *blocks, last = name.split(".")
    for depth, block in enumerate(blocks, 1):
        inner = content.get(block)
        if inner is None:
            inner = content[block] = {}
        if not isinstance(inner, dict):
            dotted = ".".join(blocks[:depth])
            raise InputError(where, dotted, f"the value {inner!r} has no keys", f"write --set {dotted}=VALUE")
        content = inner
    content[last] = value


def _make_absolute(content: dict[str, Any], base: Path) -> None:
    """Replace the relative paths of a study by paths below `base`."""
    encoders = content.get("encoders")
    options = encoders.values() if isinstance(encoders, dict) else ()
    for block, name in (
        (content.get("data"), "table"),
        (content.get("data"), "domain"),
        (content, "storage"),
        *((block, name) for block in options for name in FILE_OPTIONS),
        (content.get("analysis"), "outlines"),
    ):
        if isinstance(block, dict) and isinstance(block.get(name), str) and not _is_address(block[name]):
            block[name] = os.path.normpath(base / os.path.expanduser(block[name]))


def _is_address(text: str) -> bool:
    """Return True for an address, and for a text that the study refuses as a path."""
    return not text or "://" in text or "\0" in text or is_foreign(text)


def input_error(
    where: str, error: ValidationError, text: str = "", overrides: Sequence[str] = ()
) -> InputError:
    """Make an InputError of the first fault of a study file; an unknown key comes before other faults.

    `text` is that of the file, from which the error quotes the value.
    """
    faults = error.errors(include_url=False)
    # A misspelt key causes two faults, and the unknown key says more than the missing one.
    fault = min(faults, key=lambda f: f["type"] != "extra_forbidden")
    at = _keys_of(fault["loc"])
    override = _source(".".join(at), overrides)
    if override:
        name, _, value = override.partition("=")
        given = yaml_text.scalar_at(value, at[name.count(".") + 1 :])
    else:
        given = yaml_text.scalar_at(text, at)
    field, problem, fix = _described(fault, at, given, override)
    if others := len(faults) - 1:
        problem += f" ({counted(others, 'more fault')})"
    override = _source(field, overrides)
    return InputError(f"--set {shown_override(override)}" if override else where, field, problem, fix)


def _described(
    fault: ErrorDetails, at: Sequence[str], given: str | None, override: str
) -> tuple[str, str, str]:
    """Return the dotted key, the problem and the fix of one fault that pydantic found.

    `at` is its place, `given` how the study file or the override writes the value.
    """
    name, value = ".".join(at), fault["input"]
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        return ".".join(filter(None, (name, cause.field))), cause.problem, cause.fix
    if fault["type"] == "extra_forbidden":
        return name, *_unknown_key(at)
    if fault["type"] == "missing":
        return name, "missing, and has no default", f"set {name}"
    if fault["type"].startswith("union_tag"):
        kind = value.get("kind") if isinstance(value, dict) else None
        if kind is None:
            return f"{name}.kind", "missing, and has no default", suggest.use_one_of(KINDS)
        return f"{name}.kind", f"unknown kind {kind!r}", suggest.fix(str(kind), KINDS)
    if fault["type"].endswith("too_short") and not value:
        needed = "a text" if fault["type"].startswith("string") else "at least one value"
        return name, f"{yaml_text.written(value)} is empty", f"give {needed}"
    if fault["type"] == "string_type":
        return name, *_not_a_text(at, value, given, override)
    what = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return name, what, ""
    if fault["type"] == "too_long":
        limits = fault["ctx"]
        problem = f"{limits['actual_length']:,} entries, but at most {limits['max_length']:,} are allowed"
        return name, problem, "shorten the list"
    shown = yaml_text.written(value)
    if fault["type"] in NEEDED:
        needed, fix = NEEDED[fault["type"]]
        return name, f"{suggest.shortened(shown)} is not {needed}", fix.format(value=given or "VALUE")
    if expected := re.match(r"Input should be (.+?)(?:, unable to .*)?$", what):
        return name, f"{suggest.shortened(shown)} is not allowed", f"give {expected[1]}"
    return name, f"{what[0].lower()}{what[1:]}, got {suggest.shortened(shown)}", ""


def _not_a_text(at: Sequence[str], value: Any, given: str | None, override: str) -> tuple[str, str]:
    """Return the problem and the fix of a value that YAML does not read as the text that is needed."""
    if value is None:
        return "has no value, and a text is needed", "give a text, in quotes if it is null or ~"
    if given is None or isinstance(value, dict | list):
        return f"a {_kind(value)}, and a text is needed", "give a text"
    quoted = f'"{given}"'
    if override == f"{'.'.join(at)}={given}":
        fix = f"put it in quotes: --set '{'.'.join(at)}={quoted}'"
    else:
        key = next((part for part in reversed(at) if not part.isdigit()), "")
        fix = f"put it in quotes: {key}: " + (f"[{quoted}]" if at[-1].isdigit() else quoted)
    return f"YAML reads {given} as a {_kind(value)}, and a text is needed", fix


def _kind(value: Any) -> str:
    """Name of the kind of a YAML value."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    names = {dict: "block of keys", list: "list", str: "text", date: "date", datetime: "time"}
    return names.get(type(value), type(value).__name__)


def _keys_of(location: Sequence[int | str]) -> list[str]:
    """Return the keys of the study file that an error's location names, without pydantic's own entries."""
    at = [str(part) for part in location]
    at = [part for part in at if part != "bool" and not part.startswith(("constrained-", "literal["))]
    if at[:2] in (["design", "split"], ["search", "split"]) and at[3:4] == ["split"]:
        del at[3:5]  # the field `split` of SplitFactor, and the kind
    if at[:2] == ["design", "seed"] and at[2:3] in ([ADAPTIVE], [LISTED]):
        del at[2]
    return at


def _unknown_key(at: Sequence[str]) -> tuple[str, str]:
    """Return the problem and the fix of an unknown key.

    The fix names a key of the same name in another block, or else the nearest key, first in the same block.
    """
    *blocks, key = at
    own = ".".join(block for block in blocks if not block.isdigit())
    known: dict[str, str] = {}
    for name, path in _keys(Study):  # of keys with one name the least nested is meant, of these the first
        if path.count(".") < known.get(name, path + ".").count("."):
            known[name] = path
    beside = {name: path for name, path in _keys(Study) if path == f"{own}.{name}".lstrip(".")}
    if key in beside:
        return "not a key of this kind of split", "remove the key, or change kind"
    if key in known:
        return "unknown key", f"use {known[key]}"
    for among in (beside, known):
        if near := suggest.nearest(key, among, cutoff=0.5):
            return "unknown key", f"use {among[near]}"
    return "unknown key", suggest.use_one_of(beside)


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key that a study file may contain, with its dotted path."""

    def blocks(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for inner in get_args(annotation):
            yield from blocks(inner)

    for name, info in model.model_fields.items():
        path = prefix + (info.alias or name)
        for block in blocks(info.annotation):
            yield from _keys(
                block, prefix if issubclass(model, SplitFactor) and name == "split" else path + "."
            )
        yield info.alias or name, path
