"""Addresses with characters that a URI cannot have, and addresses with secrets."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings

from pm25 import uri
from tests.odd_names import names


@settings(max_examples=100, deadline=None)
@given(names.filter(lambda name: "?" not in name and "%" not in name))
def test_a_file_is_read_at_the_address_that_names_it(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(b"here")
        assert uri.read(f"file://{folder}/{name}") == b"here"


@pytest.mark.parametrize(
    ("address", "escaped"),
    [
        ("s3://bucket/panel.parquet", "s3://bucket/panel.parquet"),
        ("s3://bucket/a b?region=eu", "s3://bucket/a%20b?region=eu"),
        ("s3://bucket/a%20b", "s3://bucket/a%20b"),
        ("s3://bucket/50%", "s3://bucket/50%25"),
        ("s3://bucket/a#1", "s3://bucket/a%231"),
        ("s3://key:secret@bucket/a", "s3://key:secret@bucket/a"),
        ("gs://bucket/größe", "gs://bucket/gr%C3%B6%C3%9Fe"),
    ],
)
def test_only_what_a_uri_cannot_have_is_escaped(address: str, escaped: str) -> None:
    assert uri.escaped(address) == escaped
    assert uri.escaped(escaped) == escaped


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("s3://key:secret@bucket/results", "s3://bucket/results"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("/data/a@b", "/data/a@b"),
    ],
)
def test_messages_have_no_secrets(place: str, shown: str) -> None:
    assert uri.without_secrets(place) == shown
