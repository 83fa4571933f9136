"""YAML as people write it: one document, unique keys, and faults that name the line and the fix."""

import re
from collections.abc import Hashable, Sequence
from typing import Any

import yaml

from pm25 import suggest
from pm25.limits import MOST_NESTED
from sweeps.spec.limits import MOST_BYTES, MOST_DIGITS, MOST_YAML_VALUES

NAMES = {"int": "a number", "float": "a number", "timestamp": "a time"}
"""Names of the kinds of values that `MOST_DIGITS` applies to."""

CORRECT = "correct the YAML"
"""Fix of a fault that has no better one."""


class Fault(Exception):
    """A text that is not one plain YAML document.

    Parameters
    ----------
    line : int or None
        Line of the fault, counted from 1; None if the whole text is meant.
    problem, fix : str
        Texts of the error.
    """

    def __init__(self, line: int | None, problem: str, fix: str) -> None:
        super().__init__(line, problem, fix)
        self.line, self.problem, self.fix = line, problem, fix


def decode(data: bytes) -> str:
    """Decode a file: UTF-16 or UTF-32 with a byte order mark, else UTF-8.

    Raises Fault, also for more than `MOST_BYTES`.
    """
    if len(data) > MOST_BYTES:
        problem = f"more than {MOST_BYTES:,} bytes"
        raise Fault(None, problem, "give a study file, and data as a table")
    encoding = "utf-8-sig"
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        encoding = "utf-32"
    elif data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = None if encoding != "utf-8-sig" else data[: error.start].count(b"\n") + 1
        problem = f"not valid {encoding.removesuffix('-sig').upper()} ({error.reason})"
        raise Fault(line, problem, "save the file as UTF-8") from None


def parse(text: str) -> Any:
    """Return the content of one YAML document. Raises Fault.

    Blocks that an anchor repeats are separate copies. Refused are repeated keys, an anchor inside itself, and
    numbers such as 010 and 1:30, which YAML reads in base 8 and base 60.
    """
    try:
        return _construct(text)
    except RecursionError:
        raise Fault(None, "blocks are nested too deeply", "remove brackets") from None
    except yaml.YAMLError as error:
        raise _fault(text, error) from None


def scalar_at(text: str, path: Sequence[str]) -> str | None:
    """Return how a value at a path of keys and list indices is written; None if it cannot be found.

    A single value in place of a list is its first entry.
    """
    node = yaml.compose(text, yaml.SafeLoader)
    for part in path:
        if isinstance(node, yaml.MappingNode):
            inner = [value for key, value in node.value if key.value == part]
            if inner:
                node = inner[0]
            elif not part.isdigit():
                return None
        elif isinstance(node, yaml.SequenceNode):
            if not part.isdigit() or int(part) >= len(node.value):
                return None
            node = node.value[int(part)]
        elif part != "0":
            return None
    return node.value if isinstance(node, yaml.ScalarNode) else None


def written(value: Any) -> str:
    """Write a value as YAML does: `true` and `null` in place of True and None."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        return repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        return "a number of too many digits"


class _Refused(yaml.MarkedYAMLError):
    """Fault of a node, with its fix."""

    def __init__(self, node: yaml.Node, problem: str, fix: str) -> None:
        super().__init__(problem=problem, problem_mark=node.start_mark)
        self.fix = fix


def _construct(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = _compose(text) or loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}, ()) > MOST_YAML_VALUES:
            problem = f"more than {MOST_YAML_VALUES:,} values, with those that anchors repeat"
            raise _Refused(node, problem, "shorten the lists, or remove the anchors")
        return _copied(loader.construct_document(node))
    finally:
        loader.dispose()


def _compose(text: str) -> yaml.Node | None:
    """Compose a document by libyaml, ten times faster than in Python; None for Python to try.

    The texts of libyaml's errors have fewer details than those of the parser in Python.
    """
    try:
        found: yaml.Node | None = yaml.compose(text, _FAST)
    except yaml.YAMLError:
        return None
    return found


_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Loader that composes with libyaml, if PyYAML was built with it."""


def _values(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Count the values of a node, with repeated anchors. Raises _Refused for one inside itself."""
    if id(node) in above:
        raise _Refused(node, "an anchor is used inside itself", "remove the alias")
    if len(above) > MOST_NESTED:
        raise _Refused(node, f"nested more than {MOST_NESTED} levels", "remove brackets")
    if id(node) not in known:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [one for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_values(one, known, (*above, id(node))) for one in inner)
    return known[id(node)]


def _copied(value: Any) -> Any:
    """Copy blocks and lists, so that no two places share one."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses what people do not mean, and that reads the key `on` as a text."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float", "timestamp") and len(node.value) > MOST_DIGITS:
            problem = f"YAML reads {len(node.value):,} characters as {NAMES[kind]}"
            raise _Refused(node, problem, "shorten it, or put it in quotes for a text")
        try:
            return super().construct_object(node, deep)
        # A tag whose text has another form, such as the date 2021-02-30, fails with an error of Python.
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            given = suggest.shortened(str(node.value))
            problem = f"{given!r} is not a valid {kind} ({error})"
            raise _Refused(node, problem, "correct it, or put it in quotes for a text") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:bool":  # YAML 1.1 reads the key `on` as true
                    key.tag = "tag:yaml.org,2002:str"
            own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            keys = [self.construct_object(key, deep=deep) for key in own]
            seen = set()
            for at, key in zip(own, keys, strict=True):
                if not isinstance(key, Hashable):
                    continue  # YAML itself refuses it
                if key in seen:
                    raise _Refused(at, f"key {key!r} is repeated", "keep one of the two, with all values")
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Construct a number. Raises _Refused for one whose base is not what people expect."""
        read = self.construct_yaml_float if node.tag.endswith("float") else self.construct_yaml_int
        text, number = self.construct_scalar(node), read(node)
        digits = text.replace("_", "").lstrip("+-")
        for_text = f'or "{text}" in quotes for a text'
        if ":" in digits:
            problem = f"YAML reads {text} in base 60, as {number:g}"
            raise _Refused(node, problem, f"write {number:g} for a number, {for_text}")
        if re.match(r"0\d", digits) and isinstance(number, int):
            problem = f"YAML reads {text} in base 8, as {number}"
            raise _Refused(node, problem, f"write {int(digits)} for a number, {for_text}")
        return number


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def _fault(text: str, error: yaml.YAMLError) -> Fault:
    """Return the line, the problem and the fix of a YAML error."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text[: error.position].count("\n") + 1
        problem = f"not valid YAML (the character {chr(error.character)!a} is not allowed)"
        return Fault(line, problem, "save the file as UTF-8, and remove this character")
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return Fault(None, f"not valid YAML ({error})", CORRECT)
    if isinstance(error, _Refused):
        return Fault(error.problem_mark.line + 1, str(error.problem), error.fix)
    said = ", ".join(filter(None, (error.context, error.problem)))
    mark = error.problem_mark
    if error.context_mark is not None and re.search("stream end|end of stream", said):
        mark = error.context_mark  # of the bracket or quote that is not closed
    line = mark.line + 1
    return Fault(
        line, f"not valid YAML ({said})", next((fix for part, fix in FIXES if part in said), CORRECT)
    )


FIXES = (
    ("'\\t'", "replace tabs by spaces"),
    ("another document", "keep one document, and no line ---"),
    ("cannot start any token", "put a text that begins with this character in quotes"),
    (
        "mapping values are not allowed",
        "indent the line as its neighbours, or put a text with a colon in quotes",
    ),
    ("undefined alias", "put a text that begins with * in quotes"),
    ("could not determine a constructor", "remove the tag, or put the text in quotes"),
    ("unhashable key", "use a text as the key"),
    ("quoted scalar", "close the quotes"),
    ("flow sequence", "close the bracket ]"),
    ("flow mapping", "close the brace }"),
    ("block mapping", "indent the line as its neighbours"),
    ("block collection", "indent the line as its neighbours"),
)
"""Part of an error's text, and its fix."""
