"""The command line. Heavy imports stand inside the commands that need them."""

import contextlib
import json
import math
import os
import random
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pm25.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from pm25.panel import Panel
    from sweeps.analysis.compare import StudyResults
    from sweeps.state import StudyState
    from sweeps.store.records import Record


CLUSTER_LOST = 3
"""Exit status."""

FAILURES_SHOWN = 8
"""Lines that `sweep status` gives to failures at most."""


_terminated: list[int] = []
"""Signals by which a batch system, or whoever stops a job, asked this process to end."""


def _end(number: int, _: Any) -> None:
    _terminated.append(number)
    raise KeyboardInterrupt  # which Ray makes of any other error


def _stopped() -> int:
    """The exit status of a process that was interrupted."""
    return 143 if _terminated else 130


def main() -> None:
    """Run the command line: 0 done, 1 a cell failed, 2 bad input, 3 no cluster any more, 130 or 143 ended."""
    signal.signal(signal.SIGTERM, _end)
    try:
        status = cli(standalone_mode=False)
    except InputError as error:
        click.echo(f"sweep: {' '.join(str(error).split())}", err=True)
        status = getattr(error, "status", 2)
    except click.ClickException as error:
        error.show()
        status = 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("sweep: interrupted; the same command goes on with what is missing", err=True)
        status = _stopped()
    if status == CLUSTER_LOST:  # Ray's own end would wait for a head that is gone
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pm25-sweeps")
def cli() -> None:
    """Does giving a PM2.5 model its location help, within region and out of region?

    STUDY is a study file, or the name of a shipped one: demo, quick, paper2025.
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


def _state(study: str, overrides: tuple[str, ...]) -> "StudyState":
    from sweeps.state import StudyState

    return StudyState(study, overrides)


class Duration(click.ParamType):
    """`40h`, `90m`, `2d`; in hours."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", str(value))
        if number is None or not float(number[1]):
            self.fail(f"{value!r} is no duration; write it as 90m, 40h or 2d", param, ctx)
        return float(number[1]) * {"m": 1 / 60, "h": 1, "d": 24}[number[2]]


@cli.command()
@study_argument
@click.option("--cpus", type=click.FloatRange(0, min_open=True), help="To plan for; this machine's without.")
@click.option("--gpus", type=click.FloatRange(0), help="To plan for; this machine's without.")
@click.option(
    "--budget",
    type=Duration(),
    metavar="TIME",
    help="Propose the largest balanced subset that ends within TIME (wall time: 90m, 40h, 2d).",
)
@click.option("--no-calibrate", is_flag=True, help="Measure nothing; go by what was measured before.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def plan(
    study: str,
    overrides: tuple[str, ...],
    cpus: float | None,
    gpus: float | None,
    budget: float | None,
    no_calibrate: bool,
    as_json: bool,
) -> None:
    """Arms, cells, what is done, and the time, hours and disk to expect, each with its range.

    What no stored cell tells is measured once, on a few batches of every kind of network.
    """
    from sweeps.engine import measure
    from sweeps.plan import calibration
    from sweeps.plan.cost import Capacity, Estimate
    from sweeps.spec.design import Arm

    state = _state(study, overrides)
    records, parts = state.records(), state.parts()
    cpus = cpus or len(os.sched_getaffinity(0))
    gpus = len(calibration.devices()) if gpus is None else gpus
    room = Capacity.of(state.study, cpus, gpus)
    estimate = Estimate(state, records, parts, room, calibration.read(state.store, room))
    if any(estimate.uncalibrated()) and not no_calibrate and calibration.can_measure(room):
        measure.in_child(study, overrides, room)
        estimate = Estimate(state, records, parts, room, calibration.read(state.store, room))
    done = [key for key, record in records.items() if record["state"] == "done"]
    arms = {arm.label: {"cells": 0, "done": 0} for arm in state.study.arms()}
    for cell in (*state.cells.values(), *state.waiting):
        arms[Arm.of(cell).label]["cells"] += 1
    for key in done:
        arms[Arm.of(state.cells[key]).label]["done"] += 1
    found = estimate.content(state.store.size(done), budget)
    content: dict[str, Any] = {
        "study": state.study.study,
        "arms": arms,
        "splits": [
            {
                "split": label,
                "fold": fold,
                **{name: len(part) for name, part in vars(cut).items() if part is not None},
            }
            for (label, fold), cut in parts.items()
        ],
        "seeds": list(state.study.design.first_seeds),
        "cells": _count(state, records),
        **_further(state),
        "cpu_hours_left": found["cpu_hours"] and found["cpu_hours"]["expected"],
        "disk_mb_left": found["disk_mb"]["expected"],
        **found,
    }
    if as_json:
        click.echo(json.dumps(content))
        return
    for line in _plan_lines(content, f"{state.panel.name}: {_size(state.panel)}"):
        click.echo(line)


def _plan_lines(content: dict[str, Any], data: str) -> Iterator[str]:
    """What `plan` prints of its JSON."""
    cells, room = content["cells"], content["room"]
    yield (
        f"{content['study']}: {len(content['arms'])} arms, {cells['total']} cells, {cells['missing']} to run"
    )
    yield f"  data    {data}"
    for name, count in content["arms"].items():
        yield f"  arm     {name}: {count['cells']} cells, {count['done']} done"
    for label, lines in groupby(content["splits"], key=lambda line: line["split"]):
        folds = list(lines)
        if len(folds) > 3:
            yield f"  split   {label} {len(folds)} folds: {_sizes(folds)} samples each"
        else:
            yield from (f"  split   {label} fold {f['fold']}: {_sizes([f])} samples" for f in folds)
    further = f"; up to {content['further']} more cells if undecided" if content.get("further") else ""
    yield f"  seeds   {', '.join(map(str, content['seeds']))}{further}"
    if content["search_trials"]:
        yield f"  search  {content['search_trials']} trials to run"
    if not content["jobs"]:
        return
    for labels, epochs in _alike((label, _ranged(e)) for label, e in content["epochs"].items()):
        yield f"  epochs  {epochs} ({', '.join(labels)})"
    for source, jobs in content["speeds"].items():
        yield f"  speed   of {jobs}: {source}"
    if unknown := content["jobs"] - sum(content["speeds"].values()):
        yield f"  speed   of {unknown} not known; plan without --no-calibrate measures it"
    yield f"  disk    {_ranged(content['disk_mb'])} MB in the store"
    if content["memory_mb"]:
        yield f"  memory  {content['memory_mb'] / 1000:.1f} GB a cell"
    yield (
        f"  on      {room['cpus']:g} CPUs, {room['gpus']:g} GPUs: {room['side_by_side']} side by side, "
        f"each with {room['cpu']:g} CPU and {room['gpu']:g} GPU"
    )
    if content["wall_hours"] is None:
        return
    if room["gpu"]:
        yield f"  GPU     {_hours(content['gpu_hours'])}"
    yield f"  CPU     {_hours(content['cpu_hours'])}"
    yield f"  wall    {_hours(content['wall_hours'])}"
    unit = content["without"]["unit"]
    yield f"  less by leaving out a level ({unit})"
    yield from _level_lines(content["without"]["levels"])
    if "budget" in content:
        yield from _budget_lines(content["budget"], unit)


def _level_lines(levels: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each level; one for those of a factor that cost the same."""
    alike = groupby(levels, key=lambda one: (one["factor"], one["jobs"], _hours(one["hours"])))
    for (factor, jobs, hours), group in alike:
        names = [one["level"] for one in group]
        each = "each " if len(names) > 1 else ""
        yield f"    {'fold no.' if factor == 'fold' else factor:9} {', '.join(names)}: {each}{jobs}, {hours}"


def _budget_lines(budget: dict[str, Any], unit: str) -> Iterator[str]:
    given = _hours(dict.fromkeys(("low", "expected", "high"), budget["hours"]))
    takes = _hours(budget["wall_hours"])
    if budget["fits"] == "all":
        yield f"  budget  {given} of wall time hold the whole study, {takes}"
        return
    chosen = f"first seeds {budget['seeds']}, first folds {budget['folds']} of every split"
    if budget["fits"] == "part":
        some = f"{budget['cells']} of {budget['of']} cells"
        yield f"  budget  {given} of wall time hold {some}, {takes}: {chosen}"
        yield f"    {shlex.join(part for text in budget['set'] for part in ('--set', text))}"
        return
    yield f"  budget  {given} of wall time do not hold one round, {takes}: {budget['cells']} cells, {chosen}"
    yield f"  less by leaving out a level of that round ({unit})"
    dear = [one for one in budget["without"] if one["hours"]["expected"]]
    yield from _level_lines(sorted(dear, key=lambda one: -one["hours"]["expected"]))


def _sizes(folds: list[dict[str, Any]]) -> str:
    """Samples of each part, from the smallest to the largest fold."""
    sizes = {name: [fold[name] for fold in folds] for name in folds[0] if name not in ("split", "fold")}
    return ", ".join(
        f"{name} {min(n):,}" + (f" to {max(n):,}" if max(n) > min(n) else "") for name, n in sizes.items()
    )


def _alike(named: Iterable[tuple[str, str]]) -> list[tuple[list[str], str]]:
    """Names by what is said of them."""
    found: dict[str, list[str]] = {}
    for name, said in named:
        found.setdefault(said, []).append(name)
    return [(names, said) for said, names in found.items()]


def _hours(value: dict[str, float]) -> str:
    """In the unit that fits what is expected."""
    expected = value["expected"]
    scale, unit = (1, "h") if expected >= 1 else (60, "min") if expected >= 1 / 60 else (3600, "s")
    return _ranged({name: scale * hours for name, hours in value.items()}, f" {unit}")


def _ranged(value: dict[str, float], unit: str = "") -> str:
    """`12 min (9.5 to 17)`; one number where all are the same."""
    low, expected, high = (f"{v:.2g}" if v < 9.95 else f"{v:,.0f}" for v in value.values())
    return f"{expected}{unit}" + (f" ({low} to {high})" if low != high else "")


@cli.command()
@study_argument
@click.option("--address", metavar="A", help="Join the Ray cluster at A ('auto', or host:port).")
@click.option(
    "--wait-for-nodes",
    is_flag=True,
    help="Nodes that can hold a training may still have to come, as where an autoscaler begins with none.",
)
@click.option(
    "--require-tracking", is_flag=True, help="Begin nothing where the tracking server does not answer."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Begin at most N cells and trials.")
@click.option(
    "--only",
    metavar="FILTER",
    help="Only these cells, such as variant=geoclip,split=random|spatial; and the searches they need.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be run, in its order, and run nothing.")
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
    """Search, train and record whatever is missing; the same command resumes."""
    from sweeps.engine.scheduler import Scheduler
    from sweeps.store import filters

    state = _state(study, overrides)
    state.parts()
    selects = filters.parse(only, [*state.cells.values(), *state.waiting]).matches if only else None
    if dry_run:
        agenda = Scheduler(state, selects=selects, limit=limit)
        for line in (agenda.outline, *agenda.lines()):
            click.echo(line)
        return 0

    from sweeps.driver import train
    from sweeps.report import data as report_data
    from sweeps.report import write as report
    from sweeps.store.lock import StudyLock

    state.store.prepare()
    with StudyLock(state.store) as hold:
        state.refresh()  # another run may have held the study until now
        agenda = Scheduler(state, selects=selects, limit=limit, stopped=lambda: hold.lost)
        size = f"{state.panel.name}, {_size(state.panel)}"
        click.echo(f"{state.study.study}: {size}; {agenda.outline}", err=True)
        for notice in train(state, agenda, address, waits=wait_for_nodes, needs_tracking=require_tracking):
            click.echo(f"sweep: {notice}", err=True)
    report.terminal(report_data.gather_report_data(state, brief=True))
    for trials in state.searches.values():
        click.echo(f"search {trials.outline}")
    count = _count(state, state.records())
    click.echo(f"{_counted(count)}; `{_command('ui', study, overrides)}` shows MLflow")
    return int(bool(count["failed"] or agenda.blocked))


@cli.command()
@study_argument
@click.option("--address", metavar="URL", required=True, help="The cluster's dashboard: http://HOST:8265.")
@click.option("--follow", is_flag=True, help="Show the run's log to its end; a job that runs is joined.")
@click.option("--status", "ask", is_flag=True, help="Say how the study's job is; start nothing.")
@click.option("--stop", is_flag=True, help="End the study's job, and wait until it has ended.")
@click.option("--wait-for-nodes", is_flag=True, help="As of `sweep run`.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="As of `sweep run`.")
@click.option("--only", metavar="FILTER", help="As of `sweep run`.")
@click.option(
    "--env",
    "env",
    multiple=True,
    metavar="NAME",
    help="Give the job this variable of your environment (repeatable). Whoever may open the cluster's "
    "dashboard can read it there: a role of the machines, or a variable set on them, is better for a secret.",
)
@click.option("--json", "as_json", is_flag=True, help="With --status: one JSON object instead of text.")
def submit(
    study: str,
    overrides: tuple[str, ...],
    address: str,
    follow: bool,
    ask: bool,
    stop: bool,
    wait_for_nodes: bool,
    limit: int | None,
    only: str | None,
    env: tuple[str, ...],
    as_json: bool,
) -> int:
    """`sweep run` as a job on a Ray cluster, which goes on whatever becomes of this machine.

    The job is sent the code that runs here and the study with its overrides; no data, no results, and nothing
    of the environment but what --env names. On the cluster there must be the dependencies, in the environment
    whose `python` is the first on the path where the head node starts Ray, and the same Ray as here. A table
    is read there: data.table is a path of a file system that all machines share, or a URI. So is the storage,
    relative to this folder unless it is a URI; the job proves that every node reaches it, and that the
    tracking server answers, before it trains.

    A study has one job at a time, by its name and storage. --follow shows its log and ends with the run's own
    exit status; Ctrl-C then leaves the job alone (130), as does the loss of this machine, and the same
    command joins it again. After a job that was stopped or lost, it submits one that goes on with what is
    missing.

    \b
      sweep submit quick --address http://HOST:8265 --set data.table=/shared/panel.parquet --follow
      sweep submit quick --address http://HOST:8265 --set data.table=/shared/panel.parquet --status
      sweep submit quick --address http://HOST:8265 --set data.table=/shared/panel.parquet --stop

    A cluster with a token (RAY_AUTH_MODE=token there) wants RAY_AUTH_MODE=token here too, and the token as
    RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token.
    """
    import dataclasses

    from sweeps.spec import study as studies
    from sweeps.store import filters
    from sweeps.store.records import default_tracking

    if follow + ask + stop > 1:
        raise InputError("sweep submit: give one of --follow, --status and --stop")
    if as_json and not ask:
        raise InputError("--json: is of --status; give both")
    declared, content = studies.resolve(study, overrides)
    if only:
        filters.parse(only, declared.cells())
    if declared.tracking is None and not (ask or stop):
        default_tracking(declared.storage)  # a bucket has none

    from sweeps.engine.submit import JobClient, command, environment, staged

    variables = environment(env)
    cluster = JobClient(address)
    again = f"{_command('submit', study, overrides)} --address {shlex.quote(address)}"
    job = cluster.job(declared)
    named = f"study {declared.study} with storage {declared.storage}"
    if ask:
        if job is None:
            raise InputError(f"{address}: has no job of {named}; `{again}` starts one")
        if as_json:
            found = {"study": declared.study, "storage": declared.storage, **dataclasses.asdict(job)}
            click.echo(json.dumps(found, default=lambda moment: moment.isoformat()))
        else:
            click.echo(f"{job.line}; {cluster.page(job.id)}")
        return 0
    if stop:
        if job is None or not job.runs:
            raise InputError(f"{address}: no job of {named} runs" + (f"; {job.line}" if job else ""))
        ended = cluster.stop(job.id)
        click.echo(f"{ended.line}; `{again}` goes on with what is missing")
        return 0
    if job is not None and job.runs:
        if not follow:
            raise InputError(f"{job.line}: a study has one job at a time; --follow joins it, --stop ends it")
        click.echo(f"sweep: joined {job.line}, as it was submitted then", err=True)
        name = job.id
    else:
        with staged(declared, content) as (folder, shipment):
            line = command(declared, only=only, limit=limit, wait_for_nodes=wait_for_nodes)
            name = cluster.submit(folder, declared, line, variables)
        click.echo(f"{name}: submitted with {shipment}; {cluster.page(name)}", err=True)
        if declared.data.table is not None:
            click.echo(f"  data     {declared.data.table} is read on the cluster", err=True)
        click.echo(f"  storage  {declared.storage}", err=True)
    if not follow:
        for word, told in (("--follow", "shows its log"), ("--status", ""), ("--stop", "ends it")):
            click.echo(f"  {again} {word}" + (f"  # {told}" if told else ""))
        return 0
    try:
        ended = cluster.follow(name, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(
            f"\nsweep: {name} goes on; `{again} --follow` joins it again, `{again} --stop` ends it", err=True
        )
        return _stopped()
    if ended.exit_status is None:
        raise InputError(f"{ended.line}; `{again}` goes on with what is missing")
    if ended.status != "succeeded":
        click.echo(f"sweep: {ended.line}", err=True)
    return ended.exit_status


@cli.command()
@study_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def status(study: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """How many cells are done, failed and missing; failures that are alike in one line.

    A line says how many cells failed so, what they have in common and other cells do not (as `sweep retry
    --where` takes it), the error, and in brackets the key of one of them and the hosts.
    """
    from sweeps.store import failures

    state = _state(study, overrides)
    records = state.records()
    count = _count(state, records)
    failed = failures.groups(state.cells, records, state.waiting)
    if as_json:
        content: dict[str, Any] = {"study": state.study.study, "cells": count, **_further(state)}
        content["search"] = _searched(state)
        if failed:
            content["failures"] = [group.content for group in failed]
        click.echo(json.dumps(content))
        return
    further = f"; up to {state.further} more if undecided" if state.further else ""
    click.echo(f"{state.study.study}: {_counted(count)}{further}")
    for trials in state.searches.values():
        click.echo(f"  search {trials.outline}")
    for group in failed[:FAILURES_SHOWN]:
        click.echo(f"  {group.line}")
    if more := failed[FAILURES_SHOWN:]:
        click.echo(f"  and {sum(len(group.keys) for group in more)} more, with {len(more)} other errors")
    if failed:
        tell = f"`{_command('why', study, overrides)} {failed[0].keys[0][:8]}` tells more of the first"
        click.echo(f"  {tell}; `{_command('retry', study, overrides)}` lets them run again")


@cli.command()
@study_argument
@click.option("--where", "text", metavar="FILTER", help="Only the failed cells that FILTER chooses.")
def retry(study: str, overrides: tuple[str, ...], text: str | None) -> None:
    """Forget failed cells, so that the next run tries them again; without a FILTER failed search trials too.

    A trial whose training diverged stays: that its point is bad is what the search wanted to know.

    FILTER is FIELD=VALUE: a comma means and, | means or.

    \b
      --where variant=geoclip,split=random|checkerboard
      --where error=OutOfMemoryError,host=gpu-07

    Fields: variant, fusion (- where there is none), head, arm, split (a label, or a kind), regime, fold,
    seed; and of the failure error (its type), host, and signature (any part of it, as `sweep status
    --json` has it). A filter that chooses nothing is an error.
    """
    from sweeps.store import filters
    from sweeps.store.lock import StudyLock

    state = _state(study, overrides)
    state.store.keys()  # a place that cannot be read is told as such
    with StudyLock(state.store):
        state.refresh()
        failed = {key: record for key, record in state.records().items() if record["state"] == "failed"}
        chosen = list(failed)
        if text is not None:
            filter_ = filters.parse(text, [state.cells[key] for key in failed], list(failed.values()))
            chosen = [key for key, record in failed.items() if filter_.matches(state.cells[key], record)]
        for key in chosen:
            state.store.forget(key)
        trials = state.retried_trials() if text is None else []
        for key in trials:
            state.store.search.forget(key)
    left = f"; {len(failed) - len(chosen)} others stay failed" if text is not None else ""
    what = f"{len(chosen)} failed cells" + (f" and {len(trials)} failed search trials" if trials else "")
    click.echo(f"{what} will run again with `{_command('run', study, overrides)}`{left}")


@cli.command()
@study_argument
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def why(study: str, overrides: tuple[str, ...], key: str, as_json: bool) -> None:
    """Why the cell KEY is done, failed, missing or stale. KEY may be its first digits.

    A cell is named by everything that can change its numbers. Of one that is missing this says which stored
    cell is most like it, and of one that is stored and no longer asked for (stale) which cell of the study
    is, and which parts of the two names differ: settings, the data, the encoder, the code's numbers.
    """
    from sweeps import explain as reasons

    explanation = reasons.explain(_state(study, overrides), key)
    if as_json:
        click.echo(json.dumps(explanation.content))
        return
    for line in explanation.lines:
        click.echo(line)
    if explanation.state == "failed":
        retry_it = f"{_command('retry', study, overrides)} --where {shlex.quote(explanation.where)}"
        click.echo(f"  `{retry_it}` lets it run again")
    elif explanation.state == "missing":
        click.echo(f"  `{_command('run', study, overrides)}` runs it")


@cli.command()
@study_argument
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def export(study: str, overrides: tuple[str, ...], out: Path) -> None:
    """Write one row per grid cell to OUT (.parquet or .csv)."""
    _check_suffix(out)
    frame = _state(study, overrides).rows()
    _write_frame(frame, out)
    click.echo(f"{out}: {len(frame)} cells, {int((frame['state'] == 'done').sum())} done")


@cli.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--set", "both", multiple=True, metavar="A.B=VALUE", help="Override a key of both (YAML value)."
)
@click.option("--set-a", "only_a", multiple=True, metavar="A.B=VALUE", help="Override a key of A alone.")
@click.option("--set-b", "only_b", multiple=True, metavar="A.B=VALUE", help="Override a key of B alone.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="RMSE",
    help="Test and WR RMSE may differ by so much (ug/m3); without, every metric is equal to the last digit.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="A row per cell (.parquet or .csv)."
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
    """Compare studies A and B cell by cell; exit 1 if a result or a conclusion changed.

    Cells are matched by arm, split, fold and seed, whatever their keys; A and B may be one study with
    another storage or table. Of cells that differ this says what sets their records apart: settings, data,
    encoder, numerics, device, threads, versions, commit. A cell that failed in one of the two has changed;
    one that only one of them has is told and changes nothing. The conclusions are the verdicts of each
    study's own analysis on its arms against 'none', and on its claims.
    """
    from sweeps.analysis import compare as comparing

    if out is not None:
        _check_suffix(out)
    first, second = (
        _side(reference, (*both, *own), " ".join([reference, *own]))
        for reference, own in ((a, only_a), (b, only_b))
    )
    found = comparing.compare(first, second, tolerance)
    if out is not None:
        _write_frame(found.cells, out)
    if as_json:
        click.echo(json.dumps(found.content))
    else:
        comparing.terminal(found)
        if out is not None:
            click.echo(f"{out}: {len(found.cells)} cells")
    return int(found.changed)


@cli.command()
@study_argument
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="A folder."
)
@click.option(
    "--outlines",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A GeoJSON file of state outlines for the maps; those of bokeh-sampledata, if installed, without.",
)
def report(study: str, overrides: tuple[str, ...], out: Path, outlines: Path | None) -> None:
    """Write the report: tables (Markdown, CSV, LaTeX), figures, and one self-contained HTML page."""
    import dataclasses

    from sweeps.analysis import artifacts, results
    from sweeps.report import borders as borders
    from sweeps.report import data as report_data
    from sweeps.report import figures
    from sweeps.report import write as writer

    state = _state(study, overrides)
    records = state.records()
    frame = state.rows(records)
    predictions = artifacts.predictions(state.store, frame)
    material = report_data.gather_report_data(state, records=records, rows=frame, predicted=predictions)
    pictures = figures.draw(
        frame,
        material.metric,
        contrasts=material.contrasts[material.metric],
        means=material.means[material.metric],
        ranking=material.ranking,
        predicted=predictions,
        curves=artifacts.curves(state.store, frame),
        importance=artifacts.importance(state.store, frame),
        trials=results.search_trials(state.searches),
        parameters=material.parameters,
        cuts=results.cuts(state.study, state.panel),
        outlines=borders.read(outlines or state.study.analysis.outlines),
    )
    try:
        files = writer.write(dataclasses.replace(material, pictures=pictures), out)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); give another folder with -o"
        ) from None
    for file in files:
        click.echo(str(file))


@cli.command()
@study_argument
def sync(study: str, overrides: tuple[str, ...]) -> None:
    """Rebuild the MLflow view, and Optuna's journal of the searches, from the store.

    The winner of each arm whose weights are stored is registered as a model.
    """
    from sweeps.engine.optuna_study import OptunaJournal
    from sweeps.report import data as report_data
    from sweeps.report import write as report
    from sweeps.store.lock import StudyLock
    from sweeps.tracking import parent_metrics, winners
    from sweeps.tracking.mlflow_view import Tracker

    state = _state(study, overrides)
    state.store.prepare()
    with StudyLock(state.store):  # a run writes the same views
        state.refresh()
        tracker = Tracker(state.store, state.study.tracking, state.data())
        records = state.records()
        rows = state.rows(records)
        written = tracker.sync([*records.values(), *state.trials()])
        searched = {(arm, None): counts for arm, counts in state.searched()}
        how = state.study.analysis, state.study.claims, state.study.design.looks
        tracker.answer(parent_metrics.of_rows(rows, *how) | searched)
        tracker.show(parent_metrics.pictures(state.store, rows, *how))
        tracker.describe(
            report.brief(report_data.gather_report_data(state, records=records, rows=rows, brief=True))
        )
        for winner in winners.winners(state, records):
            tracker.register(winner, winners.example(state, winner))
        journal = OptunaJournal(state.store)
        journal.write(state.searches.values())
        if journal.behind:
            raise InputError(f"{journal.behind}; the searches could not be written")
    click.echo(f"{written} runs written to {tracker.uri}")


@cli.command()
@study_argument
@click.argument("key", required=False)
@click.option("--repeats", type=click.IntRange(min=2), default=5, show_default=True)
def importance(study: str, overrides: tuple[str, ...], key: str | None, repeats: int) -> None:
    """Permutation importance of each channel, and of the embedding; for the report, too.

    Of the cell KEY, which may be its first digits; without it, of every arm's winner, the cell with the
    lowest validation RMSE. It stands beside the cell in the store, as importance.parquet.
    """
    from sweeps.engine import worker
    from sweeps.tracking import winners

    state = _state(study, overrides)
    state.store.prepare()
    if key is None:
        chosen = [*winners.best(state.study, state.cells, state.records()).values()]
        if not chosen:
            raise InputError(f"{study}: no arm has a winner yet; `{_command('run', study, overrides)}` first")
    else:
        chosen = [known for known in state.cells if known.startswith(key)]
        if len(chosen) != 1:
            raise InputError(f"{key}: names {len(chosen)} cells of {study}; `sweep export` lists the keys")
    held = state.store.holding(worker.WEIGHTS)
    have = ", ".join(known for known in state.cells if known in held) or "none"
    for lost in (known for known in chosen if known not in held):
        said = (
            f"{lost}: no weights are stored; set keep_weights: true before the cell is run "
            f"(cells that have theirs: {have})"
        )
        if key is not None or not held.intersection(chosen):
            raise InputError(said)
        click.echo(f"sweep: {state.cells[lost].label}: {said}", err=True)
    from pm25.importance import importance as permute

    for found in (known for known in chosen if known in held):
        cell, embedded = state.cells[found], state.embedded(state.cells[found])
        kept = worker.stored_weights(found, state.store)
        assert kept is not None
        vectors = embedded.vectors if embedded else None
        table = permute(cell, state.panel, kept[0], embedding=vectors, repeats=repeats)
        columns = {name: [getattr(row, name) for row in table] for name in ("what", "rmse_increase", "sd")}
        state.store.write_table(found, "importance", {**columns, "repeats": [repeats] * len(table)})
        click.echo(
            f"{cell.label}: RMSE without it, minus RMSE (ug/m3, mean and sd of {repeats} permutations)"
        )
        for row in table:
            click.echo(f"  {row.what:24} {row.rmse_increase:+8.3f} ± {row.sd:.3f}")


@cli.command()
@study_argument
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Only N of them.")
def verify(study: str, overrides: tuple[str, ...], sample: int | None) -> int:
    """Run stored cells again, here, and compare every number and prediction; exit 1 if one differs.

    Weights are compared where they are stored, and the line says so.
    """
    state = _state(study, overrides)
    done = [key for key, record in state.records().items() if record["state"] == "done"]
    if not done:
        raise InputError(f"{study}: no cell is done, so there is nothing to verify; `sweep run` first")
    # Drawn, not every n-th: arms follow each other in the grid, and a step would meet one of them only.
    chosen = sorted(random.Random(0).sample(range(len(done)), min(sample or len(done), len(done))))
    from sweeps.engine import worker

    differing, held = 0, state.store.holding(worker.WEIGHTS)
    for key in (done[i] for i in chosen):
        cell = state.cells[key]
        found = worker.differences(cell, key, state.panel, state.store, embedded=state.embedded(cell))
        differing += bool(found)
        said = f"differs in {', '.join(found)}" if found else "bitwise equal"
        click.echo(f"  {key} {cell.label}: {said}{', with weights' if key in held else ''}")
    return int(bool(differing))


@cli.command()
@study_argument
@click.option("--port", type=int, default=5000, show_default=True)
def ui(study: str, overrides: tuple[str, ...], port: int) -> None:
    """Open the MLflow UI on the study's runs."""
    from sweeps.spec import study as studies
    from sweeps.store.records import Store
    from sweeps.tracking.mlflow_view import Tracker

    declared = studies.load(study, overrides)
    tracker = Tracker(Store(declared.storage, declared.study), declared.tracking)
    served = tracker.uri.startswith("http")
    address = tracker.uri.rstrip("/") if served else f"http://127.0.0.1:{port}"
    for name, page in tracker.links().items():
        click.echo(f"{name}: {address}{page}")
    if not served:
        server = ["-m", "mlflow", "ui", "--backend-store-uri", tracker.uri, "--port", str(port)]
        os.execv(sys.executable, [sys.executable, *server])


@cli.command()
@click.option(
    "--table", type=click.Path(path_type=Path, exists=True), help="A panel to measure on; synthetic without."
)
@click.option(
    "--cells",
    multiple=True,
    type=click.IntRange(min=1),
    default=(200, 2000),
    show_default=True,
    help="The engine on so many trivial cells, beside plain Ray Tune (repeatable).",
)
@click.option(
    "--only",
    type=click.Choice(["trial", "engine", "mirror", "report", "busy", "scale"]),
    help="Only one training, only many, only their runs in MLflow, only the report, only how busy GPUs are "
    "kept, or only 100,000 cells on 512 GPUs.",
)
@click.option("--server", metavar="URI", help="An MLflow server to write 2,000 runs to; SQLite without.")
@click.option(
    "--recorded",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A study's folder in a storage, whose seconds the simulated cells take.",
)
def bench(
    table: Path | None, cells: tuple[int, ...], only: str | None, server: str | None, recorded: Path | None
) -> int:
    """Measure this machine: our costs as ratios, beside the limits the project keeps.

    20 minutes on two cores, most of it plain Ray Tune's.
    """
    import tempfile

    from rich.console import Console
    from rich.table import Table

    from sweeps.bench import busy, engine, mirror
    from sweeps.bench import report as bench_report
    from sweeps.bench import scale as bench_scale
    from sweeps.bench import trial as measurements

    grid = Table(title=measurements.machine(), title_justify="left")
    for head in ("what", "measured", "limit", "how"):
        grid.add_column(head)
    with tempfile.TemporaryDirectory() as folder:
        parts: list[Iterable[measurements.Measurement]] = []
        if only in (None, "trial"):
            if table is None:
                from pm25.sources import synthetic

                table = Path(folder) / "synthetic.parquet"  # of the real 2021 table's size
                _write_panel(synthetic.synthesize(sites=1414, days=365), table)
            parts.append(measurements.run(table, Path(folder) / "results"))
        if only in (None, "engine"):
            parts.append(engine.run(cells, Path(folder)))
        if only in (None, "mirror"):
            parts.append(mirror.run(Path(folder), server))
        if only in (None, "report"):
            parts.append(bench_report.run(Path(folder)))
        if only in (None, "busy"):
            parts.append(busy.run(Path(folder)))
        if only in (None, "scale"):
            parts.append(bench_scale.run(Path(folder), recorded))
        for row in chain.from_iterable(parts):
            measured, limit = f"{row.value:,.2f} {row.unit}".strip(), ""
            if math.isfinite(row.limit):
                limit = f"{'at least ' if row.at_least else ''}{row.limit:,g} {row.unit}".strip()
            click.echo(f"{row.what}: {measured}", err=True)
            grid.add_row(row.what, measured, limit, row.detail)
    Console(width=None if sys.stdout.isatty() else 140).print(grid)
    return 0


@cli.group()
def data() -> None:
    """Make and check tables of daily PM2.5."""


@data.command()
@click.argument("table")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object, every row named.")
def check(table: str, as_json: bool) -> int:
    """Name every problem of TABLE with its rows and column; exit 2 if there is one.

    TABLE is a path, or an address such as s3://bucket/panel.parquet.
    """
    from pm25 import panel, uri

    found = panel.check(panel.read_table(table), uri.file_name(table))
    if as_json:
        faults = {
            kind: [
                {"column": p.column, "what": p.what, "fix": p.fix, "rows": p.rows.tolist()} for p in listed
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
    from pm25.sources import synthetic as maker

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
    from pm25.sources import aqs as builder

    if (year is None) != (folder is None):
        raise InputError("data aqs: --year and --fetch go together; give both, or name the files")
    if year is not None and folder is not None:
        from pm25.sources import download

        with download.live() as progress:
            fetched = download.fetch(year, folder, progress=progress)
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
    from pm25.sources import paper_arrays

    named = channels.split(",") if channels else None
    _write_panel(paper_arrays.to_table(x, y, named, dates=dates), out)


@data.command()
@click.argument("vectors", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def embeddings(vectors: Path, out: Path) -> None:
    """Make a table encoder's Parquet of a published embeddings file (N, 2 + d): lat, lon, vector."""
    from pm25.sources import paper_arrays

    frame = paper_arrays.embeddings(vectors)
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


def _side(reference: str, overrides: tuple[str, ...], name: str) -> "StudyResults":
    from sweeps.analysis.compare import StudyResults, inferred

    state = _state(reference, overrides)
    rows = state.rows()
    return StudyResults(name, rows, state.records(), inferred(state.study, rows))


FORMATS = {".parquet": "to_parquet", ".csv": "to_csv"}
"""Of a frame with a row per cell: the suffix, and what writes it."""


def _check_suffix(out: Path) -> None:
    if out.suffix not in FORMATS:
        raise InputError(f"{out}: no format has suffix {out.suffix!r}; name it .parquet or .csv")


def _write_frame(frame: "pd.DataFrame", out: Path) -> None:
    write_file(out, lambda part: getattr(frame, FORMATS[out.suffix])(part, index=False))


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


def _count(state: "StudyState", records: "dict[str, Record]") -> dict[str, int]:
    states = [records[key]["state"] if key in records else "missing" for key in state.cells]
    states += ["missing"] * len(state.waiting)
    return {"total": len(states), **{state: states.count(state) for state in ("done", "failed", "missing")}}


def _further(state: "StudyState") -> dict[str, int]:
    """Cells that may be added at most, of a study that adds seeds to what is undecided."""
    return {} if state.looks is None else {"further": state.further}


def _searched(state: "StudyState") -> dict[str, int]:
    """Search trials; one that was pruned is done."""
    ended = [record["state"] for record in state.trials()]
    failed = ended.count("failed")
    total = sum(trials.search.trials for trials in state.searches.values())
    return {"total": total, "done": len(ended) - failed, "failed": failed}


def _counted(count: dict[str, int]) -> str:
    return "{done} of {total} cells done, {failed} failed, {missing} missing".format(**count)


def _size(panel: "Panel") -> str:
    sites, days = panel.target.shape
    return f"{sites:,} sites x {days:,} days, {panel.observed:,} observed, {len(panel.channels)} channels"
