"""Errors keep their fields and print them in one line."""

import pickle

import pytest

from pm25.errors import InputError, SettingError


def test_the_wording_of_an_error() -> None:
    error = InputError("panel.parquet", "lat", "95.2 is out of range", "give degrees in -90..90")
    assert str(error) == "panel.parquet: lat: 95.2 is out of range. Fix: give degrees in -90..90."


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            ("panel.parquet", "", "no such table", "give a file"),
            "panel.parquet: no such table. Fix: give a file.",
        ),
        (
            ("", "lat", "95.2 is out of range", "give degrees"),
            "lat: 95.2 is out of range. Fix: give degrees.",
        ),
        (("panel.parquet", "lat", "95.2 is out of range", ""), "panel.parquet: lat: 95.2 is out of range"),
        (("x.csv", "", "cannot be read.", "write it again."), "x.csv: cannot be read. Fix: write it again."),
        (("x.csv", "a", "first line\n  second", "do\nthis"), "x.csv: a: first line second. Fix: do this."),
    ],
)
def test_empty_parts_are_left_out_and_lines_are_joined(fields: tuple[str, str, str, str], text: str) -> None:
    assert str(InputError(*fields)) == text


def test_a_setting_has_no_file_yet() -> None:
    error = SettingError("train.decay", "2 is out of range", "give 0 to 1")
    assert str(error) == str(InputError("", "train.decay", "2 is out of range", "give 0 to 1"))


@pytest.mark.parametrize(
    "error", [InputError("x.csv", "a", "is missing", "add it"), SettingError("a.b", "is missing", "add it")]
)
def test_an_error_survives_pickling(error: InputError | SettingError) -> None:
    """Errors cross process borders with all their fields."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)
