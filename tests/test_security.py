"""Promises of SECURITY.md: no file is unpickled, and files of results follow the umask."""

import ast
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import pm25
import sweeps
from sweeps.cli import files
from sweeps.store.records import Store

PACKAGES = [Path(str(package.__file__)).parent for package in (pm25, sweeps)]
UNPICKLES = ("pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle")
ALLOWED = {("ray_internals.py", "cloudpickle")}
"""The error of a crashed worker, from the run's private folder."""


def findings(source: str) -> Iterator[str]:
    """Modules that unpickle and calls that could, in Python code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from {name for name in names if name.partition(".")[0] in UNPICKLES}
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            unsafe = (
                (call == "torch.load" and given.get("weights_only") != "True")
                or given.get("allow_pickle") == "True"
                or call
                in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "eval", "exec")
            )
            if unsafe:
                yield call


def test_no_file_is_unpickled() -> None:
    found = {
        (path.name, name)
        for package in PACKAGES
        for path in package.rglob("*.py")
        for name in findings(path.read_text())
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f, Loader=yaml.Loader)",
    ],
)
def test_a_loader_that_runs_code_is_found(source: str) -> None:
    assert [*findings(source)]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_of_results_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = Store(str(tmp_path / "results"), "toy")
        store.prepare()
        store.write_record({"key": "a" * 20, "state": "done"})
        store.write_table("a" * 20, "history", {"epoch": [1]})
        files.write_cells(pd.DataFrame({"a": [1]}), tmp_path / "cells.csv")
        files.write_cells(pd.DataFrame({"a": [1]}), tmp_path / "cells.parquet")
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"result.json", "history.parquet", "cells.csv", "cells.parquet"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o666 & ~umask}
    assert stat.S_IMODE((tmp_path / "results").stat().st_mode) == 0o777 & ~umask
