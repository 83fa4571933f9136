"""The commands that show, check and publish results."""

import json
import os
import random
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pm25.errors import InputError
from pm25.limits import MOST_COUNTED
from sweeps.cli.files import check_cells, write_cells
from sweeps.cli.shared import (
    FiniteRange,
    command_line,
    examples,
    fix_names_study,
    json_option,
    open_state,
    print_damaged,
    print_storage,
    refuse_without_records,
    study_argument,
)

if TYPE_CHECKING:
    from sweeps.analysis.compare import StudyResults
    from sweeps.state import StudyState


@click.command(epilog=examples("export quick cells.csv --set data.table=panel.parquet"))
@study_argument
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def export(study: str, overrides: tuple[str, ...], out: Path) -> None:
    """Write one row per cell to OUT (.parquet or .csv)."""
    check_cells(out)
    state = open_state(study, overrides)
    frame = state.rows()
    print_storage(state)
    print_damaged(state, study, overrides)
    write_cells(frame, out)
    click.echo(f"{out}: {len(frame)} cells, {int((frame['state'] == 'done').sum())} done")


@click.command(
    epilog=examples(
        "compare demo demo --set-b storage=other-results",
        "compare quick quick --set data.table=panel.parquet --set-b train.loss=huber",
    )
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--set",
    "both",
    multiple=True,
    metavar="A.B=VALUE",
    help="Override a key of both studies with a YAML value (repeatable).",
)
@click.option(
    "--set-a", "only_a", multiple=True, metavar="A.B=VALUE", help="Override a key of A only (repeatable)."
)
@click.option(
    "--set-b", "only_b", multiple=True, metavar="A.B=VALUE", help="Override a key of B only (repeatable)."
)
@click.option(
    "--tolerance",
    type=FiniteRange(min=0),
    default=0.0,
    metavar="RMSE",
    help="Accept differences of test and WR RMSE up to this value (ug/m3); default: every metric must be "
    "exactly equal.",
)
@json_option
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write one row per cell to this file (.parquet or .csv).",
)
def compare(
    a: str,
    b: str,
    both: tuple[str, ...],
    only_a: tuple[str, ...],
    only_b: tuple[str, ...],
    tolerance: float,
    as_json: bool,
    out: Path | None,
) -> int:
    """Compare studies A and B cell by cell.

    The exit status is 1 if a result or a conclusion changed.

    Cells are matched by arm, split, fold and seed, not by key. A and B may be one study with another storage
    or table. For cells that differ, the output names the differences between their records: settings, data,
    encoder, numerics, device, threads, versions, commit.

    A cell that failed in only one study has changed. A cell that only one study contains is listed, but does
    not count as a change. The conclusions are each study's own verdicts on its claims, and on its arms
    compared with 'none'.
    """
    from sweeps.analysis import compare as comparison

    if out is not None:
        check_cells(out)
    sides = (a, (*both, *only_a)), (b, (*both, *only_b))
    states = [open_state(*side) for side in sides]
    for state, side in zip(states, sides, strict=True):
        refuse_without_records(state, *side)
    results_a, results_b = (
        _study_results(state, " ".join([reference, *own]))
        for state, reference, own in zip(states, (a, b), (only_a, only_b), strict=True)
    )
    found = comparison.compare(results_a, results_b, tolerance)
    if out is not None:
        write_cells(found.cells, out)
    if as_json:
        click.echo(json.dumps(found.content))
    else:
        print_storage(*states)
        for state, side in zip(states, sides, strict=True):
            print_damaged(state, *side)
        comparison.terminal(found)
        if out is not None:
            click.echo(f"{out}: {len(found.cells)} cells")
    return int(found.changed)


def _study_results(state: "StudyState", name: str) -> "StudyResults":
    """Read the results of one side of a comparison; `name` is its name in the output."""
    from sweeps.analysis.compare import StudyResults, inferred

    records = state.records("tables")
    rows = state.rows(records)
    return StudyResults(name, rows, records, inferred(state.study, rows, state.store))


@click.command(epilog=examples("report quick -o report --set data.table=panel.parquet"))
@study_argument
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Write the report into this folder.",
)
@click.option(
    "--outlines",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the state outlines of this GeoJSON file on the maps; default: those of bokeh-sampledata, if "
    "it is installed.",
)
def report(study: str, overrides: tuple[str, ...], out: Path, outlines: Path | None) -> None:
    """Write tables, figures and an HTML page.

    Tables are written as Markdown, CSV and LaTeX. The HTML page is one self-contained file.
    """
    from sweeps.report.study_report import write_study_report

    state = open_state(study, overrides)
    refuse_without_records(state, study, overrides)
    files = write_study_report(state, out, borders=outlines)
    print_storage(state)
    print_damaged(state, study, overrides)
    for file in files:
        click.echo(str(file))


@click.command(epilog=examples("sync quick --set data.table=panel.parquet"))
@study_argument
def sync(study: str, overrides: tuple[str, ...]) -> None:
    """Rebuild the MLflow view from the store.

    Optuna's journal of the searches is rebuilt too. The winner of each arm is registered as a model if
    its weights are stored.
    """
    from sweeps import driver
    from sweeps.store.lock import StudyLock

    state = open_state(study, overrides)
    state.store.prepare()
    # A run writes to the same views.
    with StudyLock(state.store, interrupts=True) as lock, fix_names_study(study, overrides):
        state.store = lock.store
        state.refresh()
        written, address = driver.sync(state)
    print_storage(state)
    print_damaged(state, study, overrides)
    click.echo(f"{written} runs written to {address}")


@click.command(epilog=examples("ui quick --set data.table=panel.parquet --port 5001"))
@study_argument
@click.option(
    "--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port of the local server."
)
def ui(study: str, overrides: tuple[str, ...], port: int) -> None:
    """Open the MLflow UI with the study's runs."""
    from pm25 import uri
    from sweeps.spec import study_file
    from sweeps.spec.tracking_address import without_password
    from sweeps.store import database
    from sweeps.store.records import Store, default_tracking

    declared = study_file.load(study, overrides)
    tracking = declared.tracking or default_tracking(declared.storage)
    has_server = tracking.startswith("http")
    if not has_server:
        _check_port(port)
    file = database.path(tracking)
    if file is not None and not os.path.exists(file):
        fix = f"write it with `{command_line('sync', study, overrides)}`, or add --set storage=FOLDER"
        raise InputError(file, "", f"the MLflow database of study {declared.study} does not exist", fix)
    from sweeps.tracking.mlflow_view import Tracker  # slow; a bad study file is reported before

    with fix_names_study(study, overrides):
        tracker = Tracker(Store(declared.storage, declared.study), declared.tracking)
        links = tracker.links()
    address = without_password(tracker.uri.rstrip("/")) if has_server else f"http://127.0.0.1:{port}"
    click.echo(f"{declared.study}: storage {uri.without_secrets(declared.storage)}", err=True)
    for name, page in links.items():
        click.echo(f"{name}: {address}{page}")
    if not has_server:
        # A password in the address would appear in lists of processes.
        variables = {**os.environ, "MLFLOW_BACKEND_STORE_URI": tracker.uri}
        variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = (
            "false"  # eight processes for pages of language models
        )
        variables.setdefault("PYTHONWARNINGS", "ignore")  # MLflow's code warns about itself
        # With several workers, the server takes the end of its terminal as a request to restart them.
        server = ["-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        os.execve(sys.executable, [sys.executable, *server], variables)


def _check_port(port: int) -> None:
    """Raise InputError if no server can listen at the port, such as one where another program listens."""
    with socket.socket() as server, socket.socket() as other:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as MLflow's server does
        try:
            server.bind(("127.0.0.1", port))
        except OSError as error:
            other.bind(("127.0.0.1", 0))
            fix = f"choose another port, such as --port {other.getsockname()[1]}"
            problem = f"no server can use the port ({error.strerror})"
            raise InputError(f"--port {port}", "", problem, fix) from None


@click.command(epilog=examples("importance quick --set data.table=panel.parquet"))
@study_argument
@click.argument("key", required=False)
@click.option(
    "--repeats",
    type=click.IntRange(2, 1000),
    default=5,
    show_default=True,
    help="Permute each channel this number of times.",
)
def importance(study: str, overrides: tuple[str, ...], key: str | None, repeats: int) -> None:
    """Measure the importance of each channel.

    The permutation importance is measured for each channel and for the embedding.

    KEY names one cell, and may be its first digits. Without KEY, the winner of every arm is measured: its
    seed with the lowest validation error over all folds. The result is stored with the cell as
    importance.parquet, from which the report draws it.
    """
    from pm25.importance import importance as permute
    from sweeps.engine import worker

    state = open_state(study, overrides)
    state.store.prepare()
    chosen = _winners(state, command_line("run", study, overrides)) if key is None else [_cell(state, key)]
    with_weights = state.store.holding(worker.WEIGHTS)
    others = ", ".join(known for known in state.cells if known in with_weights) or "none"
    fix = f"set keep_weights: true before the cell is run (cells with weights: {others})"
    absent = {
        known: InputError(known, "", "no weights of this cell are stored", fix)
        for known in chosen
        if known not in with_weights
    }
    if len(absent) == len(chosen):
        raise next(iter(absent.values()))
    print_storage(state)
    for known, error in absent.items():
        click.echo(f"sweep: {state.cells[known].label}: {error}", err=True)
    for found in (known for known in chosen if known in with_weights):
        cell, embedded = state.cells[found], state.embedded(state.cells[found])
        kept = worker.stored_weights(found, state.store)
        assert kept is not None
        vectors = embedded.vectors if embedded else None
        table = permute(cell, state.panel, kept[0], embedding=vectors, repeats=repeats)
        columns = {name: [getattr(row, name) for row in table] for name in ("what", "rmse_increase", "sd")}
        state.store.write_table(found, "importance", {**columns, "repeats": [repeats] * len(table)})
        click.echo(f"{cell.label}: increase of RMSE (ug/m3), mean and sd of {repeats} permutations")
        for row in table:
            click.echo(f"  {row.what:24} {row.rmse_increase:+8.3f} ± {row.sd:.3f}")


def _winners(state: "StudyState", run_command: str) -> list[str]:
    """Keys of the arms' winners; raises InputError if there are none yet."""
    from sweeps.engine.worker import WEIGHTS
    from sweeps.tracking import winners

    held = state.store.holding(WEIGHTS)
    chosen = [*winners.best(state.study, state.cells, state.records(), held).values()]
    if not chosen:
        problem = f"no arm has a finished cell yet in storage {state.shown_storage}"
        raise InputError(state.study.study, "", problem, f"run `{run_command}`")
    return chosen


def _cell(state: "StudyState", key: str) -> str:
    """Key that begins with `key`; raises InputError unless there is exactly one."""
    chosen = [known for known in state.cells if known.startswith(key)]
    if len(chosen) != 1:
        problem = f"{len(chosen)} cells of {state.study.study} have a key that begins so"
        raise InputError(f"key {key}", "", problem, "choose one of the keys that `sweep export` lists")
    return chosen[0]


@click.command(epilog=examples("verify demo --sample 3", "verify demo --negative-control"))
@study_argument
@click.option(
    "--sample",
    type=click.IntRange(1, MOST_COUNTED),
    metavar="N",
    help="Train only N cells again, drawn at random; with --negative-control: N of each arm (default 2).",
)
@click.option(
    "--negative-control",
    "negative",
    is_flag=True,
    help="Train on targets that are exchanged between sites, and find out that no arm predicts them.",
)
def verify(study: str, overrides: tuple[str, ...], sample: int | None, negative: bool) -> int:
    """Train stored cells again and compare them.

    All numbers and predictions are compared. The exit status is 1 if one differs, or if a
    cell is damaged. Weights are compared if they are stored; the cell's line says so.

    A cell that was trained in a stack on a GPU is compared with the same training alone. The RMSEs may differ
    by 2 %.

    --negative-control tests the code for leaks instead. Each site gets the targets of another site, and
    stored cells of each arm are trained on them. The exit status is 1 if an arm predicts them better than
    means of days and sites do. Nothing is stored.
    """
    state = open_state(study, overrides)
    done = [key for key, record in state.records().items() if record["state"] == "done"]
    if not done:
        fix = f"run `{command_line('run', study, overrides)}`"
        problem = f"no cell is done in storage {state.shown_storage}, so none can be verified"
        raise InputError(study, "", problem, fix)
    print_storage(state)
    print_damaged(state, study, overrides)
    if negative:
        from sweeps.engine import negative_control

        passed = True
        for control in negative_control.run(state, done, sample or 2):
            click.echo(f"  {control.line}")
            passed = passed and control.passed
        return int(not passed)
    # A random sample, since every n-th cell of the grid could belong to one arm.
    chosen = sorted(random.Random(0).sample(range(len(done)), min(sample or len(done), len(done))))
    from sweeps.engine import worker

    differing, with_weights = len(state.damaged_cells), state.store.holding(worker.WEIGHTS)
    records = state.records()
    for key in (done[i] for i in chosen):
        cell = state.cells[key]
        found = worker.differences(cell, key, state.panel, state.store, embedded=state.embedded(cell))
        differing += bool(found)
        equal, more = "bitwise equal", ", with weights" if key in with_weights else ""
        if "stacked" in records[key]:
            equal, more = "equal within the tolerance of a stack", ""
        outcome = f"differs in {', '.join(found)}" if found else equal
        click.echo(f"  {key} {cell.label}: {outcome}{more}")
    return int(bool(differing))
