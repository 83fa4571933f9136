"""The command line itself: what it imports, its exit status, and interrupts."""

import errno
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from sweeps.cli import cli
from sweeps.exit_status import OUTPUT_CLOSED
from sweeps.store import lock
from sweeps.store.records import StorageFault, Store
from tests.sweeps.cli.commands import Ended, Sweep, check_refused, toy_keys, tree
from tests.sweeps.store.test_lock import take_over


def loaded_by(*commands: list[str]) -> set[str]:
    code = f"""
import sys
from sweeps.cli import main
for command in {list(commands)!r}:
    sys.argv = ["sweep", *command]
    try:
        main()
    except SystemExit as left:
        assert not left.code, left.code
print("LOADED", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.rsplit("LOADED", 1)[1].split()}


def test_help_loads_nothing_that_takes_time() -> None:
    loaded = loaded_by(["--help"], ["--version"], ["run", "--help"], ["data", "--help"], ["map", "--help"])
    assert "click" in loaded
    assert not loaded & {"numpy", "pandas", "pyarrow", "pydantic", "yaml", "torch", "ray", "mlflow", "rich"}


def test_plan_and_status_load_no_trainer_no_cluster_and_no_tracker(toy: Path) -> None:
    # With an encoder variant, whose weights are part of the keys.
    more = ["--set", "design.variant=[none, geoclip]"]
    key = toy_keys(toy)[0]
    commands = (["plan"], ["status"], ["retry", "--where", "error=RuntimeError"], ["why", key])
    loaded = loaded_by(*([command, str(toy), *more, *rest] for command, *rest in commands))
    assert "pyarrow" in loaded
    assert not loaded & {"torch", "ray", "mlflow", "matplotlib", "sklearn", "rasterio", "h5netcdf"}


def test_an_interrupt_is_130_and_loses_nothing(
    sweep: Sweep, toy: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(toy.parent)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["sweeps.engine.ray_tune"], "run", interrupt)
    ended = sweep("run", toy)
    assert ended.status == 130
    assert ended.err.splitlines()[-1].startswith("sweep: ")
    assert "Traceback" not in ended.err
    after = tree(toy.parent)
    for file in ("channels.json", "declarations.json"):  # what is declared before any training
        after.pop(f"results/toy/{file}")
    assert after == before


def test_a_study_that_is_taken_over_is_exit_4_and_is_left_alone(
    sweep: Sweep, toy: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: dict[str, str] = {}

    def stored() -> dict[str, str]:
        found = tree(toy.parent / "results" / "toy")
        # A heartbeat may be writing its file of another name, .driver.json.*, at this moment.
        return {name: digest for name, digest in found.items() if "driver.json" not in name}

    def train(*_: Any, **__: Any) -> None:
        left.update(stored())
        take_over(toy.parent / "results" / "toy" / "driver.json")
        time.sleep(60)

    monkeypatch.setattr(sys.modules["sweeps.engine.ray_tune"], "run", train)
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    ended = sweep("run", toy)
    assert ended.status == 4
    line = ended.err.splitlines()[-1]
    assert re.fullmatch(
        r"sweep: .*driver\.json: process 1 on host node7 has taken over study toy\. Fix.*", line
    )
    assert "Traceback" not in ended.err
    assert left
    assert stored() == left


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Let `sweep status` raise an error."""
    monkeypatch.setenv("SWEEP_DEBUG", "")  # so that its value is restored
    monkeypatch.delenv("SWEEP_DEBUG")

    def fail(error: Exception) -> None:
        def raise_it(*_: Any) -> None:
            raise error

        monkeypatch.setattr(sys.modules["sweeps.cli.status"], "open_state", raise_it)

    return fail


def test_a_bug_is_one_line_with_the_command_that_shows_its_traceback(
    sweep: Sweep, toy: Path, failing: Callable[[Exception], None]
) -> None:
    failing(KeyError("fold"))
    ended = sweep("status", toy)
    assert ended.status == 70
    (line,) = ended.err.splitlines()
    assert line.startswith("sweep: this is a bug: KeyError: 'fold' [test_main.py:")
    assert f"`sweep --debug status {toy}`" in line
    ended = sweep("--debug", "status", toy)
    assert ended.status == 70
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1] == line


def test_output_that_nobody_reads_is_no_failed_cell(toy: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps", "run", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/mnt/disk/file"),
        PermissionError(errno.EACCES, "Permission denied", "/mnt/disk/file"),
        MemoryError(),
        StorageFault("/mnt/disk/file", "storage", "cannot be read (Input/output error)", "check the disk"),
    ],
    ids=repr,
)
def test_a_fault_of_the_world_is_not_a_bug(
    sweep: Sweep, toy: Path, failing: Callable[[Exception], None], error: Exception
) -> None:
    failing(error)
    check_refused(sweep("status", toy), "" if isinstance(error, MemoryError) else "/mnt/disk/file", "Fix: ")
    assert "Traceback" in sweep("--debug", "status", toy).err


@pytest.mark.parametrize(
    ("words", "option", "group"),
    [
        (["--only", "chaos", "--studies", "50"], "--studies", "calibration"),
        (["--minutes", "3"], "--minutes", "chaos"),
        (["--only", "engine", "--seed", "3"], "--seed", "chaos"),
        (["--only", "trial", "--keras", sys.executable], "--keras", "training"),
    ],
)
def test_an_option_of_another_group_starts_no_bench(
    sweep: Sweep, words: list[str], option: str, group: str
) -> None:
    check_refused(sweep("bench", *words), option, f"add --only {group}")


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "demo", "--bogus"],
        ["bogus"],
        ["run", "demo", "--limit", "0"],
        ["export", "demo"],
        ["data", "synth", "x.parquet", "--seed", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_2(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = sweep(*words)
    assert (ended.status, ended.out) == (2, "")
    assert re.fullmatch(r"sweep: .+: .+ Fix: see `sweep.* --help`\.\n", ended.err)
    assert tree(tmp_path) == {}


def test_the_installed_command_ends_with_the_same_status(toy: Path) -> None:
    command = Path(sys.executable).with_name("sweep")
    if not command.is_file():
        pytest.skip("the project is not installed in this environment")
    ended = subprocess.run(
        [str(command), "status", str(toy), "--set", "modle=1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    check_refused(Ended(ended.returncode, ended.stdout, ended.stderr), "modle", "model")


def commands(group: click.Group = cli, *before: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its words."""
    for name, command in group.commands.items():
        words = (*before, name)
        if isinstance(command, click.Group):
            yield from commands(command, *words)
        else:
            yield words, command


@pytest.mark.parametrize(
    ("words", "command"), [pytest.param(words, command, id=" ".join(words)) for words, command in commands()]
)
def test_the_help_of_every_command_ends_with_examples_that_it_accepts(
    words: tuple[str, ...], command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    help_ = command.get_help(click.Context(command, info_name=f"sweep {' '.join(words)}"))
    assert "\n\n\n" not in help_
    _, examples = help_.split("Examples:\n")
    lines = [shlex.split(line) for line in examples.splitlines()]
    assert lines
    for _, *line in lines:
        assert tuple(line[: len(words)]) == words
        command.make_context(" ".join(words), line[len(words) :])


def in_shell(folder: Path, line: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of bash in which SWEEP is the command line."""
    line = line.replace("SWEEP", shlex.join([sys.executable, "-m", "sweeps"]))
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_the_null_device(tmp_path: Path, closed: str) -> None:
    """A file that is opened later does not get the stream's number, and so no output."""
    found = in_shell(tmp_path, f"SWEEP data synth panel.parquet --sites 8 --days 25 {closed}")
    assert (found.returncode, found.stderr) == (0, "")
    assert (tmp_path / "panel.parquet").read_bytes()[:4] == b"PAR1"
    assert bool(found.stdout) == (closed in ("2>&-", "<&-"))


def test_a_table_whose_reader_has_left_ends_like_other_output(tmp_path: Path) -> None:
    """The library that prints tables ends with status 1, which means that a result has changed."""
    Store(str(tmp_path), "toy").write_record({"key": "a", "state": "failed"})
    found = in_shell(tmp_path, "SWEEP list . | true; exit ${PIPESTATUS[0]}")
    assert (found.returncode, found.stderr) == (OUTPUT_CLOSED, "")
