"""The commands that check and seal a storage: `fsck` and `seal`."""

import json
import os
from typing import TYPE_CHECKING

import click

from pm25.errors import InputError
from pm25.text import counted
from sweeps.cli.shared import examples, json_option

if TYPE_CHECKING:
    from sweeps.store.records import Store


@click.command(epilog=examples("fsck results", "fsck s3://bucket/results --json"))
@click.argument("storage", default="results")
@json_option
def fsck(storage: str, as_json: bool) -> int:
    """Check every file of every study of STORAGE, a folder or an address such as s3://bucket/results.

    Each finding has one line with its path, what is wrong, and the fix. The exit status is 1 if something is
    damaged. Incomplete files of killed processes and records without a digest are listed, but are no damage.

    Nothing is changed. A run may go on meanwhile.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from sweeps.store import fsck as check
    from sweeps.store.records import Store, studies

    stores = [Store(storage, name) for name in studies(storage)]
    listings = [check.listing(store) for store in stores]
    found = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("checked", total=sum(files.folders for files in listings))
        for store, files in zip(stores, listings, strict=True):
            bar.update(task, description=store.study)
            found.append(check.check(store, files, lambda: bar.advance(task)))
    counts = {name: sum(getattr(one, name) for one in found) for name in ("sealed", "unsealed", "damaged")}
    intact = all(one.intact for one in found)
    if as_json:
        content = {"storage": storage, "intact": intact, **counts}
        click.echo(json.dumps(content | {"studies": [one.content for one in found]}))
        return int(not intact)
    for one in found:
        for finding in one.findings:
            click.echo(finding.line)
    problems = len({finding.path for one in found for finding in one.findings if finding.damage})
    verdict = "nothing is damaged" if intact else f"{counted(problems, 'file')} damaged or missing"
    checked = "1 study" if len(found) == 1 else f"{len(found):,} studies"
    listed = f"{counted(sum(counts.values()), 'record')} ({counts['sealed']:,} sealed"
    listed += f", {counts['unsealed']:,} unsealed"
    listed += f", {counts['damaged']:,} damaged)" if counts["damaged"] else ")"
    click.echo(f"{storage}: {checked}, {listed}: {verdict}")
    return int(not intact)


@click.command(
    epilog=examples("seal results", "seal quick --set data.table=panel.parquet", "seal s3://bucket/results")
)
@click.argument("target", metavar="STUDY|STORAGE")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=VALUE",
    help="Override a key of the study with a YAML value (repeatable).",
)
def seal(target: str, overrides: tuple[str, ...]) -> None:
    """Add digests to the records that an earlier version wrote without them.

    The argument is a study, or a storage, all of whose studies are then sealed. Records are checked as far as
    possible, and damaged ones are left as they are.

    For a study, the order of the channels is stored too, if the records were trained on the table as it is
    now. Its columns may then be reordered, and no cell becomes stale.
    """
    from sweeps.store.lock import StudyLock
    from sweeps.store.records import StorageError

    named = "://" not in target and not os.path.isdir(target)
    for store in _stores(target, overrides, named):
        with StudyLock(store) as lock:
            try:
                parts = [(one, sorted(one.keys())) for one in (lock.store, lock.store.search)]
                sealed = sum(one.seal(key) for one, keys in parts for key in keys)
                stored = [record for one, keys in parts for record in one.records(keys).values()]
                ordered = _record_order(lock.store, target, overrides) if named else ""
            except StorageError as error:
                raise store.refusal("written", error) from None
        bad = sum(record["state"] == "damaged" for record in stored)
        damaged = f"; {bad} damaged, which `sweep fsck` lists" if bad else ""
        click.echo(f"{store.study}: {counted(sealed, 'record')} sealed, of {len(stored)}{damaged}{ordered}")


def _record_order(store: "Store", study: str, overrides: tuple[str, ...]) -> str:
    """Store the order of the channels with which a study's records were trained; returns what to print."""
    from sweeps.state import StudyState
    from sweeps.store import channel_orders

    try:
        state = StudyState(study, overrides)
    except InputError as error:  # the table may be on another machine, and the records are sealed
        return f"; the order of the channels is not stored ({error.where}: {error.problem})"
    done = [record for record in state.records().values() if record["state"] == "done"]
    if state.study.data.channels is not None or not done:
        return ""
    channel_orders.record_order(state.panel, store)
    return "; the order of the channels is stored"


def _stores(target: str, overrides: tuple[str, ...], named: bool) -> list["Store"]:
    """Return the store of one study if it is `named`, or those of all studies of a storage.

    Raises InputError.
    """
    from sweeps.spec import study_file
    from sweeps.store.records import Store, studies

    if not named:
        if overrides:
            fix = "leave it out, or give a study instead of a storage"
            raise InputError("seal", "--set", "a storage has no settings", fix)
        return [Store(target, name) for name in studies(target)]
    try:
        declared = study_file.load(target, overrides)
    except study_file.NoStudy:
        problem = "no such storage and no such study, so nothing is stored there"
        raise InputError(target, "", problem, "give the folder of a storage, or a study file") from None
    return [Store(declared.storage, declared.study)]
