"""The command that measures this machine."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pm25.errors import InputError
from sweeps.cli.shared import examples, json_option
from sweeps.spec.limits import MOST_CELLS

if TYPE_CHECKING:
    from sweeps.bench.chaos import Tally
    from sweeps.bench.harness import Measurement

GROUPS = (
    "trial",
    "training",
    "engine",
    "mirror",
    "report",
    "map",
    "busy",
    "scale",
    "gpu",
    "calibration",
    "coverage",
    "chaos",
)
"""Groups of measurements (`sweeps.bench.suite`)."""


@click.command(
    epilog=examples(
        "bench --only trial",
        "bench --only training",
        "bench --only calibration --studies 100",
        "bench --only coverage --studies 50",
        "bench --only chaos --minutes 60 --seed 1",
    )
)
@click.option(
    "--table",
    type=click.Path(path_type=Path, exists=True),
    help="Measure on this panel; default: a synthetic one.",
)
@click.option(
    "--cells",
    multiple=True,
    type=click.IntRange(1, MOST_CELLS),
    default=(200, 2000),
    show_default=True,
    help="Run the engine on this many trivial cells, next to plain Ray Tune (repeatable).",
)
@click.option(
    "--only",
    type=click.Choice(GROUPS),
    help="Measure one group only: a training, trainings on all cores, the engine, runs in MLflow, the "
    "report, a map, busy GPUs, or a driver of 512 GPUs. `gpu` measures trainings on a GPU. `calibration` "
    "measures the size and power of the tests, and `coverage` prediction intervals by region. `chaos` runs a "
    "study under random faults.",
)
@click.option(
    "--server", metavar="URI", help="Also write 2,000 runs to this MLflow server; SQLite is always measured."
)
@click.option(
    "--keras",
    metavar="PYTHON",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Also train the published Keras network, with this interpreter, which has TensorFlow.",
)
@click.option(
    "--recorded",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Draw the seconds of simulated cells from this study's folder in a storage.",
)
@click.option(
    "--pretend", is_flag=True, help="Try the command without a GPU, and report no numbers (--only gpu)."
)
@click.option(
    "--studies",
    type=click.IntRange(20, 100_000),
    default=500,
    show_default=True,
    help="Simulate this many studies of each kind (--only calibration or coverage).",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Start no further episode after this time (--only chaos).",
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Draw these faults (--only chaos); default: a random seed."
)
@click.option(
    "--round",
    "only_round",
    type=click.IntRange(min=0),
    metavar="N",
    help="Repeat only the round N of a seed (--only chaos).",
)
@json_option
def bench(
    table: Path | None,
    cells: tuple[int, ...],
    only: str | None,
    server: str | None,
    keras: Path | None,
    recorded: Path | None,
    pretend: bool,
    studies: int,
    minutes: float,
    seed: int | None,
    only_round: int | None,
    as_json: bool,
) -> int:
    """Measure this machine, the tests of the report, or what faults do to a study.

    Each value is printed next to its limit. Without --only, all groups are measured but busy, scale, gpu,
    calibration, coverage and chaos. With --cells 200 that takes about 15 minutes on two cores.

    --only training measures windows per second of trainings on all cores in about four minutes: one training
    or one on each core, in fp32 and bf16, beside the published Keras network and the peak of matrix products.

    --only gpu measures one training, several processes and stacks on one GPU in about eight minutes, and the
    memory that they need. It estimates the time of the published study.

    --only coverage simulates the coverage of prediction intervals in regions that did not calibrate them.
    Beside it is the coverage with single days as the units. 50 studies take about two minutes.

    --only chaos kills processes, damages files and withdraws the storage, and counts what was lost, repeated
    or believed. Faults of file systems need root. The exit status is 1 after a bad outcome, whose folder is
    kept. Ctrl-C prints what was counted so far.
    """
    from sweeps.bench import harness, suite

    _refuse_options_of_another_group(only)
    if only_round is not None and seed is None:
        raise InputError("sweep bench", "--round", "the option needs --seed", "give the seed of the round")
    tally = None
    rows: Iterable[Measurement]
    if only == "chaos":
        from sweeps.bench import chaos

        tally = chaos.run(minutes, seed, only_round, lambda line: click.echo(line, err=True))
        rows = tally.measurements()
    else:
        rows = suite.measure(
            only,
            table=table,
            cells=cells,
            server=server,
            keras=keras,
            recorded=recorded,
            studies=studies,
            pretend=pretend,
        )
    found = []
    for row in rows:
        click.echo(f"{row.what}: {_value(row)}", err=True)
        found.append(row)
    if as_json:
        measured = [
            {**row._asdict(), "value": _finite(row.value), "limit": _finite(row.limit)} for row in found
        ]
        content: dict[str, Any] = {"machine": harness.machine(), "measurements": measured}
        click.echo(json.dumps(content | ({} if tally is None else {"chaos": tally.content})))
    else:
        heads = ("what", "measured", "limit", "how")
        _print(harness.machine(), heads, [(row.what, _value(row), _limit(row), row.detail) for row in found])
        if tally is not None:
            _print_chaos(tally)
    return int(tally is not None and bool(tally.bad or tally.stopped))


def _value(row: "Measurement") -> str:
    if math.isnan(row.value):
        return "not measured"
    return f"{row.value:,.2f} {row.unit}".strip() if row.value % 1 or row.unit else f"{row.value:,g}"


def _limit(row: "Measurement") -> str:
    if not math.isfinite(row.limit):
        return ""
    return f"{'at least ' if row.at_least else ''}{row.limit:,g} {row.unit}".strip()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _print(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], width: int = 140) -> None:
    """Print a table; `width` is its number of characters in a file."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title, title_justify="left")
    for head in heads:
        grid.add_column(head)
    for row in rows:
        grid.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else width).print(grid)


def _print_chaos(tally: "Tally") -> None:
    """Print the faults by kind, the kinds that this process may not do, and each bad outcome."""
    heads = ("fault", "count", "exit statuses", "bad outcomes", "what the user saw, for example")
    rows = [
        (
            row["fault"],
            str(row["count"]),
            _counts(row["statuses"]),
            _counts(row["bad"]),
            row["line"],
        )
        for row in tally.table()
    ]
    _print(f"Faults of seed {tally.seed}", heads, rows, width=240)
    if tally.impossible:
        click.echo(f"not possible for this process: {', '.join(tally.impossible)}")
    for line in tally.lines():
        click.echo(line)
    if tally.stopped:
        click.echo(f"the rounds ended early, in {tally.stopped}")


def _counts(numbers: Mapping[str, int]) -> str:
    """Format numbers by name, such as `0: 12, 2: 1`."""
    return ", ".join(f"{name}: {number}" for name, number in numbers.items())


_NAMED_ONLY = ("gpu", "calibration", "coverage", "chaos")
"""Groups that run only if they are named."""
_OPTIONS_OF = {
    "keras": ("training",),
    "pretend": ("gpu",),
    "studies": ("calibration", "coverage"),
    "minutes": ("chaos",),
    "seed": ("chaos",),
    "only_round": ("chaos",),
}
"""Groups that have each option, by the option's parameter."""


def _refuse_options_of_another_group(only: str | None) -> None:
    """Raise InputError if an option was given that the chosen group does not have."""
    context = click.get_current_context()
    for parameter in context.command.params:
        groups = _OPTIONS_OF.get(str(parameter.name), ())
        given = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        runs = only in groups or (only is None and not {*groups} <= {*_NAMED_ONLY})
        if groups and given and not runs:
            fix = f"add --only {groups[0]}, or leave the option out"
            problem = f"an option of --only {' or '.join(groups)}"
            raise InputError("sweep bench", parameter.opts[-1], problem, fix)
