"""Encoders of other packages, found by the entry points of the group `pm25.encoders`."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Collection, Mapping
from importlib import metadata
from typing import Any, NamedTuple

from pm25.errors import InputError

GROUP = "pm25.encoders"
"""Group of the entry points, each of which names an encoder class."""

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""Names that work in study files, options, labels of arms and file names."""


class PlugIn(NamedTuple):
    """An encoder class that an installed package registers."""

    name: str
    package: str
    """Name and version of the package, such as `mypackage 1.2`."""
    entry: metadata.EntryPoint

    def load(self) -> Any:
        """Import the class. Raises InputError, which names the package, if that fails."""
        try:
            kind = self.entry.load()
        except (Exception, SystemExit) as error:  # whatever the code of another package raises
            problem = f"{self.entry.value} cannot be imported ({described(error)})"
            raise self.error(problem, "repair or uninstall the package") from error
        for method in ("source", "embed"):
            if not callable(getattr(kind, method, None)):
                problem = f"{self.entry.value} has no method {method}"
                raise self.error(problem, "add it, as pm25/encoders/README.md shows")
        return kind

    def error(self, problem: str, fix: str, field: str = "") -> InputError:
        """Return an error that names the package and the encoder."""
        return InputError(f"package {self.package}", ".".join(filter(None, (self.name, field))), problem, fix)


def described(error: BaseException) -> str:
    """Return the type and the text of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def find(name: str, built_in: Collection[str]) -> PlugIn | None:
    """Return the plug-in of this name; None if no package has it.

    Raises InputError for a package whose name for an encoder is one of `built_in`, is not usable, or is that
    of another package too.
    """
    return installed(built_in).get(name)


def installed(built_in: Collection[str]) -> Mapping[str, PlugIn]:
    """Return all plug-ins by name. Raises InputError as `find` does."""
    return _installed(tuple(sys.path), frozenset(built_in))


@functools.cache
def _installed(path: tuple[str, ...], built_in: frozenset[str]) -> Mapping[str, PlugIn]:
    """Read the entry points of the packages on `path`, which is `sys.path`."""
    found: dict[str, PlugIn] = {}
    for entry in metadata.entry_points(group=GROUP):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "without a name"
        plug_in = PlugIn(entry.name, package, entry)
        if entry.name in built_in:
            raise plug_in.error(
                "the name is that of a built-in variant", "rename it, or uninstall the package"
            )
        if not NAME.fullmatch(entry.name):
            fix = "begin with a letter, and use up to 40 of a-z, 0-9 and _"
            raise plug_in.error(f"{entry.name!r} is not a name for an encoder", fix)
        if entry.name in found:
            other = found[entry.name].package
            raise plug_in.error(f"package {other} has an encoder of this name", "uninstall one of the two")
        found[entry.name] = plug_in
    return found
