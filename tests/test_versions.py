"""The pinned versions and the ranges of pyproject.toml agree."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def direct() -> Iterator[Requirement]:
    """Requirements of the project and of its extras, but for the project's own extras."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (Requirement(line) for group in groups for line in group):
        if requirement.name != PROJECT["name"]:
            yield requirement


def lower_bounds() -> dict[str, Version]:
    """Lowest version of each direct dependency that has one, the highest where a name occurs twice."""
    bounds: dict[str, Version] = {}
    for requirement in direct():
        for part in requirement.specifier:
            if part.operator == ">=":
                name = canonicalize_name(requirement.name)
                bounds[name] = max(Version(part.version), bounds.get(name, Version("0")))
    return bounds


def pinned(file: str) -> dict[str, Version]:
    """Versions of a constraints file; every line that is not a comment is `name==version`."""
    versions = {}
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            versions[canonicalize_name(name)] = Version(version)
    return versions


def test_every_direct_dependency_but_stubs_has_a_lower_bound() -> None:
    unbounded = {canonicalize_name(requirement.name) for requirement in direct()} - lower_bounds().keys()
    assert [name for name in unbounded if not (name.startswith("types-") or name.endswith("-stubs"))] == []


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    assert pinned("constraints-oldest.txt") == lower_bounds()


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_pinned_versions_are_in_the_ranges(file: str) -> None:
    versions = pinned(file)
    wrong = {
        f"{requirement} is pinned to {versions[name]}"
        for requirement in direct()
        if (name := canonicalize_name(requirement.name)) in versions
        and not requirement.specifier.contains(versions[name])
    }
    assert wrong == set()
