"""Assertions on errors as values: tests name the input and the field, never the wording."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from pm25.errors import InputError, SettingError


@contextmanager
def refuses(
    where: str | None = None,
    field: str | None = None,
    *values: Any,
    kind: type[InputError | SettingError] = InputError,
) -> Iterator[pytest.ExceptionInfo[Any]]:
    """Expect an error about `field` of `where` whose problem or fix shows each of `values`.

    `where` may be the end of the error's own, such as a file's name without its folder; None matches all.
    `values` are data, names and options that the user has to see.
    """
    with pytest.raises(kind) as raised:
        yield raised
    error = raised.value
    assert "\n" not in str(error)
    assert error.problem, "an error says what is wrong"
    if where is not None:
        assert str(getattr(error, "where", "")).endswith(where), str(error)
    if field is not None:
        assert error.field == field, str(error)
    for value in values:
        assert str(value) in f"{error.problem} {error.fix}", str(error)


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise the SettingError that pydantic wrapped in its own error."""
    try:
        yield
    except ValidationError as error:
        (fault,) = error.errors()
        raise fault["ctx"]["error"] from None
