"""A file at a URI is read like one in a folder, and one that cannot be read is reported."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pm25 import encoders, panel, uri
from pm25.sources import synthetic
from tests.errors import refuses


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return synthetic.synthesize(sites=9, days=30)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("channels", [None, ["day_cos", "month_sin"]])
def test_a_table_in_a_bucket_is_the_same_panel(
    objects: Any, tmp_path: Path, frame: pd.DataFrame, kind: str, channels: list[str] | None
) -> None:
    here, there = tmp_path / f"panel.{kind}", f"{objects.bucket()}/tables/panel.{kind}"
    if kind == "parquet":
        frame.to_parquet(here)
    else:
        frame.to_csv(here, index=False)
    objects.put(there, here.read_bytes())
    objects.asked.clear()
    read, local = panel.read(there, channels), panel.read(here, channels)
    assert read.fingerprint == local.fingerprint
    assert read.channels == local.channels
    assert read.name == local.name == f"panel.{kind}"
    assert [asked.split()[0] for asked in objects.asked].count("GET") == 1


def test_a_table_that_is_not_there(objects: Any) -> None:
    for place in (f"{objects.bucket()}/panel.parquet", "s3://nobodys/panel.parquet"):
        with refuses(place, "", ".parquet or .csv"):
            panel.read(place)


def test_a_table_that_may_not_be_read(objects: Any) -> None:
    place = f"{objects.bucket()}/panel.parquet"
    objects.put(place, b"PAR1")
    objects.refused = lambda request: "panel.parquet" in request
    with refuses(place, "", "ACCESS_DENIED", "AWS_ACCESS_KEY_ID"):
        panel.read(place)


def test_a_file_that_is_not_a_table(objects: Any) -> None:
    place = f"{objects.bucket()}/panel.parquet"
    objects.put(place, b"no table")
    with refuses(place, "", "parquet"):
        panel.read(place)


def test_a_scheme_without_a_file_system() -> None:
    with refuses("https://host/panel.csv", "", "https"):
        panel.read("https://host/panel.csv")


def test_storage_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with refuses("s3://unanswered/panel.parquet", "", "AWS_ENDPOINT_URL", "http://127.0.0.1:9"):
        panel.read("s3://unanswered/panel.parquet")


def test_vectors_in_a_bucket_are_the_same_encoder(objects: Any, tmp_path: Path) -> None:
    here, there = tmp_path / "vectors.parquet", f"{objects.bucket()}/vectors.parquet"
    pd.DataFrame({"lat": [40.0, 41.0], "lon": [-90.0, -91.0], "a": [1.0, 2.0]}).to_parquet(here)
    objects.put(there, here.read_bytes())
    local, found = (encoders.load("table", path=path) for path in (here, there))
    assert found.fingerprint == local.fingerprint
    np.testing.assert_array_equal(found.embed([41.0], [-91.0]), [[2.0]])
    lost = there.replace("vectors", "lost")
    with refuses(lost, "", "No such file"):
        encoders.load("table", path=lost)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("s3://bucket/a/panel.csv?region=eu-west-1", "panel.csv"),
        ("/data/panel.parquet", "panel.parquet"),
        ("gs://bucket/panel.parquet", "panel.parquet"),
    ],
)
def test_the_name_of_a_file(place: str, name: str) -> None:
    assert uri.file_name(place) == name


@pytest.mark.parametrize("place", ["s3://", "s3:///panel.parquet", "gs://", "gs://anonymous@", "gs://?a=b"])
def test_an_address_without_a_bucket_is_refused_at_once(place: str) -> None:
    with refuses(place, "", "no bucket", f"{place[:2]}://BUCKET/PATH"):
        panel.read(place)


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("/", "root"),
        ("//", "root"),
        ("file:///", "root"),
        ("/dev/null", "regular"),
        ("/dev/zero", "regular"),
        ("file:///dev/zero", "regular"),
    ],
)
def test_what_is_no_file_is_refused_at_once(place: str, problem: str) -> None:
    with refuses(None, "", problem, "give a"):
        panel.read(place)


def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "panel.csv")
    for place in (tmp_path / "panel.csv", f"file://{tmp_path}/panel.csv"):
        with refuses("panel.csv", "", "regular"):
            panel.read(place)


def test_google_storage_without_credentials_is_refused_within_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(uri, "GOOGLE_S", 0.1)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GCE_METADATA_ROOT", "127.0.0.1:9")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with refuses("gs://nobodys/panel.parquet", "", "GOOGLE_APPLICATION_CREDENTIALS"):
        panel.read("gs://nobodys/panel.parquet")
