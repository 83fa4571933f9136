"""The documents are true: their commands parse, their code runs, their studies load, their links resolve."""

import re
import shlex
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pm25.sources import synthetic
from sweeps.cli import cli
from sweeps.spec import study_file, yaml_text
from tests import study_reference
from tests.test_layout import FLOORS

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "pm25", "pm25/encoders", "sweeps", "sweeps/bench", "tests", "cluster", "mlflow")
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path for f in FOLDERS for path in (ROOT / f).glob("*.md")}
README = (ROOT / "README.md").read_text()
LONGEST_README = 150
"""Lines."""


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def without_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """`sweep` commands of the bash blocks, one per line, continued lines joined."""
    lines = [line.strip() for b in blocks(text, "bash") for line in re.sub(r"\\\n\s*", " ", b).splitlines()]
    return [line for line in lines if line.startswith("sweep ")]


COMMANDS = [(name, line) for name, path in DOCUMENTS.items() for line in commands(path.read_text())]


@pytest.mark.parametrize(("document", "line"), COMMANDS)
def test_every_command_parses(
    document: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("panel.parquet").touch()
    for folder in ("results/quick", ".venv-tensorflow/bin"):  # options may name what has to exist
        Path(folder).mkdir(parents=True)
    Path(".venv-tensorflow/bin/python").touch()
    command: click.Command = cli
    words = shlex.split(line, comments=True)[1:]
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(line, words)  # a wrong option or a missing argument raises


def test_the_documents_are_found() -> None:
    expected = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"}
    expected |= {f"{folder}/README.md" for folder in FOLDERS[1:]}
    assert {*DOCUMENTS} == expected
    assert len(COMMANDS) >= 30
    assert {document for document, _ in COMMANDS} >= {"README.md", "sweeps/README.md", "cluster/README.md"}


def test_every_command_has_its_example() -> None:
    """The documents show each command of the command line at least once."""
    names = {name for name, _ in study_reference.leaves(cli, "sweep")}
    shown = {name for name in names for _, line in COMMANDS if f"{line} ".startswith(f"{name} ")}
    assert names - shown == set()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= LONGEST_README


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_exists(document: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", DOCUMENTS[document].read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def anchors(text: str) -> set[str]:
    """Anchors that GitHub gives to the headings of a document."""
    heads = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_resolves(document: str) -> None:
    path = DOCUMENTS[document]
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(path.read_text())):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_is_named_exists(document: str) -> None:
    """Paths of modules and tests, written from the root of the project."""
    text = without_blocks(DOCUMENTS[document].read_text())
    for name in re.findall(r"`((?:pm25|sweeps|tests|cluster|mlflow)/[\w/.-]*)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_name_is_in_its_file(document: str) -> None:
    """Names that are given as: `name` in [file.py](file.py)."""
    path = DOCUMENTS[document]
    text = " ".join(without_blocks(path.read_text()).split())
    for name, file in re.findall(r"`(\w+)` in \[[^\]]*\]\(([\w/.]+\.py)\)", text):
        defined = rf"^ *(?:def |class )?{name}\b"
        assert re.search(defined, (path.parent / file).read_text(), re.MULTILINE), (name, file)


@pytest.mark.parametrize(
    ("document", "block"),
    [(name, block) for name, path in DOCUMENTS.items() for block in blocks(path.read_text(), "yaml")],
)
def test_every_study_loads(
    document: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block without a `study` is a part of one: it replaces those keys of the shipped study `quick`."""
    monkeypatch.chdir(tmp_path)
    content = yaml_text.parse(block)
    if "study" not in content:
        _, quick = study_file.resolve("quick", ["data.table=panel.parquet"])
        content = quick | content
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump(content))
    study_file.load(str(tmp_path / "shown.yaml"))


def test_the_study_of_the_readme_is_the_shipped_one(tmp_path: Path) -> None:
    (block,) = blocks(README, "yaml")
    (tmp_path / "quick.yaml").write_text(block)
    shown = study_file.load(str(tmp_path / "quick.yaml"))
    shipped = study_file.load("quick", ["data.table=panel.parquet"])
    assert shown.design == shipped.design
    assert (shown.model, shown.train) == (shipped.model, shipped.train)
    assert (shown.study, shown.claims, shown.analysis) == ("mine", shipped.claims[:1], shipped.analysis)


@pytest.mark.parametrize(
    "document",
    [name for name, path in DOCUMENTS.items() if blocks(path.read_text(), "python")],
)
def test_python_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a document run in order, beside a small panel and the study of the README."""
    monkeypatch.chdir(tmp_path)
    synthetic.synthesize(sites=24, days=45).to_parquet("panel.parquet", index=False)
    (block,) = blocks(README, "yaml")
    Path("quick.yaml").write_text(block)
    names: dict[str, Any] = {"__name__": document}
    for code in blocks(DOCUMENTS[document].read_text(), "python"):
        exec(compile(code, document, "exec"), names)


def test_documents_with_code() -> None:
    assert {name for name, path in DOCUMENTS.items() if blocks(path.read_text(), "python")} == {
        "README.md",
        "pm25/README.md",
        "pm25/encoders/README.md",
        "sweeps/README.md",
    }


def test_every_room_is_named_in_its_order() -> None:
    table = README.partition("## The rooms")[2].partition("\n## ")[0]
    named = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    rooms = [re.findall(r"`([\w/]+)/`", line) for line in named]
    floors = [{FLOORS[room.replace("/", ".")] for room in line} for line in rooms if line]
    assert {room.replace("/", ".") for line in rooms for room in line} == {
        room for room in FLOORS if (ROOT / room.replace(".", "/")).is_dir()
    }
    assert [*map(len, floors)] == [1] * len(floors)
    assert floors == sorted(floors, key=max, reverse=True)


def test_the_reference_is_up_to_date() -> None:
    """Fix: `make reference`."""
    text = study_reference.FILE.read_text()
    assert text == study_reference.written(text)


def test_every_key_and_option_has_its_meaning() -> None:
    """Texts come from the docstring below a setting, and from the help of an option."""
    rows = re.findall(r"^\| `(.*?)` \|.*\| *(.*?) \|$", study_reference.FILE.read_text(), re.MULTILINE)
    assert len(rows) > 150
    assert [name for name, meaning in rows if not meaning] == []


def test_figures_are_small() -> None:
    for path in (ROOT / "docs").glob("*"):
        assert path.stat().st_size < 100_000, path.name


def test_the_citation_is_valid() -> None:
    """The required keys of the Citation File Format 1.2.0, and the version of the package."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= {*cited}
    assert (cited["cff-version"], cited["title"]) == ("1.2.0", project["name"])
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert all("name" in author for author in cited["authors"])
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= {*paper}
    assert [author["family-names"] for author in paper["authors"]] == ["Karimzadeh", "Wang", "Crooks"]
    assert paper["doi"] in README


def test_the_changes_follow_their_format() -> None:
    heads = re.findall(r"^## (.*)$", DOCUMENTS["CHANGELOG.md"].read_text(), re.MULTILINE)
    assert heads[0] == "Unreleased"
    for head in heads[1:]:
        version, _, day = head.partition(" - ")
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        assert not day or date.fromisoformat(day)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert heads[1].split(" - ")[0] == version
