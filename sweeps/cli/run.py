"""The commands that plan and run a study, and explain its cells."""

import dataclasses
import json
import os
import shlex
from typing import TYPE_CHECKING

import click

from pm25.errors import InputError
from pm25.limits import MOST_COUNTED
from pm25.redaction import redacted
from pm25.text import counted
from sweeps.cli.plan_text import plan_content, plan_lines
from sweeps.cli.shared import (
    Duration,
    FiniteRange,
    cell_counts,
    command_line,
    complete_commands,
    examples,
    fix_names_study,
    json_option,
    open_state,
    panel_size,
    print_storage,
    study_argument,
)
from sweeps.exit_status import interrupted
from sweeps.spec.limits import MOST_DEVICES

if TYPE_CHECKING:
    from sweeps.state import StudyState

limit_option = click.option(
    "--limit",
    type=click.IntRange(1, MOST_COUNTED),
    metavar="N",
    help="Start at most N cells and search trials.",
)
only_option = click.option(
    "--only",
    metavar="FILTER",
    help="Run only these cells, such as variant=geoclip,split=random|spatial, and the searches they need.",
)
wait_option = click.option(
    "--wait-for-nodes",
    is_flag=True,
    help="Wait for nodes that have enough CPUs and GPUs, for example where an autoscaler starts with none.",
)


@click.command(
    epilog=examples(
        "plan quick --set data.table=panel.parquet",
        "plan paper2025 --set data.table=panel.parquet --gpus 8 --budget 40h",
    )
)
@study_argument
@click.option(
    "--cpus",
    type=FiniteRange(0, MOST_DEVICES, min_open=True),
    help="Plan for this number of CPUs; default: those of this machine, or 12 for each GPU if --gpus is "
    "larger than its number.",
)
@click.option(
    "--gpus",
    type=FiniteRange(0, MOST_DEVICES),
    help="Plan for this number of GPUs; default: those of this machine.",
)
@click.option(
    "--budget",
    type=Duration(),
    metavar="TIME",
    help="Propose the largest balanced subset that finishes within TIME (wall time: 90m, 40h, 2d).",
)
@click.option("--no-calibrate", is_flag=True, help="Measure nothing; use only what was measured before.")
@json_option
def plan(
    study: str,
    overrides: tuple[str, ...],
    cpus: float | None,
    gpus: float | None,
    budget: float | None,
    no_calibrate: bool,
    as_json: bool,
) -> None:
    """Show what a run will do and cost.

    The output lists arms, cells, what is done, and ranges of the expected time, hours and disk space.
    Speeds that no stored cell provides are measured once, on a few batches of each kind of network.

    With `resources.gpu: auto`, as many trainings share a GPU as its memory and its CPUs allow. The expected
    gain is the square root of their number, and the range has both extremes.
    """
    from sweeps.engine import measure
    from sweeps.plan import calibration, detectable, packing
    from sweeps.plan.capacity import Capacity
    from sweeps.plan.cost import Estimate

    state = open_state(study, overrides)
    lacking = list(detectable.untestable(state.study, state.panel))
    detectable.refuse_claims(lacking, study)
    state.study.refuse_leaks(state.panel)
    records, split_indices = state.records(), state.split_indices()
    local_gpus = len(calibration.devices())
    gpus = local_gpus if gpus is None else gpus
    elsewhere = cpus is None and gpus > local_gpus
    if cpus is None:
        cpus = len(os.sched_getaffinity(0))
        cpus = max(cpus, packing.ASSUMED_CPUS * gpus) if elsewhere else cpus
    capacity = Capacity.of(state.study, cpus, gpus)
    known = calibration.read(state.store, capacity)
    estimate = Estimate(state, records, split_indices, capacity, known)
    if any(estimate.uncalibrated()) and not no_calibrate and calibration.can_measure(capacity):
        measure.in_child(study, overrides, capacity)
        known = calibration.read(state.store, capacity)
        estimate = Estimate(state, records, split_indices, capacity, known)
    packed = packing.plan_packing(state, records, capacity, estimate.shapes, known)
    if packed is not None:
        capacity = capacity.packed(packed.per_gpu)._replace(gain=packed.gain)
        estimate = Estimate(state, records, split_indices, capacity, known)
    content = plan_content(state, records, split_indices, estimate, budget)
    if packed is not None:
        content["packing"] = packed._asdict() | {"assumed_cpus": elsewhere}
    if "bf16" in state.study.precisions and calibration.can_measure(capacity):
        content["without_bf16"] = calibration.bf16_notice(calibration.without_bf16(capacity.gpu > 0))
    found = detectable.detectable(state, records, lacking)
    content["detects"] = [detectable.content(one) for one in found]
    if as_json:
        click.echo(json.dumps(content | {"storage": state.shown_storage}))
        return
    print_storage(state)
    data = f"{state.panel.name}: {panel_size(state.panel)}"
    for line in plan_lines(content, data, detectable.lines(found, lacking)):
        click.echo(line)


@click.command(
    epilog=examples(
        "run quick --set data.table=panel.parquet",
        'run quick --set data.table=panel.parquet --only "variant=geoclip,split=random|spatial"',
        "run quick --set data.table=/shared/panel.parquet --set storage=/shared/results --address auto",
    )
)
@study_argument
@click.option(
    "--address",
    metavar="A",
    help="Join the Ray cluster at A ('auto', or host:port); default: start Ray here.",
)
@wait_option
@click.option(
    "--require-tracking", is_flag=True, help="Start nothing if the tracking server does not answer."
)
@limit_option
@only_option
@click.option("--dry-run", is_flag=True, help="Print what would run, in order, and run nothing.")
def run(
    study: str,
    overrides: tuple[str, ...],
    address: str | None,
    wait_for_nodes: bool,
    require_tracking: bool,
    limit: int | None,
    only: str | None,
    dry_run: bool,
) -> int:
    """Train every cell that the store lacks.

    Each searched arm is tuned first, then its cells are trained. Results are stored in the folder or bucket
    `storage` of the study. Run the same command again to resume.
    """
    from sweeps.engine.scheduler import Scheduler
    from sweeps.store import filters

    state = open_state(study, overrides)
    state.split_indices()  # raises InputError for an empty set
    state.overlap_with_search()  # the same for the sets of a search
    recorded = state.records()
    if not recorded:  # nothing is paid for yet
        from sweeps.plan import detectable

        detectable.refuse_claims(detectable.untestable(state.study, state.panel), study)
    state.study.refuse_leaks(state.panel)
    every = [*state.cells.values(), *state.waiting]
    selects = None if only is None else filters.parse(only, every).matches
    if dry_run:
        print_storage(state)
        scheduler = Scheduler(state, selects=selects, limit=limit)
        for line in (scheduler.outline, *scheduler.lines()):
            click.echo(line)
        return 0

    from sweeps.driver import train
    from sweeps.report import write as report
    from sweeps.store.lock import StudyLock

    notice = _check_ray(address) if len(recorded) < len(state.grid) else ""
    state.store.prepare()
    with StudyLock(state.store, interrupts=True) as lock, fix_names_study(study, overrides):
        state.store = lock.store
        print_storage(state)
        if notice:
            click.echo(f"sweep: {notice}", err=True)
        state.refresh()  # another run may have had the lock until now
        scheduler = Scheduler(state, selects=selects, limit=limit, stopped=lambda: lock.lost)
        size = f"{state.panel.name}, {panel_size(state.panel)}"
        click.echo(f"{state.study.study}: {size}; {scheduler.outline}", err=True)
        for notice in (*state.panel.left_out, *state.panel.doubts):
            click.echo(f"sweep: {notice}", err=True)
        ended = train(
            state, scheduler, address, wait_for_nodes=wait_for_nodes, needs_tracking=require_tracking
        )
        for notice in ended.notices:
            click.echo(f"sweep: {complete_commands(notice, study, overrides)}", err=True)
    report.print_summary(ended.report)
    for trials in state.searches.values():
        click.echo(f"search {trials.outline}")
    count = ended.cells
    click.echo(f"{cell_counts(count)}; `{command_line('ui', study, overrides)}` opens MLflow")
    return int(bool(count["failed"] or state.damaged or scheduler.blocked))


def _check_ray(address: str | None) -> str:
    """Return a notice for the user, which is usually empty.

    Raises InputError if Ray cannot start here, or if no cluster answers at the address.
    """
    if address is None:
        from sweeps.engine import temp_folder

        return temp_folder.choose()[1]
    from sweeps.engine import connection, token_file

    notice = token_file.protect()
    connection.check_answers(address)
    return notice


@click.command(
    epilog=examples(
        "submit quick --address http://HOST:8265 --set data.table=/shared/panel.parquet --follow",
        "submit quick --address http://HOST:8265 --set data.table=/shared/panel.parquet --status",
        "submit quick --address http://HOST:8265 --set data.table=/shared/panel.parquet --stop",
    )
)
@study_argument
@click.option(
    "--address", metavar="URL", required=True, help="Address of the cluster's dashboard: http://HOST:8265."
)
@click.option(
    "--follow", is_flag=True, help="Print the job's log until it ends; joins a job that is running."
)
@click.option("--status", "show_status", is_flag=True, help="Print the status of the study's job.")
@click.option("--stop", is_flag=True, help="Stop the study's job, and wait until it has ended.")
@wait_option
@limit_option
@only_option
@click.option(
    "--env",
    "env",
    multiple=True,
    metavar="NAME",
    help="Pass this environment variable to the job (repeatable). Everybody who can open the dashboard can "
    "read its value. For a secret, use a role of the machines, or set the variable on them.",
)
@click.option("--json", "as_json", is_flag=True, help="With --status: print one JSON object instead of text.")
def submit(
    study: str,
    overrides: tuple[str, ...],
    address: str,
    follow: bool,
    show_status: bool,
    stop: bool,
    wait_for_nodes: bool,
    limit: int | None,
    only: str | None,
    env: tuple[str, ...],
    as_json: bool,
) -> int:
    """Start `sweep run` as a job on a Ray cluster.

    The job does not depend on this machine. It receives the code that runs here and the study with its
    overrides. It receives no data, no results, and no environment variables except those named with
    --env.

    The cluster needs the same Ray version as this machine. On the head node, the first `python` on the path
    must have the dependencies.

    Tables are read on the cluster: data.table is a path on a file system that all machines share, or a URI.
    The same holds for the storage. The job checks that every node reaches it, and that the tracking server
    answers, before it trains.

    A study has one job at a time, identified by its name and storage.

    --follow prints the log and ends with
    the exit status of the run. Ctrl-C leaves the job running (exit status 130), and the same command joins it
    again. If the last job was stopped or lost, the command submits one that resumes.

    If the cluster uses a token (RAY_AUTH_MODE=token), set RAY_AUTH_MODE=token here too. The token is read
    from RAY_AUTH_TOKEN, from the file named by RAY_AUTH_TOKEN_PATH, or from ~/.ray/auth_token.
    """
    from pm25 import uri
    from sweeps.spec import study_file
    from sweeps.store import filters
    from sweeps.store.records import default_tracking

    if follow + show_status + stop > 1:
        raise InputError(
            "submit",
            "--follow, --status, --stop",
            "these options exclude each other",
            "give one of --follow, --status and --stop",
        )
    if as_json and not show_status:
        raise InputError("submit", "--json", "the option needs --status", "give both, or neither")
    declared, content = study_file.resolve(study, overrides)
    if only is not None:
        filters.parse(only, declared.cells())
    if declared.tracking is None and not (show_status or stop):
        default_tracking(declared.storage)  # raises InputError for a bucket, which cannot hold SQLite

    from sweeps.engine import token_file
    from sweeps.engine.submit import JobClient, command, environment, staged

    variables = environment(env)
    if notice := token_file.protect():
        click.echo(f"sweep: {notice}", err=True)
    cluster = JobClient(address)
    again = f"{command_line('submit', study, overrides)} --address {shlex.quote(redacted(address))}"
    storage = uri.without_secrets(declared.storage)
    job = cluster.job(declared)
    named = f"study {declared.study} with storage {storage}"
    if show_status:
        if job is None:
            raise InputError(
                f"--address {address}", "", f"no job of {named} exists", f"start one with `{again}`"
            )
        if as_json:
            found = {"study": declared.study, "storage": storage, **dataclasses.asdict(job)}
            click.echo(json.dumps(found, default=lambda moment: moment.isoformat()))
        else:
            click.echo(f"{job.line}; {cluster.page(job.id)}")
        return 0
    if stop:
        if job is None or not job.is_running:
            last = f"; {job.line}" if job else ""
            raise InputError(f"--address {address}", "", f"no job of {named} runs{last}")
        ended = cluster.stop(job.id)
        click.echo(f"{ended.line}; resume with `{again}`")
        return 0
    if job is not None and job.is_running:
        if not follow:
            fix = "join the job with --follow, or stop it with --stop"
            raise InputError(job.line, "", "a study has one job at a time", fix)
        click.echo(f"sweep: joined {job.line}, with the code and study that were submitted then", err=True)
        name = job.id
    else:
        with staged(declared, content) as (folder, shipment):
            line = command(declared, only=only, limit=limit, wait_for_nodes=wait_for_nodes)
            name = cluster.submit(folder, declared, line, variables)
        click.echo(f"{name}: submitted with {shipment}; {cluster.page(name)}", err=True)
        if declared.data.table is not None:
            click.echo(
                f"  data     {uri.without_secrets(declared.data.table)} is read on the cluster", err=True
            )
        click.echo(f"  storage  {storage}", err=True)
    if not follow:
        for option, effect in (
            ("--follow", "print its log"),
            ("--status", "print its status"),
            ("--stop", "stop it"),
        ):
            click.echo(f"  {again} {option}  # {effect}")
        return 0
    try:
        ended = cluster.follow(name, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        hint = f"`{again} --follow` joins it again, `{again} --stop` stops it"
        click.echo(f"\nsweep: {name} is still running; {hint}", err=True)
        return interrupted()
    if ended.exit_status is None:
        raise InputError(ended.line, "", "the run left no exit status", f"resume with `{again}`")
    if ended.status != "succeeded":
        click.echo(f"sweep: {ended.line}", err=True)
    return ended.exit_status


@click.command(
    epilog=examples(
        "retry quick --set data.table=panel.parquet",
        'retry quick --set data.table=panel.parquet --where "variant=geoclip,split=random|checkerboard"',
        "retry quick --set data.table=panel.parquet --where error=OutOfMemoryError,host=gpu-07",
        "retry quick --set data.table=panel.parquet --damaged",
    )
)
@study_argument
@click.option("--where", "text", metavar="FILTER", help="Forget only the failed cells that match FILTER.")
@click.option(
    "--damaged",
    is_flag=True,
    help="Move damaged cells and search trials aside instead, to the folder `damaged` of the study.",
)
def retry(study: str, overrides: tuple[str, ...], text: str | None, damaged: bool) -> None:
    """Forget failed cells, to try them again.

    Without a FILTER, failed search trials are forgotten too. A trial whose training diverged is kept, since
    its result is useful to the search.

    FILTER is FIELD=VALUE: a comma means and, | means or.

    \b
    Fields of the cell: variant, fusion (- for none), head, arm,
    split (a label or a kind), regime, fold, seed.
    Fields of the failure: error (its type), host, and
    signature (any part of it, as in `sweep status --json`).

    A filter that matches no failed cell is an error.

    With --damaged, the record and the files of every damaged cell and search trial are checked and moved to
    `<storage>/<study>/damaged`. Nothing is deleted.
    """
    from sweeps.store import filters
    from sweeps.store.lock import StudyLock

    if damaged and text is not None:
        fix = "give one of --where and --damaged"
        raise InputError("retry", "--where, --damaged", "these options exclude each other", fix)
    state = open_state(study, overrides)
    if damaged:
        _set_aside(state, command_line("run", study, overrides))
        return
    state.store.keys()  # raises InputError for a storage that cannot be read, before the lock is taken
    with StudyLock(state.store) as lock:
        state.store = lock.store
        state.refresh()
        failed = {key: record for key, record in state.records().items() if record["state"] == "failed"}
        chosen = list(failed)
        if text is not None:
            filter_ = filters.parse(text, [state.cells[key] for key in failed], list(failed.values()))
            chosen = [key for key, record in failed.items() if filter_.matches(state.cells[key], record)]
        print_storage(state)
        for key in chosen:
            state.store.forget(key)
        trials = state.retried_trials() if text is None else []
        for key in trials:
            state.store.search.forget(key)
    rest = f"; {len(failed) - len(chosen)} others stay failed" if text is not None else ""
    what = f"{len(chosen)} failed cells" + (f" and {len(trials)} failed search trials" if trials else "")
    click.echo(f"{what} will run again with `{command_line('run', study, overrides)}`{rest}")


def _set_aside(state: "StudyState", again: str) -> None:
    """Move the damaged cells and search trials of the study's folder aside, those of other settings too."""
    from sweeps.store.lock import StudyLock
    from sweeps.store.records import DAMAGED_FOLDER

    with StudyLock(state.store) as lock:
        state.store = lock.store
        state.refresh()
        state.records()
        print_storage(state)
        moved = []
        for store, known in (
            (state.store, state.damaged_cells),
            (state.store.search, state.damaged_trials),
        ):
            stored = store.records(sorted(store.keys()), "all")
            keys = [key for key, record in stored.items() if record["state"] == "damaged"]
            keys = [*dict.fromkeys([*keys, *(record["key"] for record in known)])]
            for key in keys:
                store.set_aside(key)
            moved.append(len(keys))
    what = f"{counted(moved[0], 'damaged cell')} and {counted(moved[1], 'damaged search trial')}"
    if not any(moved):
        click.echo(f"{what}; nothing to move aside")
        return
    _, folder = state.store.location(DAMAGED_FOLDER)
    click.echo(f"{what} moved to {folder}; `{again}` trains them again")


@click.command(epilog=examples("why quick 3f2a --set data.table=panel.parquet"))
@study_argument
@click.argument("key")
@json_option
def why(study: str, overrides: tuple[str, ...], key: str, as_json: bool) -> None:
    """Explain the state of the cell KEY.

    A cell is done, failed, missing, damaged or stale.

    KEY may be the first digits of a key. The key is a hash of everything that can change a cell's numbers:
    settings, the data, the encoder, and the version of the numerical code. A stale cell is stored, but the
    study no longer contains it.

    A missing cell is compared with the most similar stored cell, and a stale cell with the most similar cell
    of the study. The output lists the parts of the two keys that differ.
    """
    from sweeps import explain

    state = open_state(study, overrides)
    explanation = explain.explain(state, key)
    if as_json:
        click.echo(json.dumps(explanation.content | {"storage": state.shown_storage}))
        return
    print_storage(state)
    for line in explanation.lines:
        click.echo(complete_commands(line, study, overrides))
    if explanation.state == "failed":
        again = f"{command_line('retry', study, overrides)} --where {shlex.quote(explanation.where)}"
        click.echo(f"  `{again}` allows it to run again")
    elif explanation.state == "missing":
        click.echo(f"  `{command_line('run', study, overrides)}` runs it")
