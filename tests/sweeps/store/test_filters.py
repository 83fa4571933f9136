"""A filter chooses exactly the cells that it names, and one that would choose none is refused."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm25.cell import Cell
from sweeps.store import filters
from sweeps.store.records import Record
from tests import worlds
from tests.errors import refuses

ARMS: tuple[tuple[str, str | None, str | None], ...] = (
    ("none", None, None),
    ("none", "matched", "concat"),
    ("latlon", None, None),
    ("geoclip", None, "hadamard"),
    ("geoclip", None, "concat"),
)
SPLITS: tuple[dict[str, Any], ...] = (
    {"kind": "random"},
    {"kind": "spatial"},
    {"kind": "spatial", "buffer_km": 50},
    {"kind": "checkerboard", "degrees": 8},
    {"kind": "checkerboard", "degrees": 16},
    {"kind": "group", "column": "state", "values": ["Ohio, east", "CA"]},
)
GRID = [
    Cell.model_validate(
        {"variant": variant, "head": head, "fusion": fusion, "split": split, "fold": fold, "seed": seed}
    )
    for (variant, head, fusion), split, fold, seed in itertools.product(ARMS, SPLITS, (0, 1), (0, 7))
]
"""5 arms x 6 splits x 2 folds x 2 seeds, 24 cells an arm, 20 a split."""


def chosen(text: str) -> list[Cell]:
    read = filters.parse(text, GRID)
    return [cell for cell in GRID if read.matches(cell)]


def refused(
    said: tuple[str, ...], text: str, cells: list[Cell] = GRID, failed: list[Record] | None = None
) -> None:
    """Check that a filter is refused with the field and the values of `said`."""
    with refuses(f"filter {text!r}", *said):
        filters.parse(text, cells, failed)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("variant=geoclip", 48),
        ("variant=geoclip|latlon", 72),
        ("variant=none", 48),
        ("fusion=-", 48),
        ("fusion=concat", 48),
        ("head=matched", 24),
        ("head=plain,variant=none", 24),
        ("arm=none-matched-concat", 24),
        ("arm=none|geoclip-hadamard", 48),
        ("split=random", 20),
        ("split=checkerboard", 40),  # a kind
        ("split=checkerboard-8", 20),  # a label
        ("split=checkerboard|checkerboard-8|random", 60),
        ("split=spatial", 20),  # a label and a kind: the label
        ("split=spatial-buffer50km|spatial", 40),
        ("split=group-state-Ohio, east+CA", 20),  # a comma in a label
        ("split=group-state-Ohio, east+CA,seed=7", 10),
        ("regime=WR", 60),
        ("regime=OoR", 60),
        ("fold=1", 60),
        ("seed=7", 60),
        ("seed=0|7", 120),
        ("variant=geoclip,split=random|spatial,seed=0", 8),
        (" variant = geoclip | latlon , fold = 0 ", 36),
    ],
)
def test_a_filter_chooses(text: str, number: int) -> None:
    assert len(chosen(text)) == number


def test_it_chooses_these_and_no_others() -> None:
    assert [cell.label for cell in chosen("variant=geoclip,split=checkerboard-16,fold=1")] == [
        "geoclip-hadamard checkerboard-16 fold 1 seed 0",
        "geoclip-hadamard checkerboard-16 fold 1 seed 7",
        "geoclip-concat checkerboard-16 fold 1 seed 0",
        "geoclip-concat checkerboard-16 fold 1 seed 7",
    ]


LEVELS = {
    "variant": ["none", "latlon", "geoclip"],
    "fusion": ["-", "hadamard", "concat"],
    "head": ["plain", "matched"],
    "fold": ["0", "1"],
    "seed": ["0", "7"],
}


@given(
    st.dictionaries(
        st.sampled_from(sorted(LEVELS)), st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1
    )
)
def test_a_comma_is_and_a_bar_is_or(picked: dict[str, list[int]]) -> None:
    wanted = {f: [LEVELS[f][i % len(LEVELS[f])] for i in numbers] for f, numbers in picked.items()}
    text = ",".join(f"{field}={'|'.join(values)}" for field, values in wanted.items())
    expected = [
        cell
        for cell in GRID
        if all(
            str({"fusion": cell.fusion or "-", "head": cell.head or "plain"}.get(f) or getattr(cell, f))
            in values
            for f, values in wanted.items()
        )
    ]
    if expected:
        assert chosen(text) == expected
    else:
        with refuses(f"filter {text!r}"):
            chosen(text)


# What is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ("", "FIELD=VALUE")),
        ("variant", ("", "FIELD=VALUE", "'variant'")),
        ("variant=", ("", "FIELD=VALUE", "'variant='")),
        ("variant=none|", ("", "FIELD=VALUE", "'variant=none|'")),
        ("=none", ("", "FIELD=VALUE", "'=none'")),
        ("seed=0,=none", ("", "FIELD=VALUE", "'=none'")),
        ("varient=none", ("varient", "variant")),
        ("model.width=8", ("model.width", ", ".join(filters.FIELDS))),
        ("variant=geoclp", ("variant", "'geoclp'", "geoclip")),
        ("variant=none|geoclp", ("variant", "'geoclp'", "geoclip")),
        ("variant=satclip", ("variant", "'satclip'", "none, latlon, geoclip")),
        ("variant=table", ("variant", "'table'", "none, latlon, geoclip")),
        ("fusion=none", ("fusion", "'none'", "-, concat, hadamard")),
        ("regime=oor", ("regime", "'oor'", "OoR")),
        ("split=checkerbord", ("split", "'checkerbord'", "checkerboard")),
        ("split=checkerboard-9", ("split", "'checkerboard-9'", "checkerboard-8")),
        ("seed=1", ("seed", "'1'", "0, 7")),
        ("seed=00", ("seed", "'00'", "use 0")),
        ("seed=0,seed=7", ("seed", "seed=A|B")),
        ("variant=none,fusion=hadamard", ("fusion", "variant=none", "fusion=hadamard", "-, concat")),
        ("error=ValueError", ("error", ", ".join(filters.FIELDS))),
        ("variant=geoclip,seed", ("variant", "'geoclip,seed'", "geoclip")),
    ],
)
def test_a_filter_that_chooses_nothing_is_refused(text: str, said: tuple[str, ...]) -> None:
    refused(said, text)


def test_a_long_list_of_values_is_cut() -> None:
    cells = [cell.model_copy(update={"seed": seed}) for cell in GRID[:1] for seed in range(100, 120)]
    refused(
        ("seed", "'x'", f"{', '.join(str(seed) for seed in range(100, 112))} and 8 more"), "seed=x", cells
    )


# Failures


def failed(kind: str, message: str, **more: str) -> Record:
    return worlds.record("key", "failed", error=worlds.error(kind, message), **more)


CELLS = GRID[:4]
FAILED = [
    failed("ValueError", "width 7", host="gpu-1"),
    failed("ValueError", "width 8", host="gpu-2"),
    failed("OutOfMemoryError", "tried 3 GiB", host="gpu-2"),
    failed("RuntimeError", "its worker died"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("error=ValueError", [0, 1]),
        ("error=ValueError|RuntimeError", [0, 1, 3]),
        ("host=gpu-2", [1, 2]),
        ("error=ValueError,host=gpu-2", [1]),
        ("signature=width #", [0, 1]),
        ("signature=OutOfMemoryError: tried # bytes", [2]),
        ("signature=died|bytes", [2, 3]),
        ("seed=0,error=ValueError", [0]),
        ("variant=none", [0, 1, 2, 3]),
    ],
)
def test_a_filter_of_failures(text: str, expected: list[int]) -> None:
    read = filters.parse(text, CELLS, FAILED)
    assert [i for i in range(4) if read.matches(CELLS[i], FAILED[i])] == expected
    by_failure = any(field in text for field in filters.FAILURE_FIELDS)
    for cell in CELLS:
        for record in (None, {"state": "done"}):
            assert read.matches(cell, record) is not by_failure


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("error=OutOfMemory", ("error", "'OutOfMemory'", "OutOfMemoryError")),
        ("host=gpu-3", ("host", "'gpu-3'", "gpu-2")),
        ("error=RuntimeError,host=gpu-1", ("host", "error=RuntimeError", "host=gpu-1")),
        ("variant=geoclip", ("variant", "'geoclip'", "use none")),
        (
            "signature=RuntimeError: its worker dies",
            ("signature", "'RuntimeError: its worker dies'", "RuntimeError: its worker died"),
        ),
    ],
)
def test_a_filter_of_failures_that_chooses_nothing(text: str, said: tuple[str, ...]) -> None:
    refused(said, text, CELLS, FAILED)


def test_without_failures_there_is_nothing_to_choose() -> None:
    refused(("variant", "'none'"), "variant=none", [], [])
