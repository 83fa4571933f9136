"""All groups of measurements in turn, or the one that is named."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.bench import suite
from sweeps.bench.harness import Measurement

ALWAYS = ["trial", "training", "packing", "engine", "mirror", "report", "maps"]
IF_NAMED = ["busy", "scale", "gpu", "calibration", "coverage"]


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group measures its name."""
    for name in ALWAYS + IF_NAMED:

        def run(*_: Any, name: str = name, **__: Any) -> Iterator[Measurement]:
            yield Measurement(name, 1.0, "x", 1.0, "")

        monkeypatch.setattr(getattr(suite, name), "run", run)
    monkeypatch.setattr(suite, "_synthetic", lambda folder: folder)


def test_all_groups_and_their_minutes() -> None:
    *rows, total = suite.measure()
    assert [row.what for row in rows] == ALWAYS
    assert (total.what, total.unit, total.limit) == ("these measurements together", "min", 15)
    assert 0 <= total.value < 15
    assert [words.split()[0] for words in total.detail.split(", ")] == [
        *("trial", "training", "engine", "mirror", "report", "map"),
    ]
    *_, total = suite.measure(keras=Path("python"))
    assert math.isinf(total.limit)


@pytest.mark.parametrize(
    ("only", "rows"),
    [("training", ["training", "packing"]), ("map", ["maps"]), *((name, [name]) for name in IF_NAMED)],
)
def test_one_group(only: str, rows: list[str]) -> None:
    assert [row.what for row in suite.measure(only)] == rows
