"""The commands that show how far studies are: `status` of one study, `list` of all studies of a storage."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from pm25.text import counted
from sweeps.cli.shared import (
    cell_counts,
    command_line,
    complete_commands,
    examples,
    json_option,
    open_state,
    print_storage,
    print_table,
    study_argument,
)

if TYPE_CHECKING:
    from sweeps.state import StudyState
    from sweeps.store.driver_process import Driver
    from sweeps.store.failures import FailureGroup
    from sweeps.store.records import Record

FAILURES_SHOWN = 8
"""Largest number of groups of failures that `sweep status` prints."""

STALE_SHOWN = 3
"""Largest number of keys of stale cells that `sweep status` prints."""


@click.command(
    epilog=examples(
        "status quick --set data.table=panel.parquet", "status quick --set data.table=panel.parquet --cells"
    )
)
@study_argument
@click.option("--cells", "each", is_flag=True, help="List every cell with its state and its test RMSE.")
@json_option
def status(study: str, overrides: tuple[str, ...], each: bool, as_json: bool) -> None:
    """Show what is done, what runs, and what failed.

    While a run is on, the output names its process and its trainings, each with its epoch and its validation
    RMSE (ug/m3).

    Equal failures are grouped. Each group has one line: the number of cells, the factor levels that only
    these cells share, the error, one key, and the hosts. `sweep retry --where` accepts the levels in the
    same form.

    A stale cell is stored, but the study no longer contains it. The record of a damaged cell is not what was
    written, and its numbers are not shown.
    """
    from sweeps.store import failures, integrity, lock, running

    state = open_state(study, overrides)
    records = state.records()
    count = state.cell_counts(records)
    failed = failures.groups(state.cells, records, state.waiting)
    driver = lock.driver(state.store)
    training = running.running(state.store) if driver is not None and driver.lives() is not False else []
    stale, unfinished = _stale(state)
    running_keys = {one.key for one in training}
    unfinished = [key for key in unfinished if key not in running_keys]
    cells = list(_cells(state, records, {one.key: one for one in training})) if each else []
    if as_json:
        content: dict[str, Any] = {"study": state.study.study, "storage": state.shown_storage}
        content["cells"] = count
        if state.looks is not None:
            content["further"] = state.further
        content["search"] = state.trial_counts()
        if state.unsealed:
            content["unsealed"] = state.unsealed
        if state.damaged:
            content["damaged"] = [{"key": one["key"], **one["damage"]} for one in state.damaged]
        if driver is not None:
            content["run"] = {**driver.model_dump(mode="json"), "alive": driver.lives()}
        if training:
            content["training"] = [one.model_dump(mode="json") for one in training]
        if failed:
            content["failures"] = [group.content for group in failed]
        if stale:
            content["stale"] = stale
        if unfinished:
            content["stale_unfinished"] = unfinished
        if each:
            content["each"] = cells
        click.echo(json.dumps(content))
        return
    print_storage(state)
    further = f"; up to {state.further} more if undecided" if state.further else ""
    click.echo(f"{state.study.study}: {cell_counts(count)}{further}")
    if driver is not None:
        click.echo(f"  {_driver_line(driver)}")
    for one in training:
        click.echo(f"  training {one.line}, on host {one.host} since {lock.utc(one.started)}")
    for trials in state.searches.values():
        click.echo(f"  search {trials.outline}")
    if not (records or state.trials() or state.damaged or stale or unfinished):
        click.echo("  nothing is stored there; if the study ran elsewhere, add --set storage=FOLDER")
    if state.unsealed:
        seal = f"`{command_line('seal', study, overrides)}` adds them"
        click.echo(f"  {counted(state.unsealed, 'cell')} unsealed, without digests; {seal}")
    for line in integrity.notices(state.damaged):
        click.echo(f"  {complete_commands(line, study, overrides)}")
    for line in _failure_lines(failed, study, overrides):
        click.echo(f"  {line}")
    if stale:
        explain = f"`{command_line('why', study, overrides)} {stale[0][:8]}`"
        click.echo(f"  {len(stale)} stored cells are stale: {_some(stale)}; {explain} explains the first")
    if unfinished:
        _, folder = state.store.location(state.store.folder)
        cells_of = f"{counted(len(unfinished), 'unfinished training')} of stale cells: {_some(unfinished)}"
        click.echo(f"  {cells_of}; delete their folders in {folder} to free the space of the checkpoints")
    if each:
        print_table(f"Cells of {state.study.study}", cells)


@click.command("list", epilog=examples("list", "list s3://bucket/results --json"))
@click.argument("storage", default="results")
@json_option
def list_(storage: str, as_json: bool) -> None:
    """List the studies of STORAGE, a folder or an address such as s3://bucket/results.

    Default: the folder `results`. Each line has the numbers of stored cells and search trials, the time of
    the newest result, and the process that runs the study.
    """
    from sweeps.store import lock
    from sweeps.store.records import Store, studies

    found = []
    for name in studies(storage):
        store = Store(storage, name)
        cells, trials = (list(one.records(one.keys()).values()) for one in (store, store.search))
        driver = lock.driver(store)
        ended = [time for record in (*cells, *trials) if (time := _ended(record)) is not None]
        found.append(
            {
                "study": name,
                "done": sum(record["state"] == "done" for record in cells),
                "failed": sum(record["state"] == "failed" for record in cells),
                "damaged": sum(record["state"] == "damaged" for record in (*cells, *trials)),
                "search trials": len(trials),
                "newest result": lock.utc(max(ended)) if ended else None,
                "run": None if driver is None else _driver_line(driver),
            }
        )
    if as_json:
        click.echo(json.dumps({"storage": storage, "studies": found}))
    elif found:
        print_table(f"Studies of {storage}", found)
    else:
        click.echo(f"{storage} has no study")


def _ended(record: Mapping[str, Any]) -> datetime | None:
    """Time at which a cell or a trial ended; None if the record has none that can be read."""
    try:
        return datetime.fromisoformat(record["ended"]).astimezone()
    except (KeyError, TypeError, ValueError):
        return None


def _driver_line(driver: "Driver") -> str:
    """Describe the process that runs a study, or that ran it until it was killed."""
    from sweeps.store.lock import utc

    alive = driver.lives()
    if alive is False:
        return f"stopped: {driver.name} was killed; the next `sweep run` resumes"
    heartbeat = "" if alive else f", last heartbeat at {utc(driver.beat)}"
    return f"running since {utc(driver.since)}: {driver.name}{heartbeat}"


def _stale(state: "StudyState") -> tuple[list[str], list[str]]:
    """Keys of the stored cells that the study does not contain: ended ones, and those without a record."""
    others = sorted(state.store.keys() - state.cells.keys())
    ended = [*state.store.records(others)] if others else []
    found = {*ended}
    return ended, [key for key in others if key not in found]


def _some(keys: Sequence[str]) -> str:
    """List the first digits of the first keys."""
    return ", ".join(key[:8] for key in keys[:STALE_SHOWN]) + (", ..." if keys[STALE_SHOWN:] else "")


def _failure_lines(groups: Sequence["FailureGroup"], study: str, overrides: tuple[str, ...]) -> Iterator[str]:
    for group in groups[:FAILURES_SHOWN]:
        yield group.line
    if more := groups[FAILURES_SHOWN:]:
        yield f"and {sum(len(group.keys) for group in more)} more, with {len(more)} other errors"
    if groups:
        explain = f"`{command_line('why', study, overrides)} {groups[0].keys[0][:8]}` explains the first"
        yield f"{explain}; `{command_line('retry', study, overrides)}` allows them to run again"


def _cells(
    state: "StudyState", records: Mapping[str, "Record"], training: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Describe each cell in the order of the grid: its factors, state, test RMSE in ug/m3 and seconds."""
    from sweeps.spec.design import Arm

    for cell in state.grid:
        key = None if cell in state.waiting else state.key(cell)
        record = records.get(key, {}) if key is not None else {}
        stands = record.get("state") or ("waits for its search" if key is None else "missing")
        if key is not None and key in training and not record:
            stands = f"epoch {training[key].epoch} of {training[key].max_epochs}"
        yield {
            "key": key,
            "arm": Arm.of(cell).label,
            "split": cell.split.label,
            "fold": cell.fold,
            "seed": cell.seed,
            "state": stands,
            "test_rmse": record.get("metrics", {}).get("test_rmse"),
            "seconds": record.get("seconds"),
        }
