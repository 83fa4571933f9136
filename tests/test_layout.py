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
    assert "torch" in {*imported(ROOT / "pm25" / "encoders" / "geoclip.py")}  # inside a function
    assert "pm25.cell" in {*imported(ROOT / "sweeps" / "spec" / "study.py")}


FLOORS = {
    "pm25": 1,
    "sweeps.exit_status": 2,
    "sweeps.spec": 2,
    "sweeps.store": 3,
    "sweeps.analysis": 4,
    "sweeps.state": 5,
    "sweeps.explain": 5,
    "sweeps.plan": 6,
    "sweeps.report": 6,
    "sweeps.engine": 7,
    "sweeps.tracking": 8,
    "sweeps.driver": 9,
    "sweeps.bench": 10,
    "sweeps.notebook": 11,
    "sweeps.cli": 11,
    "sweeps.__main__": 12,
}
"""The rooms by height: a module imports only from its own room, or from a lower floor."""

BESIDE = {("sweeps.explain", "sweeps.state")}
"""Rooms of one floor of which the first may import the second."""


def room(module: str) -> str | None:
    """Room of a dotted module name; None for other libraries, and for the package `sweeps` itself."""
    parts = module.split(".")
    if parts[0] == "pm25":
        return "pm25"
    return ".".join(parts[:2]) if parts[0] == "sweeps" and len(parts) > 1 else None


def own_modules() -> dict[str, Path]:
    """Modules of the two packages by their dotted names."""
    dotted = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    return {module.removesuffix(".__init__"): path for module, path in dotted.items()}


def wrong_imports(modules: dict[str, Path]) -> list[str]:
    """Imports that point to a higher floor, or to another room of the same floor."""
    found = []
    for module, path in modules.items():
        here = room(module)
        for target in imported(path):
            there = room(target)
            if here is None or there in (None, here) or there not in FLOORS:
                continue
            if FLOORS[there] >= FLOORS[here] and (here, there) not in BESIDE:
                found.append(f"{module} imports {target}")
    return found


def circles(modules: dict[str, Path]) -> list[str]:
    """Modules that import themselves through others, wherever in a file the import stands."""
    edges = {
        module: {target for target in imported(path) if target in modules and target != module}
        for module, path in modules.items()
    }
    done: set[str] = set()
    found = []

    def walk(module: str, path: tuple[str, ...]) -> None:
        for target in sorted(edges[module]):
            if target in path:
                found.append(" -> ".join([*path[path.index(target) :], target]))
            elif target not in done:
                walk(target, (*path, target))
        done.add(module)

    for module in edges:
        if module not in done:
            walk(module, (module,))
    return found


def test_every_module_has_a_room() -> None:
    assert {room(module) for module in own_modules()} - {None} == {*FLOORS}


def test_no_import_points_up() -> None:
    assert wrong_imports(own_modules()) == []


def test_no_import_circle() -> None:
    assert circles(own_modules()) == []


def test_a_wrong_import_is_found(tmp_path: Path) -> None:
    """The check itself: one import up, and one circle."""
    modules = own_modules()
    changed = tmp_path / "records.py"
    up = "\n\ndef f():\n    from sweeps.report import tables\n"
    changed.write_text(modules["sweeps.store.records"].read_text() + up)
    assert "sweeps.store.records imports sweeps.report.tables" in wrong_imports(
        modules | {"sweeps.store.records": changed}
    )
    changed.write_text(
        modules["sweeps.store.records"].read_text() + up.replace("report import tables", "store import lock")
    )
    assert any(
        "sweeps.store.records" in line for line in circles(modules | {"sweeps.store.records": changed})
    )


def test_one_trial_knows_nothing_of_many() -> None:
    for library in ("ray", "mlflow", "optuna", "sweeps"):
        assert not {path for path in importers(library) if path.startswith("pm25/")}, library


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("ray", "sweeps/engine/"),
        ("mlflow", "sweeps/tracking/"),
        ("matplotlib", "sweeps/report/figures"),
        ("rasterio", "sweeps/report/rasters.py"),
        ("h5netcdf", "sweeps/report/rasters.py"),
    ],
)
def test_a_heavy_library_has_its_room(library: str, doors: str) -> None:
    found = importers(library)
    assert found
    assert {path for path in found if not path.startswith(doors)} == set()


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
        there = {path for path in there if "__pycache__" not in path.parts and path.suffix != ".md"}
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
