"""Words of messages and reports, and texts in JSON."""

import json
from typing import Any

from pm25.limits import MOST_NESTED


def counted(number: int, noun: str) -> str:
    """Format a count with its noun: '1 cell', '2 cells', '1,200 cells'."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def parse_json(content: str | bytes) -> Any:
    """Parse JSON. Raises ValueError if it is not valid, or nested more than `MOST_NESTED` levels."""
    problem = f"nested more than {MOST_NESTED} levels"
    try:
        parsed = json.loads(content)
    except RecursionError:
        raise ValueError(problem) from None
    level = [parsed]
    for _ in range(MOST_NESTED + 1):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError(problem)
    return parsed
