"""Nested settings get dotted names."""

from pm25.settings import dotted


def test_dotted_names() -> None:
    nested = {"seed": 1, "train": {"patience": 2, "more": {"deep": [3]}}, "empty": {}}
    assert dotted(nested) == {"seed": 1, "train.patience": 2, "train.more.deep": [3], "empty": {}}
