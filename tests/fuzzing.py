"""Random mutations of good files: the number of examples, bad values, and changes of text and bytes."""

import os
import random
from collections.abc import Callable, Sequence

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Examples of each fuzzer; 0 for the number that its test names."""

BAD_VALUES = (
    *("", " ", "-", ".", "0", "-0", "1e999", "nan", "inf", "None", "null", "NA", "true", "no", "~"),
    *("-999", "-9999.0", "99999999999999999999", "1e-400", "0x10", "010", "12:30", "1_000", "5,5", "١٢"),
    *("2021-02-30", "2921-01-01", "0001-01-01", "2021-13-01", "20210101", "01/02/2021", "2021-01-01T00:00"),
    *(
        "é",
        "\u200b",
        "\ufeff",
        "\x00",
        "\x07",
        "💨",
        "'",
        '"',
        '"a',
        "a\nb",
        "\r",
        "\t",
        "%s",
        "{}",
        "[",
        "&a",
    ),
    *(
        "x" * 400,
        "<html>",
        "../../x",
        "s3://b/x",
        "-inf",
        "Excluded",
        "88101",
        "[0, 0]",
        "{a: 1}",
        "*a",
        "!!set",
    ),
)
"""Values that take the place of a good one."""


def count(usual: int) -> int:
    """Number of examples: `usual`, or that of the environment variable FUZZ_EXAMPLES."""
    return EXAMPLES or usual


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(rng: random.Random, data: bytes) -> bytes:
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(BAD_VALUES).encode() + data[at:]


def _drop(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 1, 5, 50)) :]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    end = start + rng.choice((1, 10, 100))
    return data[:end] + data[start:]


BYTES: Sequence[Callable[[random.Random, bytes], bytes]] = (_cut, _flip, _insert, _drop, _repeat)
"""Changes of the bytes of a file."""


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return the content with one random change of its bytes."""
    return rng.choice(BYTES)(rng, data) if data else data


def change_lines(rng: random.Random, text: str) -> str:
    """Return the text with a line removed, repeated, moved or joined with the next one."""
    lines = text.splitlines(keepends=True)
    if not lines:
        return text
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines) + 1)
    change = rng.choice(("remove", "repeat", "move", "join", "empty"))
    if change == "remove":
        del lines[i]
    elif change == "repeat":
        lines.insert(j, lines[i])
    elif change == "move":
        line = lines.pop(i)
        lines.insert(j, line)
    elif change == "join":
        lines[i] = lines[i].rstrip("\n")
    else:
        lines.insert(j, rng.choice(("\n", "   \n", "\t\n", "# a comment\n", "\r\n")))
    return "".join(lines)


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252")


def encoded(rng: random.Random, text: str) -> bytes:
    """Return the text in UTF-8, or now and then in another encoding or with other ends of lines."""
    if rng.random() < 0.1:
        text = text.replace("\n", rng.choice(("\r\n", "\r", "\n\n")))
    name = rng.choice(ENCODINGS) if rng.random() < 0.2 else "utf-8"
    return text.encode(name, "replace")
