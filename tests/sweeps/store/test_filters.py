"""A filter chooses exactly the cells that it names, and one that would choose none is refused."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm25.cell import Cell
from pm25.errors import InputError
from sweeps.store import filters
from sweeps.store.records import Record

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


def refusal(text: str, cells: list[Cell] = GRID, failed: list[Record] | None = None) -> str:
    with pytest.raises(InputError) as raised:
        filters.parse(text, cells, failed)
    said = str(raised.value)
    assert len(said.splitlines()) == 1
    assert said.startswith(f"filter {text!r}: ")
    return said.removeprefix(f"filter {text!r}: ")


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
        assert "no cell with " in refusal(text)


# What is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write it as FIELD=VALUE, such as variant=geoclip,seed=0|1"),
        ("variant", "write it as FIELD=VALUE, such as variant=geoclip,seed=0|1"),
        ("variant=", "write it as FIELD=VALUE, such as variant=geoclip,seed=0|1"),
        ("variant=none|", "write it as FIELD=VALUE, such as variant=geoclip,seed=0|1"),
        ("=none", "write it as FIELD=VALUE, such as variant=geoclip,seed=0|1"),
        ("seed=0,=none", "write it as FIELD=VALUE, such as variant=geoclip,seed=0|1"),
        ("varient=none", "there is no field 'varient'; did you mean variant?"),
        (
            "model.width=8",
            f"there is no field 'model.width'; known are {', '.join(filters.FIELDS)}",
        ),
        ("variant=geoclp", "no cell has variant 'geoclp'; did you mean geoclip?"),
        ("variant=none|geoclp", "no cell has variant 'geoclp'; did you mean geoclip?"),
        ("variant=satclip", "no cell has variant 'satclip'; known are none, latlon, geoclip"),
        ("variant=table", "no cell has variant 'table'; known are none, latlon, geoclip"),
        ("fusion=none", "no cell has fusion 'none'; known are -, concat, hadamard"),
        ("regime=oor", "no cell has regime 'oor'; did you mean OoR?"),
        ("split=checkerbord", "no cell has split 'checkerbord'; did you mean checkerboard?"),
        ("split=checkerboard-9", "no cell has split 'checkerboard-9'; did you mean checkerboard-8?"),
        ("seed=1", "no cell has seed '1'; known are 0, 7"),
        ("seed=00", "no cell has seed '00'; did you mean 0?"),
        ("seed=0,seed=7", "seed stands twice; write seed=A|B"),
        (
            "variant=none,fusion=hadamard",
            "no cell with variant=none has fusion=hadamard; known are -, concat",
        ),
        ("error=ValueError", f"there is no field 'error'; known are {', '.join(filters.FIELDS)}"),
        ("variant=geoclip,seed", "no cell has variant 'geoclip,seed'; did you mean geoclip?"),
    ],
)
def test_a_filter_that_chooses_nothing_is_refused(text: str, said: str) -> None:
    assert refusal(text) == said


def test_a_long_list_of_values_is_cut() -> None:
    cells = [cell.model_copy(update={"seed": seed}) for cell in GRID[:1] for seed in range(100, 120)]
    assert refusal("seed=x", cells) == (
        f"no cell has seed 'x'; known are {', '.join(str(seed) for seed in range(100, 112))} and 8 more"
    )


# Failures


def failed(kind: str, message: str, **more: str) -> Record:
    return {"state": "failed", "error": {"type": kind, "message": message, "traceback": ""}, **more}


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
        (
            "error=OutOfMemory",
            "no failed cell has error 'OutOfMemory'; did you mean OutOfMemoryError?",
        ),
        ("host=gpu-3", "no failed cell has host 'gpu-3'; did you mean gpu-2?"),
        (
            "error=RuntimeError,host=gpu-1",
            "no failed cell with error=RuntimeError has host=gpu-1; there is no value to choose from",
        ),
        ("variant=geoclip", "no failed cell has variant 'geoclip'; known are none"),
        (
            "signature=RuntimeError: its worker dies",
            "no failed cell has signature 'RuntimeError: its worker dies'; "
            "did you mean RuntimeError: its worker died?",
        ),
    ],
)
def test_a_filter_of_failures_that_chooses_nothing(text: str, said: str) -> None:
    assert refusal(text, CELLS, FAILED) == said


def test_without_failures_there_is_nothing_to_choose() -> None:
    assert (
        refusal("variant=none", [], [])
        == "no failed cell has variant 'none'; there is no value to choose from"
    )
