"""Equal failures have one signature, stand in one group with what their cells share, and end a run."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm25 import metrics
from pm25.cell import Cell
from sweeps.store import failures
from sweeps.store.failures import Breaker
from sweeps.store.records import Record
from tests import worlds

OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate {}. GPU {} has a total capacity of 79.15 GiB of which {} is free. "
    "Process {} has 77.01 GiB memory in use."
)


def caught(error: BaseException, *functions: tuple[str, str]) -> BaseException:
    """The error as it comes out of functions, the outermost first, of these modules."""

    def fail() -> None:
        raise error

    call: Any = fail
    for module, function in reversed(functions):
        space: dict[str, Any] = {"__name__": module, "call": call}
        exec(f"def {function}():\n    call()", space)
        call = space[function]
    try:
        call()
    except BaseException as raised:
        return raised
    raise AssertionError


# Signatures


@pytest.mark.parametrize(
    ("message", "alike"),
    [
        ("the worker died", "the worker died"),
        ("two\n  lines", "two lines"),
        ("loss is nan in epoch 12 of 100", "loss is nan in epoch # of #"),
        ("-1.5e-07 is less than 3,414.25", "# is less than #"),
        ("20GiB, 2.00 GiB and 512 bytes", "# bytes, # bytes and # bytes"),
        ("cuda:0 at 0x7f3a01b2", "cuda:# at #"),
        ("checkerboard-16 fold 1", "checkerboard-# fold #"),
        ("site S00012 of gpu-07", "site S# of gpu-#"),
        ("float32 pm25 crn_solar_mj_m2 ug/m3", "float32 pm25 crn_solar_mj_m2 ug/m3"),
        ("no 'geoclip' in [\"auto\"]", "no 'geoclip' in [\"auto\"]"),
        ("No such file: '/scratch/my runs/a b.parquet'", "No such file: <path>"),
        ("/tmp/ray/x.parquet: no such table", "<path>: no such table"),
        ("s3://bucket/cells/1 cannot be read (~/.aws/config)", "<path> cannot be read (<path>)"),
        ("cell 0a1b2c3d4e5f60718293 is lost", "cell # is lost"),
        ("actor 3f2504e0-4f89-11d3-9a0c-0305e82c3301", "actor #"),
        ("can't open /a; don't", "can't open <path>; don't"),
        ("n/a", "n/a"),
        ("", ""),
    ],
)
def test_what_differs_from_cell_to_cell_is_left_out(message: str, alike: str) -> None:
    assert failures.alike(message) == alike


def test_a_long_message_counts_by_its_beginning() -> None:
    assert failures.alike("x" * 120) == "x" * 120
    assert failures.alike("x" * 121) == "x" * 119 + "…"
    first, second = (
        failures.alike(OUT_OF_MEMORY.format(*given) + f" Process {i} has more." * i)
        for i, given in enumerate((("2.00 GiB", 0, "1.5 GiB", 77), ("512.00 MiB", 3, "20.00 MiB", 123456)))
    )
    assert first == second
    assert first.startswith("CUDA out of memory. Tried to allocate # bytes. GPU # has a total capacity of ")


@given(st.integers(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_never_tell_failures_apart(first: int, second: int, third: float) -> None:
    assert failures.alike(f"got {first} and {second} (mean {third})") == "got # and # (mean #)"


@given(st.text())
def test_any_message_becomes_one_short_line(message: str) -> None:
    alike = failures.alike(message)
    assert len(alike) <= failures.MESSAGE_LENGTH
    assert len(alike.splitlines()) <= 1


def test_a_signature_ends_with_our_innermost_function() -> None:
    error = caught(
        ValueError("width 7"),
        ("sweeps.engine.worker", "run"),
        ("pm25.fit", "fit"),
        ("torch.nn.modules", "forward"),
    )
    assert failures.signature(error) == "ValueError: width # [pm25/fit.py:fit]"
    assert failures.signature(caught(ValueError("width 7"), ("pm25x.fit", "fit"))) == "ValueError: width #"
    assert failures.signature(ValueError("width 7")) == "ValueError: width #"
    assert failures.signature(KeyError()) == "KeyError"
    other = caught(ValueError("width 9"), ("sweeps.other", "run"), ("pm25.fit", "fit"))
    assert failures.signature(other) == failures.signature(error)  # the way there does not matter
    assert failures.signature(caught(TypeError("width 7"), ("pm25.fit", "fit"))) != failures.signature(error)
    assert failures.signature(caught(ValueError("width 7"), ("pm25.trial", "fit"))) != failures.signature(
        error
    )


def test_a_signature_names_the_method_around_a_comprehension() -> None:
    space: dict[str, Any] = {"__name__": "pm25.model"}
    exec("class Network:\n    def forward(self):\n        return [1 / x for x in (1, 0)]", space)
    with pytest.raises(ZeroDivisionError) as raised:
        space["Network"]().forward()
    place = "[pm25/model.py:Network.forward]"
    assert failures.signature(raised.value) == f"ZeroDivisionError: division by zero {place}"


def test_a_real_failure_has_its_place() -> None:
    with pytest.raises(ValueError, match="shapes") as raised:
        metrics.scores(np.zeros(3), np.zeros(2))
    assert failures.signature(raised.value).endswith(" [pm25/metrics.py:scores]")


def test_a_record_without_a_signature_has_one_all_the_same() -> None:
    assert failures.signature_of(failed("ValueError", "width 7")) == "ValueError: width #"
    stored = failed("ValueError", "width 7", signature="ValueError: width # [pm25/fit.py:fit]")
    assert failures.signature_of(stored) == "ValueError: width # [pm25/fit.py:fit]"


# Groups


def cell(arm: str, split: str, fold: int, seed: int) -> Cell:
    """`geoclip-hadamard`, `none-matched-concat`; `random`, `checkerboard-8`."""
    variant, *more = arm.split("-")
    kind, *degrees = split.split("-")
    return Cell.model_validate(
        {
            "variant": variant,
            "head": "matched" if "matched" in more else None,
            "fusion": next((level for level in more if level != "matched"), None),
            "split": {"kind": kind, **({"degrees": float(degrees[0])} if degrees else {})},
            "fold": fold,
            "seed": seed,
        }
    )


def failed(kind: str, message: str, **more: str) -> Record:
    signature = {name: more.pop(name) for name in ("signature",) if name in more}
    return worlds.record("key", "failed", error=worlds.error(kind, message, **signature), **more)


ARMS = ("none", "none-matched-concat", "geoclip-hadamard", "geoclip-concat")
GRID = {
    f"k{number:02}": cell(*place)
    for number, place in enumerate(itertools.product(ARMS, ("random", "checkerboard-8"), (0, 1), (0, 1)))
}
"""32 cells: 8 of each arm, 4 of each of its splits, 2 of each fold of these."""


def outcomes(records: dict[str, Record]) -> dict[str, Record]:
    return {key: records.get(key, {"state": "done"}) for key in GRID}


def test_no_failure_makes_no_group() -> None:
    assert failures.groups(GRID, outcomes({})) == []
    assert failures.groups(GRID, {}) == []
    assert failures.groups({}, {}) == []


def test_equal_failures_make_one_group_with_what_its_cells_share() -> None:
    concat = [key for key, c in GRID.items() if c.fusion == "concat"]
    assert len(concat) == 16
    records = {
        key: failed("OutOfMemoryError", f"tried {i} GiB", host=f"gpu-{i % 2}") for i, key in enumerate(concat)
    }
    (group,) = failures.groups(GRID, outcomes(records))
    assert group.signature == "OutOfMemoryError: tried # bytes"
    assert (group.type, group.message) == ("OutOfMemoryError", "tried # bytes")
    assert group.keys == tuple(concat)
    assert group.shared == {"fusion": "concat"}
    assert group.hosts == ("gpu-0", "gpu-1")
    assert group.line == "16 cells: fusion=concat, OutOfMemoryError: tried # bytes (k08 on gpu-0, gpu-1)"
    assert group.content == {
        "cells": 16,
        "where": {"fusion": "concat"},
        "error": "OutOfMemoryError",
        "message": "tried # bytes",
        "signature": "OutOfMemoryError: tried # bytes",
        "hosts": ["gpu-0", "gpu-1"],
        "key": "k08",
    }


def test_the_largest_group_comes_first_then_the_grid_s_order() -> None:
    records = {
        "k00": failed("ValueError", "a"),
        "k03": failed("ValueError", "b"),
        "k01": failed("TypeError", "c"),
        "k07": failed("TypeError", "c"),
    }
    assert [(group.message, group.keys) for group in failures.groups(GRID, outcomes(records))] == [
        ("c", ("k01", "k07")),
        ("a", ("k00",)),
        ("b", ("k03",)),
    ]


def test_every_factor_can_be_shared() -> None:
    (group,) = failures.groups(GRID, outcomes({"k15": failed("E", "")}))
    levels = {"variant": "none", "fusion": "concat", "head": "matched"}
    assert group.shared == {**levels, "split": "checkerboard-8", "fold": "1", "seed": "1"}
    assert group.line.startswith(
        "1 cell: variant=none,fusion=concat,head=matched,split=checkerboard-8,fold=1,"
    )
    assert group.line.endswith("seed=1, E (k15)")


def test_what_all_cells_of_the_study_have_is_not_said() -> None:
    grid = {key: c for key, c in GRID.items() if c.seed == 0 and c.variant == "geoclip"}
    (group,) = failures.groups(grid, {key: failed("E", "m") for key in grid})
    assert group.shared == {}
    assert group.line == "8 cells: E: m (k16)"
    waiting = [cell("latlon", "random", 0, 0)]  # which is to come
    (group,) = failures.groups(grid, {key: failed("E", "m") for key in grid}, waiting)
    assert group.shared == {"variant": "geoclip"}
    assert failures.factors(waiting[0])["fusion"] == "-"


def test_messages_that_are_equal_are_shown_as_they_are() -> None:
    (group,) = failures.groups(GRID, {"k00": failed("E", "width 7"), "k01": failed("E", "width 7")})
    assert (group.message, group.signature) == ("width 7", "E: width #")


def test_the_same_error_from_another_place_is_another_group() -> None:
    places = ("pm25/fit.py:step", "pm25/model.py:Network.forward")
    records = {
        key: failed("E", "width 7", signature=f"E: width # [{place}]")
        for key, place in zip(("k00", "k01"), places, strict=True)
    }
    lines = [group.line for group in failures.groups(GRID, records)]
    assert [line.split(", ")[-1].split(",")[-1] for line in lines] == [
        "E: width 7 [pm25/fit.py:step] (k00)",
        "E: width 7 [pm25/model.py:Network.forward] (k01)",
    ]


def test_a_line_stays_a_line() -> None:
    records = {key: failed("E", "m" * 300, host=f"h{i:02}") for i, key in enumerate(GRID)}
    (group,) = failures.groups(GRID, records)
    assert group.line == f"32 cells: E: {'m' * 156}… (k00 on h00, h01, h02 and 29 more hosts)"
    assert group.content["message"] == "m" * 300


# The breaker


def test_the_breaker_opens_at_its_limit() -> None:
    breaker = Breaker(3)
    for signature in ("a", "b", "a", "b"):
        breaker.failed(signature)
        assert breaker.reason is None
    breaker.failed("c")
    breaker.failed("b")  # the third, though not in a row
    assert breaker.reason is not None
    assert breaker.reason.startswith("3 ")
    assert " b;" in breaker.reason
    assert "sweep retry" in breaker.reason
    breaker.failed("a")
    assert breaker.reason is not None  # and stays open


def test_a_breaker_of_one_opens_at_the_first_failure() -> None:
    breaker = Breaker(1)
    assert breaker.reason is None
    breaker.failed("a")
    assert breaker.reason is not None
    assert breaker.reason.startswith("1 ")


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 6))
def test_the_breaker_counts_equal_failures_only(signatures: list[str], limit: int) -> None:
    breaker = Breaker(limit)
    for signature in signatures:
        breaker.failed(signature)
    assert (breaker.reason is not None) == any(signatures.count(s) >= limit for s in "abc")


def test_what_fails_after_the_breaker_opened_changes_nothing_that_it_says() -> None:
    breaker = failures.Breaker(2)
    for signature in ("a", "a"):
        breaker.failed(signature)
    reason = breaker.reason
    assert reason is not None
    assert reason.startswith("2 ")
    for signature in ("a", "b", "b", "b", "b"):
        breaker.failed(signature)
    assert breaker.reason == reason
