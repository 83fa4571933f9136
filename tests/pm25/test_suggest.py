"""Suggestions name the nearest known name, and else what is known."""

import pytest

from pm25 import suggest


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("geoclop", ["none", "geoclip"], "geoclip"),
        ("GEOCLIP", ["none", "geoclip"], "geoclip"),
        ("outofmemory", ["OutOfMemoryError", "ValueError"], "OutOfMemoryError"),
        ("zzz", ["none", "geoclip"], None),
        ("zzz", [], None),
    ],
)
def test_the_nearest_name(name: str, known: list[str], near: str | None) -> None:
    assert suggest.nearest(name, known) == near


def test_a_lower_cutoff_finds_less_similar_names() -> None:
    assert suggest.nearest("lerning", ["learning_rate"]) == "learning_rate"
    assert suggest.nearest("rate", ["learning_rate"]) is None
    assert suggest.nearest("rate", ["learning_rate"], cutoff=0.4) == "learning_rate"


def test_a_fix_is_the_nearest_name_or_the_known_ones() -> None:
    assert "concat" in suggest.fix("conct", ["film", "concat"])
    assert "film" not in suggest.fix("conct", ["film", "concat"])
    assert {"a1", "b1"} <= {*suggest.fix("zzz", ["a1", "b1"]).replace(",", "").split()}
    assert suggest.fix("zzz", []) == ""


def test_a_long_list_is_cut() -> None:
    known = [f"name{i:02}" for i in range(suggest.LISTED + 3)]
    shown = suggest.use_one_of(known)
    assert known[suggest.LISTED - 1] in shown
    assert known[suggest.LISTED] not in shown
    assert shown.endswith("and 3 more")
