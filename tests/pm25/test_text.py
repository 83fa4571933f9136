"""Counts are written with their nouns."""

from pm25.text import counted


def test_counts() -> None:
    counts = [counted(n, "cell") for n in (0, 1, 2, 1200)]
    assert counts == ["0 cells", "1 cell", "2 cells", "1,200 cells"]
