"""Texts are read and written as UTF-8, whatever the locale of the process is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for package in ("pm25", "sweeps") for path in (ROOT / package).rglob("*.py"))


def without_encoding(source: str) -> list[int]:
    """Lines that read or write a text in the encoding of the locale."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) == "rasterio.open":  # an image, whatever its mode is called
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {keyword.arg for keyword in node.keywords}
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        is_text = name in ("read_text", "write_text") or (
            name in ("open", "fdopen") and any(mode in ("r", "w", "a", "x", "w+", "r+") for mode in modes)
        )
        if is_text and "encoding" not in given:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_encoding_is_named(path: Path) -> None:
    assert without_encoding(path.read_text(encoding="utf-8")) == []


def test_the_rule_finds_what_it_is_for() -> None:
    assert without_encoding("path.read_text()\nopen(path, 'w')\nopen(path, 'rb')") == [1, 2]
