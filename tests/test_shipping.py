"""What is shipped is complete: the wheel and a submitted job hold the same files, and all of it imports."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sweeps.engine import submit
from sweeps.spec import study

ROOT = Path(__file__).parents[1]

IMPORT_ALL = """
import importlib, pkgutil, sys
for package in ("pm25", "sweeps"):
    root = importlib.import_module(package)
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        if not found.name.endswith("__main__"):
            module = importlib.import_module(found.name)
            assert module.__file__.startswith(sys.argv[1]), module.__file__
            print(found.name)
from importlib.resources import files
print(*(path.name for path in (files("sweeps") / "studies").iterdir()))
print(*(path.name for path in (files("sweeps.report") / "templates").iterdir()))
"""


def tracked() -> set[str]:
    """Files of the two packages, as they are in the checkout."""
    return {
        path.relative_to(ROOT).as_posix()
        for package in ("pm25", "sweeps")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    }


def imported_from(folder: Path) -> list[str]:
    """Lines printed by a process that imports every module below `folder`, and from nowhere else."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(folder)],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def modules() -> set[str]:
    names = {name.removesuffix(".py").replace("/", ".") for name in tracked() if name.endswith(".py")}
    return {name.removesuffix(".__init__") for name in names} - {"pm25", "sweeps", "sweeps.__main__"}


@pytest.mark.slow
def test_a_submitted_job_holds_every_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with submit.staged(*study.resolve("demo")) as (folder, _):
        sent = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert sent == {*tracked(), "demo.yaml"}
        *found, studies, templates = imported_from(folder)
    assert {*found} == modules()
    assert "demo.yaml" in studies.split()
    assert "report.html.j2" in templates.split()


@pytest.mark.slow
def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "mlflow").mkdir()  # the folder of deployment files must not become a package
    (source / "mlflow" / "compose.yaml").write_text("")
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "installed")
    assert held == tracked()
    *found, _, _ = imported_from(tmp_path / "installed")
    assert {*found} == modules()
