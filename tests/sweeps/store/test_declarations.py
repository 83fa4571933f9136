"""Declarations: a list that only grows, on any file system, and a damaged one is an error."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from sweeps.spec import study_file
from sweeps.spec.study import Study
from sweeps.store import declarations, records
from sweeps.store.declarations import FILE, Declaration
from sweeps.store.records import Store
from tests.errors import refuses
from tests.sweeps.spec import toy

CLAIM = """\
claims:
  - claim: GeoCLIP helps
    better: {variant: geoclip, fusion: hadamard}
    than: {variant: none}
    on: {split: checkerboard}
    metric: mae
"""

MEMORY = pyarrow.fs._MockFileSystem()


class InMemory(Store):
    """A storage in memory, in which folders have to be created."""

    def location(self, *parts: str) -> tuple[pyarrow.fs.FileSystem, str]:
        return MEMORY, "/".join([self.storage.strip("/"), self.study, *parts])


@pytest.fixture(params=["folder", "uri", "memory", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "bucket":
        return Store(f"{request.getfixturevalue('objects').bucket()}/results", "toy")
    if request.param == "memory":
        return InMemory(str(tmp_path), "toy")
    return Store(tmp_path.as_uri() if request.param == "uri" else str(tmp_path), "toy")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "results"), "toy")


def study(tmp_path: Path, *overrides: str) -> Study:
    return study_file.load(toy.write(tmp_path, toy.TOY + CLAIM), list(overrides))


def edit(store: Store, change: Any) -> None:
    """Write the file again after `change` has seen its list."""
    system, path = store.location(FILE)
    items = json.loads(records.read(system, path))
    records.write(system, path, json.dumps(change(items)).encode())


def test_a_declaration_is_read_as_it_was_made(store: Store, tmp_path: Path) -> None:
    assert declarations.read(store) == []
    begin = datetime.now(UTC).replace(microsecond=0)
    declarations.declare(study(tmp_path), store)
    (found,) = declarations.read(store)
    assert begin <= datetime.fromisoformat(found.time) <= datetime.now(UTC)
    assert (found.cells, found.trials, found.first) == (0, 0, True)
    geoclip = {"variant": "geoclip", "fusion": "hadamard", "head": None}
    assert found.content == {
        "contrasts": [
            {
                "claim": "GeoCLIP helps",
                "arm": geoclip,
                "other": {"variant": "none", "fusion": None, "head": None},
                "split": "checkerboard-16",
                "part": "test",
                "fold": None,
                "metric": "mae",
            }
        ],
        "arms": ["none", "geoclip-hadamard"],
        "splits": {"random": [0, 1, 2, 3, 4], "checkerboard-16": [0, 1]},
        "split_settings": {
            "random": {"kind": "random", "folds": 5, "validation": 0.1, "seed": 0},
            "checkerboard-16": found.content["split_settings"]["checkerboard-16"],
        },
        "seeds": [0, 1],
        "analysis": {"metric": "rmse", "alpha": 0.05, "rope": 0.01, "block_degrees": 8.0},
        "settings": found.content["settings"],
    }
    of_trainings = {"window", "protocol", "channels", "neighbours", "model", "train", "search"}
    assert found.content["settings"].keys() == of_trainings
    assert found.content["settings"]["train"]["loss"] == "squared"
    assert declarations.contrasts(found.content) == [("GeoCLIP helps", study(tmp_path).claims[0].contrast)]


def test_equal_declarations_are_stored_once(store: Store, tmp_path: Path) -> None:
    declarations.declare(study(tmp_path), store)
    declarations.declare(study(tmp_path), store)
    assert len(declarations.read(store)) == 1
    declarations.declare(study(tmp_path, "budget.cells=3"), store)  # nothing of it is declared
    assert len(declarations.read(store)) == 1
    (first,) = declarations.read(store)
    declarations.declare(study(tmp_path, "analysis.alpha=0.1"), store)
    declarations.declare(study(tmp_path), store)  # the first again is another change
    found = declarations.read(store)
    assert [one.content["analysis"]["alpha"] for one in found] == [0.05, 0.1, 0.05]
    assert found[0] == first


def test_records_with_scores_are_counted(local: Store, tmp_path: Path) -> None:
    """Results of cells that the study no longer asks for count too; failures and unfinished work do not."""
    for key, state in (("a", "done"), ("b", "failed"), ("c", "done")):
        local.write_record({"key": key, "state": state})
    local.write_file("d", "checkpoint.pt", b"")
    for key, state in (("s", "done"), ("t", "pruned"), ("u", "failed"), ("v", "done")):
        local.search.write_record({"key": key, "state": state})
    declarations.declare(study(tmp_path), local)
    (found,) = declarations.read(local)
    assert (found.cells, found.trials, found.first) == (2, 3, False)


def test_a_study_without_claims_declares_its_family(tmp_path: Path) -> None:
    made = study_file.load(toy.write(tmp_path), [])
    found = declarations.contrasts(declarations.content(made))
    assert [contrast for _, contrast in found] == [*made.contrasts()]
    assert {text for text, _ in found} == {""}
    assert len(found) == 2


def test_the_hash_is_that_of_canonical_json() -> None:
    known = hashlib.sha256(b'{"a":[1,"\\u00e9"],"b":0.05}').hexdigest()
    assert declarations.digest({"b": 0.05, "a": [1, "é"]}) == known
    assert Declaration("", 0, 0, {"a": [1, "é"], "b": 0.05}).sha256 == known


def without_hash(items: list[dict[str, Any]]) -> Any:
    del items[0]["sha256"]
    return items


def of_another_alpha(items: list[dict[str, Any]]) -> Any:
    items[0]["declared"]["analysis"]["alpha"] = 0.2
    return items


def with_an_unknown_arm(items: list[dict[str, Any]]) -> Any:
    del items[0]["declared"]["contrasts"][0]["arm"]["variant"]
    items[0]["sha256"] = declarations.digest(items[0]["declared"])
    return items


@pytest.mark.parametrize(
    "change",
    [
        lambda items: {"declared": items},
        lambda items: 7,
        lambda items: [None],
        lambda items: [items[0] | {"cells": "none"}],
        lambda items: [items[0] | {"time": "yesterday"}],
        lambda items: [items[0] | {"format": 2}],
        without_hash,
        of_another_alpha,
        with_an_unknown_arm,
    ],
)
def test_a_damaged_file_is_named(change: Any, local: Store, tmp_path: Path) -> None:
    made = study(tmp_path)
    declarations.declare(made, local)
    edit(local, change)
    with refuses(f"toy/{FILE}", ""):
        declarations.read(local)
    before = Path(local.storage, "toy", FILE).read_bytes()
    with refuses(f"toy/{FILE}", ""):
        declarations.declare(made, local)
    assert Path(local.storage, "toy", FILE).read_bytes() == before


def test_a_file_that_is_no_json_is_named(local: Store, tmp_path: Path) -> None:
    system, path = local.location(FILE)
    for content in (b"", b"[{", b"\xff\xfe"):
        records.write(system, path, content)
        with refuses(f"toy/{FILE}", ""):
            declarations.read(local)


def test_a_storage_that_refuses_is_named(objects: Any, tmp_path: Path) -> None:
    store = Store(f"{objects.bucket()}/results", "toy")
    declarations.declare(study(tmp_path), store)
    objects.refused = lambda request: request.startswith("GET") and FILE in request
    with refuses(store.storage, "storage"):
        declarations.read(store)
    objects.refused = lambda request: request.startswith("PUT") and FILE in request
    with refuses(store.storage, "storage"):
        declarations.declare(study(tmp_path, "analysis.alpha=0.1"), store)
