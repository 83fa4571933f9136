"""The command line. Heavy imports stand inside the commands that need them."""

import contextlib
import json
import random
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pm25.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from pm25.cell import Cell
    from pm25.panel import Panel
    from sweeps.state import State
    from sweeps.store import Record
    from sweeps.tracking import Writer


def main() -> None:
    """Run the command line: 0 done, 1 a cell failed, 2 bad input, 130 interrupted."""
    try:
        status = cli(standalone_mode=False)
    except InputError as error:
        click.echo(f"sweep: {' '.join(str(error).split())}", err=True)
        status = 2
    except click.ClickException as error:
        error.show()
        status = 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("sweep: interrupted; the same command goes on with what is missing", err=True)
        status = 130
    sys.exit(status)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pm25-sweeps")
def cli() -> None:
    """Does giving a PM2.5 model its location help, within region and out of region?

    STUDY is a study file, or the name of a shipped one: demo, quick.
    """


def study_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """STUDY and its overrides, which every command on a study takes."""
    override = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="A.B=VALUE",
        help="Override a key of the study (YAML value).",
    )
    return click.argument("study")(override(command))


def _state(study: str, overrides: tuple[str, ...]) -> "State":
    from sweeps.state import State

    return State(study, overrides)


@cli.command()
@study_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def plan(study: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Arms, cells, what is done, and the time and disk to expect."""
    state = _state(study, overrides)
    records = state.records()
    done = [key for key, record in records.items() if record["state"] == "done"]
    missing = [key for key in state.cells if key not in records]
    arms: dict[str, dict[str, int]] = {}
    for key, cell in state.cells.items():
        count = arms.setdefault(
            "-".join(filter(None, (cell.variant, cell.head, cell.fusion))), {"cells": 0, "done": 0}
        )
        count["cells"] += 1
        count["done"] += key in done
    seconds = sorted(records[key]["seconds"] for key in done)
    each = seconds[len(seconds) // 2] if seconds else 0.0
    content: dict[str, Any] = {
        "study": state.study.study,
        "arms": arms,
        "splits": [
            {
                "split": label,
                "fold": fold,
                **{name: len(part) for name, part in vars(parts).items() if part is not None},
            }
            for (label, fold), parts in state.parts().items()
        ],
        "seeds": list(state.study.design.seed),
        "cells": _count(state.cells, records),
        "cpu_hours_left": round(each * len(missing) * state.study.resources.cpu / 3600, 3) if done else None,
        "disk_mb_left": round(state.store.size(done) / len(done) * len(missing) / 1e6, 1) if done else None,
    }
    if as_json:
        click.echo(json.dumps(content))
        return
    click.echo(f"{content['study']}: {len(arms)} arms, {len(state.cells)} cells, {len(missing)} to run")
    click.echo(f"  data    {state.panel.name}: {_size(state.panel)}")
    for name, count in arms.items():
        click.echo(f"  arm     {name}: {count['cells']} cells, {count['done']} done")
    for line in content["splits"]:
        sizes = ", ".join(f"{name} {n:,}" for name, n in line.items() if name not in ("split", "fold"))
        click.echo(f"  split   {line['split']} fold {line['fold']}: {sizes} samples")
    click.echo(f"  seeds   {', '.join(map(str, content['seeds']))}")
    if missing and done:
        click.echo(
            f"  to come {content['cpu_hours_left']:.2f} CPU hours at {each:.0f} s a cell "
            f"(median of {len(done)} done), {content['disk_mb_left']:g} MB"
        )
    elif missing:
        first = _command("run", study, overrides)
        click.echo(f"  to come no cell is done yet to judge the time by: try `{first} --limit 1`")


@cli.command()
@study_argument
@click.option("--address", metavar="A", help="Join the Ray cluster at A ('auto', or host:port).")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Run at most N of the missing cells.")
def run(study: str, overrides: tuple[str, ...], address: str | None, limit: int | None) -> int:
    """Train and record every cell that is missing; the same command resumes."""
    state = _state(study, overrides)
    state.parts()
    state.store.prepare()
    records = state.records()
    missing = {key: cell for key, cell in state.cells.items() if key not in records}
    todo = dict(list(missing.items())[:limit])
    click.echo(
        f"{state.study.study}: {state.panel.name}, {_size(state.panel)}; {len(state.cells)} cells, "
        f"{len(records)} recorded, {len(todo)} to run",
        err=True,
    )

    from sweeps import report, results
    from sweeps.tracking import Writer

    view = Writer(state.store, state.study.tracking, records.values())
    try:
        if todo:
            _train(todo, state, view, address)
    finally:
        view.close()
    records = state.records()
    rows = results.rows(state.cells, records)
    view.describe(report.brief(rows, results.facts(state.study, state.panel, records)))
    if view.behind:
        click.echo(
            f"sweep: MLflow is behind the store ({view.behind}); `sweep sync` makes up for it", err=True
        )
    report.terminal(rows)
    count = _count(state.cells, records)
    click.echo(f"{_counted(count)}; `{_command('ui', study, overrides)}` shows MLflow")
    if count["failed"]:
        first = rows.loc[rows["state"] == "failed"].iloc[0]
        click.echo(f"sweep: {count['failed']} cells failed, the first with {first['error']}", err=True)
    return int(bool(count["failed"]))


def _train(todo: "dict[str, Cell]", state: "State", view: "Writer", address: str | None) -> None:
    from sweeps import runner
    from sweeps.progress import RunProgress

    class Observer(RunProgress):
        def ended(self, key: str, state: str) -> None:
            view.add(key)
            super().ended(key, state)

    with Observer(len(todo)) as observer:
        runner.run(todo, state.panel, state.store, state.study, observer, address=address)


@cli.command()
@study_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def status(study: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """How many cells are done, failed and missing."""
    state = _state(study, overrides)
    records = state.records()
    count = _count(state.cells, records)
    if as_json:
        search = {"total": 0, "done": 0, "failed": 0}
        click.echo(json.dumps({"study": state.study.study, "cells": count, "search": search}))
        return
    click.echo(f"{state.study.study}: {_counted(count)}")
    for key, record in records.items():
        if record["state"] == "failed":
            error = record["error"]
            click.echo(f"  failed  {state.cells[key].label} ({key}): {error['type']}: {error['message']}")


@cli.command()
@study_argument
def retry(study: str, overrides: tuple[str, ...]) -> None:
    """Forget failed cells, so that the next run tries them again."""
    state = _state(study, overrides)
    failed = [key for key, record in state.records().items() if record["state"] == "failed"]
    for key in failed:
        state.store.forget(key)
    click.echo(f"{len(failed)} failed cells will run again with `{_command('run', study, overrides)}`")


@cli.command()
@study_argument
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def export(study: str, overrides: tuple[str, ...], out: Path) -> None:
    """Write one row per grid cell to OUT (.parquet or .csv)."""
    writers = {".parquet": "to_parquet", ".csv": "to_csv"}
    if out.suffix not in writers:
        raise InputError(f"{out}: no format has suffix {out.suffix!r}; name it .parquet or .csv")
    frame = _state(study, overrides).rows()
    write_file(out, lambda part: getattr(frame, writers[out.suffix])(part, index=False))
    click.echo(f"{out}: {len(frame)} cells, {int((frame['state'] == 'done').sum())} done")


@cli.command()
@study_argument
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="A folder."
)
def report(study: str, overrides: tuple[str, ...], out: Path) -> None:
    """Write the report: tables (Markdown, CSV) and one self-contained HTML page."""
    from sweeps import report as writer
    from sweeps import results

    state = _state(study, overrides)
    records = state.records()
    frame = results.rows(state.cells, records)
    maps = results.maps(state.store, frame)
    try:
        files = writer.write(frame, results.facts(state.study, state.panel, records), out, maps)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); give another folder with -o"
        ) from None
    for file in files:
        click.echo(str(file))


@cli.command()
@study_argument
def sync(study: str, overrides: tuple[str, ...]) -> None:
    """Rebuild the MLflow view from the store."""
    from sweeps import report, results
    from sweeps.tracking import Tracker

    state = _state(study, overrides)
    state.store.prepare()
    tracker = Tracker(state.store, state.study.tracking)
    records = state.records()
    written = tracker.sync(records.values())
    rows = results.rows(state.cells, records)
    tracker.describe(report.brief(rows, results.facts(state.study, state.panel, records)))
    click.echo(f"{written} runs written to {tracker.uri}")


@cli.command()
@study_argument
@click.argument("key")
@click.option("--repeats", type=click.IntRange(min=2), default=5, show_default=True)
def importance(study: str, overrides: tuple[str, ...], key: str, repeats: int) -> None:
    """Permutation importance of each channel, and of the embedding, for the cell KEY.

    KEY may be its first digits.
    """
    import io

    state = _state(study, overrides)
    found = [known for known in state.cells if known.startswith(key)]
    if len(found) != 1:
        raise InputError(f"{key}: names {len(found)} cells of {study}; `sweep export` lists the keys")
    weights = state.store.read_file(found[0], "weights.pt")
    if weights is None:
        raise InputError(f"{found[0]}: no weights are stored; set keep_weights: true before the cell is run")
    import torch

    from pm25.importance import importance as permute

    cell = state.cells[found[0]]
    embedded = state.embedded(cell)
    table = permute(
        cell,
        state.panel,
        torch.load(io.BytesIO(weights), weights_only=True),
        embedding=embedded.vectors if embedded else None,
        repeats=repeats,
    )
    click.echo(f"{cell.label}: RMSE without it, minus RMSE (ug/m3, mean and sd of {repeats} permutations)")
    for row in table:
        click.echo(f"  {row.what:24} {row.rmse_increase:+8.3f} ± {row.sd:.3f}")


@cli.command()
@study_argument
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Only N of them.")
def verify(study: str, overrides: tuple[str, ...], sample: int | None) -> int:
    """Run stored cells again, here, and compare every number and prediction; exit 1 if one differs."""
    state = _state(study, overrides)
    done = [key for key, record in state.records().items() if record["state"] == "done"]
    if not done:
        raise InputError(f"{study}: no cell is done, so there is nothing to verify; `sweep run` first")
    # Drawn, not every n-th: arms follow each other in the grid, and a step would meet one of them only.
    chosen = sorted(random.Random(0).sample(range(len(done)), min(sample or len(done), len(done))))
    from sweeps import work

    differing = 0
    for key in (done[i] for i in chosen):
        cell = state.cells[key]
        found = work.differences(cell, key, state.panel, state.store, embedded=state.embedded(cell))
        differing += bool(found)
        click.echo(f"  {key} {cell.label}: {'differs in ' + ', '.join(found) if found else 'bitwise equal'}")
    return int(bool(differing))


@cli.command()
@study_argument
@click.option("--port", type=int, default=5000, show_default=True)
def ui(study: str, overrides: tuple[str, ...], port: int) -> None:
    """Open the MLflow UI on the study's runs."""
    import os

    from sweeps import study as studies
    from sweeps.store import Store
    from sweeps.tracking import Tracker

    declared = studies.load(study, overrides)
    tracker = Tracker(Store(declared.storage, declared.study), declared.tracking)
    served = tracker.uri.startswith("http")
    # The parameter chooses the UI's face for model training; it opens the one for GenAI otherwise.
    page = f"/#/experiments/{tracker.experiment_id}/runs?workflowType=machine_learning"
    click.echo((tracker.uri if served else f"http://127.0.0.1:{port}") + page)
    if not served:
        server = ["-m", "mlflow", "ui", "--backend-store-uri", tracker.uri, "--port", str(port)]
        os.execv(sys.executable, [sys.executable, *server])


@cli.command()
@click.option(
    "--table", type=click.Path(path_type=Path, exists=True), help="A panel to measure on; synthetic without."
)
def bench(table: Path | None) -> int:
    """Measure this machine: our costs as ratios, beside the limits the project keeps."""
    import tempfile

    from rich.console import Console
    from rich.table import Table

    from sweeps import bench as measurements

    with tempfile.TemporaryDirectory() as folder:
        if table is None:
            from pm25 import synth

            table = Path(folder) / "synthetic.parquet"  # of the real 2021 table's size
            _write_panel(synth.synthesize(sites=1414, days=365), table)
        found = measurements.run(table, Path(folder) / "results")
    grid = Table(title=measurements.machine(), title_justify="left")
    for head in ("what", "measured", "limit", "how"):
        grid.add_column(head)
    for row in found:
        grid.add_row(row.what, f"{row.value:.2f} {row.unit}", f"{row.limit:g} {row.unit}", row.detail)
    Console(width=None if sys.stdout.isatty() else 140).print(grid)
    return 0


@cli.group()
def data() -> None:
    """Make and check tables of daily PM2.5."""


@data.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object, every row named.")
def check(table: Path, as_json: bool) -> int:
    """Name every problem of TABLE with its rows and column; exit 2 if there is one."""
    from pm25 import panel

    found = panel.check(panel.read_table(table), table.name)
    if as_json:
        faults = {
            kind: [
                {"column": p.column, "what": p.what, "mend": p.mend, "rows": p.rows.tolist()} for p in listed
            ]
            for kind, listed in (("problems", found.problems), ("notices", found.notices))
        }
        click.echo(json.dumps({"counts": found.counts, **faults}))
    else:
        for name, value in found.counts.items():
            click.echo(f"{name:12} {value:,}" if isinstance(value, int) else f"{name:12} {value}")
        for notice in found.notices:
            click.echo(f"notice: {notice}")
        for problem in found.problems:
            click.echo(f"problem: {problem}", err=True)
        if not found.problems:
            click.echo("no problem found")
    return 2 if found.problems else 0


@data.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--sites", type=int, default=300, show_default=True)
@click.option("--days", type=int, default=365, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def synth(out: Path, sites: int, days: int, seed: int) -> None:
    """Write a synthetic CONUS panel, whose truth is known, to OUT.parquet."""
    from pm25 import synth as maker

    _write_panel(maker.synthesize(sites=sites, days=days, seed=seed), out)


@data.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--weather", multiple=True, type=click.Path(path_type=Path), help="NOAA USCRN daily01 files.")
@click.option(
    "--max-station-km", type=click.FloatRange(min=0, min_open=True), default=300.0, show_default=True
)
@click.option("--year", type=int, help="With --fetch: the year to download.")
@click.option(
    "--fetch",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Download into this folder first.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def aqs(
    files: tuple[Path, ...],
    weather: tuple[Path, ...],
    max_station_km: float,
    year: int | None,
    folder: Path | None,
    out: Path,
) -> None:
    """Build a panel from EPA AirData daily FILES (88101, 88502, TEMP, WIND, RH_DP, PRESS)."""
    from pm25 import aqs as builder

    if (year is None) != (folder is None):
        raise InputError("data aqs: --year and --fetch go together; give both, or name the files")
    if year is not None and folder is not None:
        from pm25 import fetch

        with fetch.live() as progress:
            fetched = fetch.fetch(year, folder, progress=progress)
        files, weather = (*files, *fetched.files), (*weather, *fetched.weather)
    if not files:
        raise InputError("data aqs: no files; name EPA AirData daily files, or give --year and --fetch")
    _write_panel(builder.build(files, weather, max_station_km=max_station_km), out)


@data.command()
@click.argument("x", type=click.Path(path_type=Path))
@click.argument("y", type=click.Path(path_type=Path))
@click.option("--channels", help="Names of X's channels, comma-separated; the published 23 without.")
@click.option("--dates", type=click.Path(path_type=Path), help="Last day of every sample, datetime64 (.npy).")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def npy(x: Path, y: Path, channels: str | None, dates: Path | None, out: Path) -> None:
    """Rebuild the panel from the published arrays X (N, 21, C) and Y (N,)."""
    from pm25 import published

    named = channels.split(",") if channels else None
    _write_panel(published.to_table(x, y, named, dates=dates), out)


@data.command()
@click.argument("vectors", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def embeddings(vectors: Path, out: Path) -> None:
    """Make a table encoder's Parquet of a published embeddings file (N, 2 + d): lat, lon, vector."""
    from pm25 import published

    frame = published.embeddings(vectors)
    _write_parquet(frame, out)
    click.echo(
        f"{out}: {len(frame):,} places, {frame.shape[1] - 2} dimensions; --set encoders.table.path={out}"
    )


def _write_panel(frame: "pd.DataFrame", out: Path) -> None:
    _write_parquet(frame, out)
    observed, sites = int(frame["pm25"].notna().sum()), frame["site_id"].nunique()
    click.echo(f"{out}: {sites:,} sites, {frame['date'].nunique():,} days, {observed:,} observed")


def _write_parquet(frame: "pd.DataFrame", out: Path) -> None:
    if out.suffix != ".parquet":
        raise InputError(f"{out}: it is written as Parquet; name it {out.with_suffix('.parquet').name}")
    write_file(out, lambda part: frame.to_parquet(part, index=False))


def write_file(out: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all."""
    part = out.with_name(f".{out.name}.part")
    try:
        write(part)
        part.replace(out)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); give another place"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _command(name: str, study: str, overrides: tuple[str, ...]) -> str:
    """What to type for another command on the same study."""
    return shlex.join(["sweep", name, study, *(part for value in overrides for part in ("--set", value))])


def _count(cells: "dict[str, Cell]", records: "dict[str, Record]") -> dict[str, int]:
    states = [records[key]["state"] if key in records else "missing" for key in cells]
    return {"total": len(states), **{state: states.count(state) for state in ("done", "failed", "missing")}}


def _counted(count: dict[str, int]) -> str:
    return "{done} of {total} cells done, {failed} failed, {missing} missing".format(**count)


def _size(panel: "Panel") -> str:
    sites, days = panel.target.shape
    return f"{sites:,} sites x {days:,} days, {panel.observed:,} observed, {len(panel.channels)} channels"
