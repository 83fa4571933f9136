"""The generated sections of sweeps/README.md: keys of the study file, commands and their options.

`python -m tests.study_reference` (`make reference`) writes them again. A test fails if they are stale.
"""

import ast
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pm25 import limits as data_limits
from pm25.settings import VARIANTS, known_variant
from sweeps.spec import limits as study_limits
from sweeps.spec.study import Study

FILE = Path(__file__).parents[1] / "sweeps" / "README.md"
MARKERS = "<!-- generated: {} -->\n", "<!-- end of {} -->\n"

WORDS = {str: "text", int: "integer", float: "number", bool: "`true|false`", type(None): "`null`"}
BOUNDS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}", "multiple_of": "a multiple of {}"}


def blocks(annotation: Any) -> Iterator[type[BaseModel]]:
    """Settings blocks named anywhere in an annotation, in order."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from blocks(inner)


def bounds(metadata: Any) -> str:
    """Format constraints such as `Gt(0)` as `> 0`, joined by commas."""
    found = []
    for one in metadata:
        if isinstance(one, FieldInfo):
            found.append(bounds(one.metadata))
        for name, text in BOUNDS.items():
            if (value := getattr(one, name, None)) is not None and abs(value) < 2**53:
                found.append(text.format(value))
    return ", ".join(filter(None, found))


def either(words: Sequence[str]) -> str:
    """Join alternatives: `a`, `b` or `c`."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def type_words(annotation: Any, metadata: Any = ()) -> str:
    """Describe an annotation in words: `integer ≥ 1`, `list of text`, `block or null`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    within = bounds(metadata)
    if any(getattr(one, "func", None) is known_variant for one in metadata):
        return f"`{'|'.join(VARIANTS)}`, or the name of an installed encoder"
    if hasattr(annotation, "__metadata__"):
        return type_words(inner[0], (*annotation.__metadata__, *metadata))
    if origin is Literal:
        return f"`{'|'.join(map(str, inner))}`"
    if origin in (Union, types.UnionType):
        words = list(dict.fromkeys(type_words(one, metadata) for one in inner if one is not type(None)))
        return either([*words, *(["`null`"] if type(None) in inner else [])])
    if origin is tuple and inner[-1] is Ellipsis:
        one = type_words(inner[0])
        single = any(getattr(getattr(m, "func", None), "__name__", "") == "listed" for m in metadata)
        many = f"list of {one}{'s' * (one in ('block', 'value'))}"
        return f"{one} (one or a list)" if single else many
    if origin is tuple:
        return f"[{', '.join(map(type_words, inner))}]"
    if origin is dict or annotation is dict:
        return "mapping"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "block"
    word = WORDS.get(annotation) or getattr(annotation, "__name__", str(annotation)).lower()
    if annotation is Any:
        word = "value"
    return f"{word} {within}".strip()


def default_words(info: FieldInfo) -> str:
    """Format the default of a key as YAML; a block that is filled in by itself has none to show."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)  # type: ignore[call-arg]
    if isinstance(value, BaseModel) or value in ({}, ()):
        return ""
    if isinstance(value, tuple):
        value = value[0] if len(value) == 1 else list(value)
    text = yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
    return f"`{text}`"


def attribute_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Texts below the attributes of a class and of its bases, by attribute."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if one is object or one is BaseModel or not issubclass(one, BaseModel):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body  # type: ignore[attr-defined]
        for above, below in itertools.pairwise(body):
            if (
                isinstance(above, ast.AnnAssign)
                and isinstance(above.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[above.target.id] = inspect.cleandoc(below.value.value)
    return found


def cell_text(text: str) -> str:
    """Fit a text into one cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def keys(model: type[BaseModel], leave_out: frozenset[str] = frozenset()) -> Iterator[str]:
    """Lines of the table of a block's keys."""
    texts = attribute_docstrings(model)
    yield "| key | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, info in sorted(model.model_fields.items(), key=lambda item: item[0] != "kind"):
        if name in leave_out:
            continue
        is_kind = name == "kind" and not info.is_required()  # which says which block it is
        found = list(blocks(info.annotation))
        inner = (found[0].__doc__ or "").split("\n\n")[0] if len(found) == 1 else ""
        meaning = cell_text(texts.get(name, "") or ("Kind of split." if is_kind else inner))
        words = cell_text(type_words(info.annotation, info.metadata))
        default = "required" if is_kind else default_words(info)
        yield f"| `{info.alias or name}` | {words} | {default} | {meaning} |"


def sections(model: type[BaseModel], path: str) -> Iterator[str]:
    """Sections of a block and of the blocks below it, in the order of the file."""
    fields = model.model_fields
    own = inspect.cleandoc(model.__doc__ or "") if "__doc__" in vars(model) else ""
    yield f"### `{path}`" if path else "### Top level"
    yield own
    is_split = "split" in fields and model.__name__ in ("SplitFactor", "Placement")
    of_trials = frozenset({"origins", "deals"} if model.__name__ == "Placement" else ())
    yield "\n".join(keys(model, of_trials | {"split"} if is_split else frozenset()))
    seen: set[type[BaseModel]] = set()
    for name, info in fields.items():
        key = info.alias or name
        found = [block for block in dict.fromkeys(blocks(info.annotation)) if block not in seen]
        for block in found:
            seen.add(block)
            if (is_split and name in of_trials | {"inner"}) or path == "search.per_arm":
                continue  # described where they first appear
            below = path if is_split and name == "split" else f"{path}.{key}".lstrip(".")
            kind = block.model_fields.get("kind")
            if kind is not None and kind.default is not None and not kind.is_required():
                if path.startswith("search"):
                    continue  # described in the design
                below = f"{below}, kind {kind.default}"
            if get_origin(info.annotation) is dict or "dict" in str(info.annotation):
                below += ".NAME"
            yield from sections(block, below)


def study_keys() -> str:
    """Every key of a study file, from the models that read it."""
    return "\n\n".join(filter(None, sections(Study, ""))) + "\n"


def leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Commands with their complete names; a group is replaced by its commands."""
    if isinstance(command, click.Group):
        for inner, found in command.commands.items():
            yield from leaves(found, f"{name} {inner}")
    else:
        yield name, command


def help_text(text: str) -> str:
    """Format a command's help: paragraphs, and its fixed-width blocks (`\\b`) as code."""
    found = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            found.append("```text\n" + textwrap.dedent(paragraph.removeprefix("\b").strip("\n")) + "\n```")
        else:
            found.append(" ".join(paragraph.split()))
    return "\n\n".join(found)


METAVARS = {"float range": "NUMBER", "float": "NUMBER", "integer range": "N", "integer": "N"}


def metavar(parameter: click.Parameter) -> str:
    """Placeholder of a parameter's value in a usage line."""
    if parameter.metavar or isinstance(parameter, click.Argument):
        return parameter.metavar or (parameter.name or "").upper()
    if isinstance(parameter.type, click.Choice):
        return "|".join(map(str, parameter.type.choices))
    return METAVARS.get(parameter.type.name, parameter.type.name.upper())


def commands() -> str:
    """Every command, its help and its options but `--set`, from the command line itself."""
    from sweeps.cli import cli

    found = []
    for name, command in leaves(cli, "sweep"):
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        words = [metavar(p) if p.required else f"[{metavar(p)}]" for p in arguments]
        lines = [f"### `{' '.join([name, *words])}`", help_text(command.help or "")]
        table = ["| option | default | meaning |", "| --- | --- | --- |"]
        for option in command.params:
            if not isinstance(option, click.Option) or option.opts == ["--set"]:
                continue
            flags = ", ".join(option.opts) + ("" if option.is_flag else f" {metavar(option)}")
            default = option.default if option.show_default else None
            shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
            required = "required" if option.required else "" if shown is None else f"`{shown}`"
            table.append(f"| {cell_text(f'`{flags}`')} | {required} | {cell_text(option.help or '')} |")
        if len(table) > 2:
            lines.append("\n".join(table))
        lines.append(help_text((command.epilog or "").replace("Examples:\n", "")))
        found += filter(None, lines)
    return "\n\n".join(found) + "\n"


def limits() -> str:
    """Every limit with its reason, from the modules that define them."""
    rows = ["| limit | meaning |", "| --- | --- |"]
    for module in (data_limits, study_limits):
        body = ast.parse(inspect.getsource(module)).body
        for line, docstring in itertools.pairwise(body):
            if isinstance(line, ast.Assign) and isinstance(docstring, ast.Expr):
                (name,) = (target.id for target in line.targets if isinstance(target, ast.Name))
                value = getattr(module, name)
                shown = f"{value:,}" if isinstance(value, int) else f"{value:g}"
                rows.append(f"| {shown} | {cell_text(str(ast.literal_eval(docstring.value)))} |")
    return "\n" + "\n".join(rows) + "\n"


GENERATED: dict[str, Callable[[], str]] = {"limits": limits, "study file": study_keys, "commands": commands}


def written(text: str) -> str:
    """A text with its generated sections written again."""
    for name, make in GENERATED.items():
        first, last = (marker.format(name) for marker in MARKERS)
        before, rest = text.split(first)
        _, after = rest.split(last)
        text = f"{before}{first}\n{make()}\n{last}{after}"
    return text


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text()))
