"""The layout: who may import whom, what is no package, and what every file opens with."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pm25", "sweeps")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
STUDIES = sorted((ROOT / "sweeps" / "studies").glob("*.yaml"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it the import stands, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, [package, node.module]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def importers(library: str) -> set[str]:
    return {name(path) for path in MODULES if library in {found.split(".")[0] for found in imported(path)}}


def test_the_modules_are_found() -> None:
    assert {"pm25/trial.py", "sweeps/cli/__init__.py"} <= {*map(name, MODULES)}
    assert "torch" in {*imported(ROOT / "pm25" / "encoders" / "__init__.py")}  # inside a function
    assert "pm25.cell" in {*imported(ROOT / "sweeps" / "spec" / "study.py")}


def test_one_trial_knows_nothing_of_many() -> None:
    for library in ("ray", "mlflow", "optuna", "sweeps"):
        assert not {path for path in importers(library) if path.startswith("pm25/")}, library


@pytest.mark.parametrize(
    ("library", "modules"),
    [
        ("ray", {"sweeps/engine/ray_tune.py", "sweeps/engine/submit.py"}),
        ("mlflow", {"sweeps/tracking/mlflow_view.py"}),
        ("matplotlib", {"sweeps/report/figures/__init__.py"}),
    ],
)
def test_a_heavy_library_has_its_door(library: str, modules: set[str]) -> None:
    assert importers(library) == modules


def test_no_package_imports_the_tests() -> None:
    assert not importers("tests") | importers("pytest") | importers("hypothesis")


@pytest.mark.parametrize("folder", ["mlflow", "cluster"])
def test_deployment_folders_hold_no_python(folder: str) -> None:
    assert [name(path) for path in (ROOT / folder).rglob("*.py*")] == []


def test_import_mlflow_means_the_library() -> None:
    """From the repository's root, where a folder of that name lies."""
    code = "import importlib.util as u; print(u.find_spec('mlflow').origin)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Path(found).name == "__init__.py"
    assert not Path(found).is_relative_to(ROOT / "mlflow")


def test_the_wheel_holds_the_two_packages_and_their_files() -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = built["packages"]["find"]
    assert found == {"include": ["pm25*", "sweeps*"], "namespaces": False}
    data = {
        path
        for package, globs in built["package-data"].items()
        for glob in globs
        for path in (ROOT / package.replace(".", "/")).glob(glob)
    }
    for package in PACKAGES:
        there = {path for path in (ROOT / package).rglob("*") if path.is_file()}
        there = {path for path in there if "__pycache__" not in path.parts}
        modules = {path for path in there if path.suffix == ".py"}
        assert all((path.parent / "__init__.py").exists() for path in modules), "else it is a namespace"
        assert {name(path) for path in there - modules - data} == set()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_opens_with_its_sentence(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text()))
    assert said
    assert path.read_text().startswith('"""')
    first = said.splitlines()[0]
    assert first.endswith((".", ":"))


@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_a_study_opens_with_its_command(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# sweep run {path.stem} ")
    assert re.search(r"\d+ cells, .*\d+ (seconds|minutes|hours)", first)


def test_there_are_shipped_studies() -> None:
    assert {"demo", "quick"} <= {path.stem for path in STUDIES}
