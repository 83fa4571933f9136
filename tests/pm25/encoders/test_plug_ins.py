"""Encoders of other packages: found by name, checked, and part of a key with their version and options."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pm25 import encoders
from pm25.cell import Cell
from pm25.encoders import Source
from pm25.settings import VARIANTS, embeds, known_variant
from pm25.splits import RandomSplit
from tests.errors import SettingError, refuses
from tests.pm25.encoders import packages

LAT, LON = np.array([40.0, 33.0, 45.0]), np.array([-100.0, -118.0, -70.0])

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package for this test; a second one of the same name replaces it."""
    before, count = {*sys.modules}, iter(range(99))

    def call(name: str, body: str = packages.GOOD, **more: Any) -> None:
        folder = tmp_path / f"site{next(count)}"
        packages.install(folder, name, body, **more)
        monkeypatch.syspath_prepend(str(folder))
        for module in {*sys.modules} - before:
            if module.startswith("pkg"):
                del sys.modules[module]

    yield call
    for module in {*sys.modules} - before:
        if module.startswith("pkg"):
            del sys.modules[module]


def test_an_installed_encoder_is_loaded_by_its_name(install: Install) -> None:
    install("scaled")
    encoder = encoders.load("scaled", scale=2.0)
    np.testing.assert_array_equal(encoder.embed(LAT, LON), np.float32([[80, -200], [66, -236], [90, -140]]))
    assert (encoder.dim, encoder.trained_on_target) == (2, False)
    assert encoder.fingerprint == encoders.fingerprint("scaled", scale=2.0)
    assert known_variant("scaled") == "scaled"
    assert encoders.lookup_keys("scaled") == ()


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec(packages.of_readme()["harbours.py"], names)
    kind = names["Harbours"]
    vectors = kind(kind.source(width=2.0)).embed(np.array([40.7, 40.7]), np.array([-74.0, -72.0]))
    np.testing.assert_allclose(vectors[:, 2], [1, np.exp(-1)], rtol=1e-6)
    with refuses("encoder harbours", "width", 90.5):
        kind.source(width=90.5)


def test_the_fingerprint_covers_name_version_options_and_file(install: Install, tmp_path: Path) -> None:
    """Options count even where the class forgets them, as the one of these tests does."""
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    (tmp_path / "c").write_bytes(b"two")
    install("scaled")
    plain = encoders.fingerprint("scaled")
    assert plain == encoders.fingerprint("scaled", scale=1.0)
    file = encoders.fingerprint("scaled", path=str(tmp_path / "a"))
    assert file == encoders.fingerprint("scaled", path=str(tmp_path / "b"))
    prints = [plain, file, encoders.fingerprint("scaled", scale=3.0)]
    prints.append(encoders.fingerprint("scaled", path=str(tmp_path / "c")))
    install("other")
    prints.append(encoders.fingerprint("other"))
    install("scaled", version="1.1")
    prints.append(encoders.fingerprint("scaled"))
    install("scaled", package="pkg-of-others", version="1.0")
    install("scaled", version="1.2")  # hides the one of version 1.1, but not that of another package
    with refuses("package pkg-of-others 1.0", "scaled", "pkg-scaled 1.2"):
        encoders.fingerprint("scaled")
    assert len({*prints}) == len(prints)


def test_the_key_of_a_cell_has_the_fingerprint(install: Install) -> None:
    install("scaled")
    cell = Cell(variant="scaled", fusion="hadamard", split=RandomSplit(), fold=0, seed=0)
    assert cell.encoder == "scaled"
    assert cell.key("data", "a") != cell.key("data", "b")
    assert embeds("scaled")
    assert [embeds(name) for name in VARIANTS[:4]] == [False, False, False, True]


def test_a_built_in_name_needs_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    from pm25 import plug_ins

    monkeypatch.setattr(plug_ins, "_installed", None)
    for name in VARIANTS:
        assert known_variant(name) == name
    encoders.fingerprint("random")
    with pytest.raises(TypeError):
        known_variant("scaled")


def test_an_unknown_name_is_refused_with_the_nearest_one(install: Install) -> None:
    install("elevation")
    with refuses(None, "", "elevaton", "use elevation", kind=SettingError):
        known_variant("elevaton")
    with refuses(None, "", "geoclap", "use geoclip", kind=SettingError):
        known_variant("geoclap")
    with refuses("encoder", "", "elevaton", "elevation", "geoclip"):
        encoders.load("elevaton")


@pytest.mark.parametrize("name", ["geoclip", "none", "Upper", "with-dash", "x" * 41])
def test_a_name_that_cannot_be_used_is_refused(install: Install, name: str) -> None:
    install(name, package="pkg-bad")
    with refuses("package pkg-bad 1.0", name):
        encoders.load("other")
    with refuses(None, "", "pkg-bad 1.0", name, kind=SettingError):
        known_variant("other")


def changed(old: str, new: str) -> str:
    assert packages.GOOD.count(old) == 1
    return packages.GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("body", "field", "values"),
    [
        (changed("def embed", "def other"), "bad", ["embed"]),
        (changed("@staticmethod\n    def source", "@staticmethod\n    def other"), "bad", ["source"]),
        (changed('Source("any", {}, content)', "None"), "bad.source", ["NoneType"]),
        (changed('Source("any", {}, content)', "1 / 0"), "bad.source", ["ZeroDivisionError"]),
        (changed('Source("any", {}, content)', 'Source("any", {"a": object()})'), "bad.source", ["object"]),
        (changed('Source("any", {}, content)', 'Source("any", {"a": float("nan")})'), "bad.source", []),
        (changed('Source("any", {}, content)', 'Source("any", {}, "text")'), "bad.source", ["bytes"]),
        (changed('source.numbers["scale"]', "source.nothing"), "bad.__init__", ["nothing"]),
        (changed("dim, trained_on_target = 2, False", "trained_on_target = False"), "bad.dim", []),
        (changed("dim, trained_on_target = 2, False", "dim = 2"), "bad.trained_on_target", []),
        (changed("= 2, False", "= 2, 0"), "bad.trained_on_target", [0]),
        (changed("= 2, False", "= 0, False"), "bad.dim", [0]),
        (changed("= 2, False", "= True, False"), "bad.dim", ["True"]),
        (changed("= 2, False", "= 3, False"), "bad.embed", [(3, 2), 3, (3, 3)]),
        (changed("astype(np.float32)", "astype(np.float64)"), "bad.embed", ["float64", "float32"]),
        (changed("astype(np.float32)", "tolist()"), "bad.embed", ["list", "float32"]),
        (changed("[lat, lon], axis=1", "[lat, lon], axis=0"), "bad.embed", [(2, 3), (3, 2)]),
        (changed("* self.scale", "* np.inf"), "bad.embed", [(40.0, -100.0)]),
        (changed("* self.scale", "* lon[:, None] / (lon[:, None] + 118)"), "bad.embed", [(33.0, -118.0)]),
        (changed("* self.scale", "* self.none"), "bad.embed", ["AttributeError"]),
    ],
)
def test_a_broken_encoder_is_one_line_that_names_the_package(
    install: Install, body: str, field: str, values: list[Any]
) -> None:
    install("bad", body)
    with np.errstate(all="ignore"), refuses("package pkg-bad 1.0", field, *values):
        encoders.load("bad").embed(LAT, LON)


@pytest.mark.parametrize("top", ["import nothing_of_this_name", "raise SystemExit(3)", "1 +"])
def test_a_package_that_cannot_be_imported_is_named(install: Install, top: str) -> None:
    install("bad", top=top)
    assert known_variant("bad") == "bad"  # a name is looked up without an import
    with refuses("package pkg-bad 1.0", "bad", "pkg_bad:Kind"):
        encoders.fingerprint("bad")


def test_a_class_that_is_not_there(install: Install, tmp_path: Path) -> None:
    install("bad")
    (file,) = tmp_path.rglob("pkg_bad.py")
    file.write_text("")
    with refuses("package pkg-bad 1.0", "bad", "Kind"):
        encoders.load("bad")


def test_options_are_checked_as_those_of_built_in_encoders(install: Install, tmp_path: Path) -> None:
    install("scaled")
    with refuses("encoder scaled", "size", "scale, path"):
        encoders.fingerprint("scaled", size=3)
    install("needy", changed("scale: float = 1.0", "scale"))
    with refuses("encoder needy", "scale"):
        encoders.fingerprint("needy")
    install("careless", changed('Source("any", {}, content)', 'Source("any", {})'))
    (tmp_path / "file").write_bytes(b"content")
    with refuses("package pkg-careless 1.0", "careless.source", "path", "content"):
        encoders.fingerprint("careless", path=str(tmp_path / "file"))


def test_places_are_checked_before_the_encoder_sees_them(install: Install) -> None:
    install("scaled")
    with refuses("places", "lat", 95):
        encoders.load("scaled").embed([95.0], [0.0])


def test_vectors_by_month(install: Install) -> None:
    twelve = "np.repeat(np.stack([lat, lon], axis=1)[:, None], 12, axis=1)"
    months = changed("np.stack([lat, lon], axis=1)", twelve)
    install("monthly", months + "\n    lookup_keys = ('month',)\n")
    assert encoders.load("monthly").embed(LAT, LON).shape == (3, 12, 2)
    assert encoders.lookup_keys("monthly") == ("month",)
    install("bad", months)
    with refuses("package pkg-bad 1.0", "bad.embed", (3, 12, 2), (3, 2)):
        encoders.load("bad").embed(LAT, LON)


def test_a_stored_encoder_needs_its_own_version(install: Install, tmp_path: Path) -> None:
    install("scaled")
    made = encoders.source("scaled", scale=3.0)
    made.write(tmp_path)
    read = Source.read(tmp_path)
    assert read is not None
    assert read.fingerprint == made.fingerprint
    np.testing.assert_array_equal(read.encoder().embed(LAT, LON), made.encoder().embed(LAT, LON))
    install("scaled", version="2.0")
    with refuses("encoder scaled", "", "pkg-scaled 1.0", "pkg-scaled 2.0", "pkg-scaled==1.0"):
        read.encoder()


def test_a_stored_encoder_needs_its_package() -> None:
    with refuses("encoder gone", "", "pkg-gone 1.0"):
        Source("gone", {}, package="pkg-gone 1.0").encoder()


def test_shuffled_takes_an_installed_encoder(install: Install) -> None:
    install("scaled")
    own = encoders.load("scaled").embed(LAT, LON)
    shuffled = encoders.load("shuffled", of="scaled").embed(LAT, LON)
    assert {*map(tuple, shuffled.tolist())} == {*map(tuple, own.tolist())}
    assert (shuffled != own).any(axis=1).all()


def test_the_label_of_an_encoder(install: Install) -> None:
    install("scaled")
    assert encoders.label("scaled") is None
    assert encoders.label("geoclip") is encoders.label("not_installed") is None
    install("named", packages.GOOD + "\n    label = 'Scaled coordinates'\n")
    assert encoders.label("named") == "Scaled coordinates"
    for wrong in ("''", "'two\\nlines'", "3", "'<b>'", "'a · b'", "'x' * 41"):
        install("named", packages.GOOD + f"\n    label = {wrong}\n")
        with refuses("package pkg-named 1.0", "named.label"):
            encoders.label("named")
