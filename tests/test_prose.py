"""How sentences are written: plain English that a stranger understands, held as far as a machine can."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for package in ("pm25", "sweeps") for path in (ROOT / package).rglob("*.py"))
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "pm25").rglob("*.md"), *(ROOT / "sweeps").rglob("*.md")]
    if ".venv" not in path.parts
)
LONGEST = 25
"""Words of a sentence."""

FIRST_WORDS = {"Of", "As", "By", "That", "What", "Whether", "It", "Which", "Where", "Whose"}
"""A docstring that begins with one of these has no subject."""

PRIVATE = {
    r"told": "reported",
    r"tells": "says, reports",
    r"mend(s|ed|ing)?": "fix",
    r"begun": "started",
    r"hangs? on": "depends on",
    r"stands? (twice|beside|there|in (it|the place))": "is repeated, is next to, is in",
    r"lies? (beside|below|in)": "is stored in",
    r"goes on": "resumes, continues",
    r"is no(?= [a-z]+[ .,;:])": "is not a",
    r"as of(?= the| `)": "same as",
    r"made afresh": "created again",
    r"agenda": "scheduler",
    r"hold of": "lock",
    r"unfair(ness)?": "confounded",
    r"fairness": "comparability",
}
"""Words of our own, each with the word that the field has."""


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Docstrings of modules, classes, functions, and of the attributes above them, with their lines."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for statement in body:
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement.lineno, statement.value.value


def sentences(text: str) -> list[str]:
    """Sentences of running text; code, tables and lists of names are left out."""
    text = re.sub(r"```.*?```|``[^`]*``|`[^`]*`", "X", text, flags=re.DOTALL)
    paragraphs = [
        " ".join(part.split())
        for part in re.split(
            r"\n\s*\n|\n\s*[-*|] |\s\|\s|:\n|^\s*\w+ : .*$|^\s*-{3,}\s*$", text, flags=re.MULTILINE
        )
    ]
    return [
        sentence
        for part in paragraphs
        for sentence in re.split(r"(?<=[.;:?!])\s+(?=[A-Z`X\d(])|;\s+|:\s+", part)
        if sentence
    ]


def too_long(text: str) -> list[str]:
    return [sentence for sentence in sentences(text) if len(sentence.split()) > LONGEST]


def private_words(text: str) -> list[str]:
    text = re.sub(r"`[^`]*`", "X", text)  # names of columns and variables
    return [
        f"{found[0]!r} (write: {better})"
        for word, better in PRIVATE.items()
        for found in re.finditer(rf"\b{word}\b", text, re.IGNORECASE)
    ]


def strings_and_comments(source: str) -> Iterator[tuple[int, str]]:
    """Prose in a module: comments, docstrings and messages; names and keys are no prose."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            yield token.start[0], token.string


def faults(path: Path) -> list[str]:
    """Every sentence of a module that breaks the rule, with its line."""
    source = path.read_text()
    found = []
    for line, text in docstrings(ast.parse(source)):
        first = re.match(r"\W*([A-Za-z']+)", text)
        if first and first[1] in FIRST_WORDS:
            found.append(f"{path.name}:{line}: begins with {first[1]!r}")
        found += [f"{path.name}:{line}: over {LONGEST} words: {sentence}" for sentence in too_long(text)]
    for line, text in strings_and_comments(source):
        found += [f"{path.name}:{line}: {word}" for word in private_words(text)]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_and_messages(path: Path) -> None:
    assert faults(path) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    found = [f"over {LONGEST} words: {sentence}" for sentence in too_long(text)]
    assert found + private_words(text) == []


def test_the_rule_finds_what_it_is_for() -> None:
    assert private_words("the caller is told to mend it") == [
        "'told' (write: reported)",
        "'mend' (write: fix)",
    ]
    assert too_long("word " * 26)
    assert not too_long("word " * 25)
