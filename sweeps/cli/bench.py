"""The command that measures this machine."""

import math
import sys
from pathlib import Path

import click

from sweeps.cli.shared import examples
from sweeps.spec.limits import MOST_CELLS

GROUPS = ("trial", "engine", "mirror", "report", "busy", "scale", "calibration")
"""Groups of measurements (`sweeps.bench.suite`)."""


@click.command(epilog=examples("bench --only trial", "bench --only calibration --studies 100"))
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
    help="Measure one group only: a training, the engine, the runs in MLflow, the report, how busy GPUs are "
    "kept, or 100,000 cells on 512 GPUs. `calibration` measures the size and power of the tests.",
)
@click.option(
    "--server", metavar="URI", help="Also write 2,000 runs to this MLflow server; SQLite is always measured."
)
@click.option(
    "--recorded",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Draw the seconds of simulated cells from this study's folder in a storage.",
)
@click.option(
    "--studies",
    type=click.IntRange(20, 100_000),
    default=500,
    show_default=True,
    help="Simulate this many studies of each kind (--only calibration).",
)
def bench(
    table: Path | None,
    cells: tuple[int, ...],
    only: str | None,
    server: str | None,
    recorded: Path | None,
    studies: int,
) -> int:
    """Measure this machine, or with --only calibration the tests of the report.

    Each value is printed next to its limit. All groups take about 20 minutes on two cores; most of that
    is plain Ray Tune. The calibration is not among them.
    """
    from rich.console import Console
    from rich.table import Table

    from sweeps.bench import harness, suite

    grid = Table(title=harness.machine(), title_justify="left")
    for head in ("what", "measured", "limit", "how"):
        grid.add_column(head)
    for row in suite.measure(
        only, table=table, cells=cells, server=server, recorded=recorded, studies=studies
    ):
        measured, limit = f"{row.value:,.2f} {row.unit}".strip(), ""
        if math.isfinite(row.limit):
            limit = f"{'at least ' if row.at_least else ''}{row.limit:,g} {row.unit}".strip()
        click.echo(f"{row.what}: {measured}", err=True)
        grid.add_row(row.what, measured, limit, row.detail)
    Console(width=None if sys.stdout.isatty() else 140).print(grid)
    return 0
