"""Arguments, option types and short texts that several commands share."""

import contextlib
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from pm25.errors import InputError
from sweeps.spec.limits import MOST_HOURS
from sweeps.spec.tracking_address import shown_override

if TYPE_CHECKING:
    from pm25.panel import Panel
    from sweeps.state import StudyState


def study_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument STUDY and the option `--set` to a command."""
    override = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="A.B=VALUE",
        help="Override a key of the study with a YAML value (repeatable).",
    )
    return click.argument("study")(override(command))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def examples(*lines: str) -> str:
    """Format the examples that end the help of a command; each line is given without `sweep`."""
    return "\n".join(["\b", "Examples:", *(f"  sweep {line}" for line in lines)])


class FiniteRange(click.FloatRange):
    """Number in a range; NaN, which no comparison excludes, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert the text to a number."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class Duration(click.ParamType):
    """Duration such as `90m`, `40h` or `2d`, converted to hours."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert the text to hours."""
        number = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", str(value))
        hours = float(number[1]) * {"m": 1 / 60, "h": 1, "d": 24}[number[2]] if number is not None else 0.0
        if not hours:
            self.fail(f"{value!r} is not a duration such as 90m, 40h or 2d", param, ctx)
        if hours > MOST_HOURS:
            self.fail(f"{value!r} is more than {MOST_HOURS:,} hours", param, ctx)
        return hours


def open_state(study: str, overrides: tuple[str, ...]) -> "StudyState":
    """Read the study and its store."""
    from sweeps.state import StudyState

    return StudyState(study, overrides)


def print_storage(*states: "StudyState") -> None:
    """Print where the results of each study are, in a line of standard error; equal lines once.

    A further line says if the channels of a study have another order than the columns of its table.
    """
    for line in dict.fromkeys(f"{state.study.study}: storage {state.shown_storage}" for state in states):
        click.echo(line, err=True)
    for state in states:
        if state.reordered:
            order = "the channels have the order of the stored results, not of the table's columns"
            click.echo(f"{state.study.study}: {order}", err=True)


def refuse_without_records(state: "StudyState", study: str, overrides: tuple[str, ...]) -> None:
    """Raise InputError if no cell and no search trial of the study has ended in its storage."""
    stored = state.store.keys()
    if any(state.store.record(key) is not None for key in state.cells if key in stored) or state.trials():
        return
    stale = len(stored - state.cells.keys())
    problem = f"no cell of study {state.study.study} has ended there"
    if stale:
        problem += f"; its {stale} stored cells are of other settings or other data"
    run = command_line("run", study, overrides)
    fix = f"add --set storage=FOLDER if the study ran elsewhere, or run `{run}`"
    raise InputError(state.shown_storage, "storage", problem, fix)


def command_line(name: str, study: str, overrides: tuple[str, ...]) -> str:
    """Format another command on the same study, quoted for a shell; passwords of addresses are left out."""
    sets = (part for value in overrides for part in ("--set", shown_override(value)))
    return shlex.join(["sweep", name, study, *sets])


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows with equal keys as a table; None is an empty entry. A log file gets lines of any length."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        numbers = all(isinstance(row[name], int | float | None) for row in rows)
        table.add_column(Text(name.replace("_", " ")), justify="right" if numbers else "left", no_wrap=True)
    for row in rows:
        texts = (f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row.values())
        table.add_row(*(Text("" if text == "None" else text) for text in texts))
    console = Console()
    if not console.is_terminal:
        console.width = 1000
    console.print(table)


def complete_commands(text: str, study: str, overrides: tuple[str, ...]) -> str:
    """Complete commands such as `sweep sync STUDY` in a text with the study and its overrides."""
    for name in ("sync", "retry", "run"):
        text = text.replace(f"sweep {name} STUDY", command_line(name, study, overrides))
    return text


def print_damaged(state: "StudyState", study: str, overrides: tuple[str, ...]) -> None:
    """Print what is damaged, as the last reading of the study's records found it, on standard error."""
    from sweeps.store import integrity

    for line in integrity.notices(state.damaged):
        click.echo(f"sweep: {complete_commands(line, study, overrides)}", err=True)


@contextlib.contextmanager
def fix_names_study(study: str, overrides: tuple[str, ...]) -> Iterator[None]:
    """Complete commands such as `sweep sync STUDY` in the fix of an error."""
    try:
        yield
    except InputError as error:
        error.fix = complete_commands(error.fix, study, overrides)
        raise


def cell_counts(count: Mapping[str, int]) -> str:
    """Format the counts of `StudyState.cell_counts`."""
    text = "{done} of {total} cells done, {failed} failed, {missing} missing".format(**count)
    return text + (f", {count['damaged']} damaged" if count["damaged"] else "")


def panel_size(panel: "Panel") -> str:
    """Format the numbers of sites, days, observations and channels."""
    sites, days = panel.target.shape
    return f"{sites:,} sites x {days:,} days, {panel.observed:,} observed, {len(panel.channels)} channels"
