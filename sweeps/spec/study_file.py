"""Reading a study file: overrides, absolute paths, and errors that name the file and the field."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pm25.errors import InputError
from pm25.splits import AnySplit
from sweeps.spec.design import ADAPTIVE, LISTED, SplitFactor
from sweeps.spec.study import Study

KINDS = tuple(split.model_fields["kind"].default for split in get_args(AnySplit))
SHIPPED = resources.files("sweeps") / "studies"


def load(reference: str, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, or a shipped study by its name, with `a.b=value` overrides (YAML values).

    Paths in the file are relative to it; paths in overrides, and in shipped studies, to the current
    folder. Raises InputError with the file, the field, the value and the nearest known key.
    """
    return resolve(reference, overrides)[0]


def resolve(reference: str, overrides: Sequence[str] = ()) -> tuple[Study, dict[str, Any]]:
    """The same, and the content of a file that declares this study wherever it lies.

    In it the overrides have been made, paths are absolute, and claims are gone that the overrides took out.
    """
    path, base = _find(reference)
    try:
        content = yaml.load(path.read_text(), _UniqueKeys)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give another study file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: a study is a mapping of keys such as study, data and design")
    _make_absolute(content, base)
    for override in overrides:
        _override(content, override)
    _make_absolute(content, Path.cwd())
    content.setdefault("storage", str(base / "results"))
    # A claim of the file is right of the file's own design; what an override takes out, it goes with.
    narrowed = any(re.match(r"design(\.(variant|fusion|head|split))?=", text) for text in overrides)
    try:
        study = Study.model_validate(content, context={"narrowed": narrowed})
    except ValidationError as error:
        raise InputError(f"{path}: {_one_line(error, content)}") from None
    kept = {claim.claim for claim in study.claims}
    content["claims"] = [claim for claim in content.get("claims", ()) if claim["claim"] in kept]
    return study, content


def _find(reference: str) -> tuple[Path, Path]:
    """The study file, and the folder that its paths are relative to."""
    path = Path(reference)
    if os.path.isfile(path):  # Path.is_file raises for a name that is too long
        return path, path.resolve().parent
    shipped = {Path(str(f)).stem: Path(str(f)) for f in SHIPPED.iterdir() if f.name.endswith(".yaml")}
    if reference in shipped:
        return shipped[reference], Path.cwd()
    near = difflib.get_close_matches(reference, shipped, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"{reference}: no such study file, and not one of {', '.join(sorted(shipped))}{hint}")


class _UniqueKeys(yaml.SafeLoader):
    """A key is a text, and one that stands twice in a mapping is an error, not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:bool":  # YAML 1.1 reads the key `on` as true
                key.tag = "tag:yaml.org,2002:str"
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=deep) for key in own]
        for key, where in zip(keys, own, strict=True):
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"line {where.start_mark.line + 1}: key {key!r} stands twice")
        return super().construct_mapping(node, deep)


def _override(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", name):
        raise InputError(f"--set {override}: write it as a.b=value, for example data.table=panel.parquet")
    try:
        value = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML") from None
    *blocks, last = name.split(".")
    for block in blocks:
        inner = content.get(block)
        if inner is None:
            inner = content[block] = {}
        if not isinstance(inner, dict):
            raise InputError(f"--set {override}: {block} holds {inner!r}, not further keys")
        content = inner
    content[last] = value


def _make_absolute(content: dict[str, Any], base: Path) -> None:
    """Paths that are relative become paths below `base`."""
    encoders = content.get("encoders")
    options = encoders if isinstance(encoders, dict) else {}
    for block, name in (
        (content.get("data"), "table"),
        (content, "storage"),
        (options.get("satclip"), "checkpoint"),
        (options.get("table"), "path"),
        (content.get("analysis"), "outlines"),
    ):
        if isinstance(block, dict) and isinstance(block.get(name), str) and "://" not in block[name]:
            block[name] = os.path.normpath(base / os.path.expanduser(block[name]))


def _one_line(error: ValidationError, content: Mapping[str, Any]) -> str:
    """The first fault of a study file as `field: what is wrong; the fix`."""
    faults = error.errors(include_url=False)
    # An unknown key says more than the missing one that it was meant to be.
    fault = min(faults, key=lambda f: f["type"] != "extra_forbidden")
    at = [str(part) for part in fault["loc"]]
    at = [part for part in at if part != "bool" and not part.startswith(("constrained-", "literal["))]
    if at[:2] in (["design", "split"], ["search", "split"]) and at[3:4] == ["split"]:
        del at[3:5]  # the factor's own field, and the kind
    if at[:2] == ["design", "seed"] and at[2:3] in ([ADAPTIVE], [LISTED]):
        del at[2]
    name = ".".join(at)
    more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        return f"{name}: {_unknown_key(at)}{more}"
    if fault["type"] == "missing":
        return f"{name}: missing; it has no default{more}"
    if fault["type"].startswith("union_tag"):
        known = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
        return f"{name}.kind: give {known}, got {fault['input'].get('kind')!r}{more}"
    what = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{name + ': ' if name else ''}{what}{more}"
    return f"{name}: {what[0].lower()}{what[1:]}, got {fault['input']!r}{more}"


def _unknown_key(at: Sequence[str]) -> str:
    """What to write instead: a key of this name elsewhere, else a near one, first of all in its own block."""
    *blocks, key = at
    own = ".".join(block for block in blocks if not block.isdigit())
    known: dict[str, str] = {}
    for name, path in _keys(Study):  # of keys with one name the least nested is meant, of these the first
        if path.count(".") < known.get(name, path + ".").count("."):
            known[name] = path
    beside = {name: path for name, path in _keys(Study) if path == f"{own}.{name}".lstrip(".")}
    if key in beside:
        return "this kind of split has no such key"
    if key in known:
        return f"unknown key; did you mean {known[key]}?"
    for among in (beside, known):
        for near in difflib.get_close_matches(key, among, 1, cutoff=0.5):
            return f"unknown key; did you mean {among[near]}?"
    return f"unknown key; known keys: {', '.join(beside)}"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key that a study file may hold, with its dotted path."""

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
