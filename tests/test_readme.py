"""The README is true: its commands parse, its study loads, its tree is the tree."""

import re
import shlex
from pathlib import Path

import click
import pytest

from sweeps.cli import cli
from sweeps.spec import study_file as study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split(" # ")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("sweep ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line: str) -> None:
    command: click.Command = cli
    words = shlex.split(line)[1:]
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(line, words)  # a wrong option or a missing argument raises


def test_there_are_commands_to_parse() -> None:
    assert len(commands()) >= 8


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE))
    assert {"demo", "test", "bench"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_study_loads(tmp_path: Path) -> None:
    text, search = blocks("yaml")
    (tmp_path / "quick.yaml").write_text(text + search)
    shown = study.load(str(tmp_path / "quick.yaml"))
    assert shown.search is not None
    shipped = study.load("quick", ["data.table=panel.parquet"])
    assert shown.design == shipped.design
    assert (shown.model, shown.train) == (shipped.model, shipped.train)
    assert (shown.claims, shown.analysis) == (shipped.claims[:1], shipped.analysis)
    (seeds,) = re.findall(r"`seed: ({start: .*?})`", README)
    assert study.load("quick", ["data.table=panel.parquet", f"design.seed={seeds}"]).design.first_seeds


def test_every_room_is_named() -> None:
    rooms = {path.parent.name for path in (ROOT / "sweeps").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"`sweeps/(\w+)/`", README)) - {"studies"}
