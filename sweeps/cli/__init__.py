"""The command line `sweep`; slow imports are inside the commands that need them."""

import gc
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path

import click

from pm25.errors import InputError
from pm25.redaction import redacted
from sweeps import exit_status
from sweeps.cli import bench, data, maps, results, run, standard_streams, status, storage, text_encoding

DEBUG = "SWEEP_DEBUG"
"""Environment variable of `--debug`, which the processes of a run inherit."""

COLLECTED = 20_000
"""New objects after which Python looks for garbage.

Its default of 700 costs a tenth of the time of `sweep status` on 10,000 cells.
"""


def main() -> None:
    """Run the command line and exit.

    The status is 0 for success, 1 if a cell failed or is damaged, and 2 for bad input or a fault of the
    system. It is 3 if Ray is lost, 4 if another process has taken over the study, and 70 for a bug. After an
    interrupt it is 130 or 143.
    """
    standard_streams.open_closed()
    text_encoding.use_utf8()
    gc.set_threshold(COLLECTED)
    signal.signal(signal.SIGTERM, exit_status.end_on_signal)
    output = sys.stdout
    try:
        _check_current_folder()
        status = cli(prog_name="sweep", standalone_mode=False)
    except SystemExit as error:
        # click replaces an output that was closed, and rich ends with status 1.
        if sys.stdout is output and not isinstance(error.__context__, BrokenPipeError):
            raise
        status = exit_status.OUTPUT_CLOSED
    except click.exceptions.NoArgsIsHelpError as error:  # `sweep` alone
        error.show()
        status = exit_status.BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        click.echo("sweep: interrupted; run the same command again to resume", err=True)
        status = exit_status.interrupted()
    except Exception as error:
        if os.environ.get(DEBUG):
            click.echo(redacted(traceback.format_exc()), err=True)
        line, status = _described(error)
        click.echo(f"sweep: {line}", err=True)
    if status == exit_status.RAY_LOST:  # Ray's exit handlers would wait for what is lost
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _described(error: Exception) -> tuple[str, int]:
    """Return the line and the exit status of an error."""
    if isinstance(error, InputError):
        return str(error), getattr(error, "status", exit_status.BAD_INPUT)
    if isinstance(error, click.ClickException):
        return str(usage_error(error)), exit_status.BAD_INPUT
    if isinstance(error, OSError) and error.errno is not None:
        where = str(error.filename or "this command")
        problem = f"cannot be used ({os.strerror(error.errno)})"
        fix = "check the disk and the permissions, then run the same command again"
        return str(InputError(where, "", problem, fix)), exit_status.BAD_INPUT
    if isinstance(error, MemoryError):
        fix = "free memory, or use a larger machine"
        return str(InputError("this command", "", "the memory is used up", fix)), exit_status.BAD_INPUT
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    found = f"{type(error).__name__}: {error}".rstrip(": ")
    command = shlex.join(["sweep", "--debug", *(word for word in sys.argv[1:] if word != "--debug")])
    fix = f"report it with the output of `{command}`"
    return str(InputError("this is a bug", "", f"{found} [{place}]", fix)), exit_status.BUG


def _check_current_folder() -> None:
    """Raise InputError if the current folder was deleted, because relative paths then mean nothing."""
    try:
        os.getcwd()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError("current folder", "", f"cannot be used ({reason})", "change to another") from None


def usage_error(error: click.ClickException) -> InputError:
    """Make an InputError of a wrong option or argument; the command and the option are its place."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context is not None else "sweep"
    option = ""
    if isinstance(error, click.BadParameter) and error.param is not None:
        option = error.param.get_error_hint(context) if context is not None else str(error.param.name)
    problem = error.message or "missing" if option else error.format_message()
    problem = problem.replace("valid integer range", "whole number").replace("valid float range", "number")
    where = command.removeprefix("sweep").strip() or "command line"
    return InputError(where, option.replace("'", ""), problem, f"see `{command} --help`")


def _set_debug(_: click.Context, __: click.Parameter, value: bool) -> None:
    if value:
        os.environ[DEBUG] = "1"
    else:
        os.environ.pop(DEBUG, None)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pm25-sweeps")
@click.option(
    "--debug",
    is_flag=True,
    envvar=DEBUG,
    expose_value=False,
    callback=_set_debug,
    help="Show the traceback of an error. The environment variable SWEEP_DEBUG=1 does the same.",
)
def cli() -> None:
    """Test whether the location helps a PM2.5 model, within region and out of region.

    STUDY is a study file, or the name of a shipped study: demo, smoke, quick, paper2025.
    """


for command in (
    *(run.plan, run.run, run.submit, run.retry, run.why),
    *(status.status, status.list_),
    *(results.export, results.compare, results.report, results.sync),
    *(results.importance, results.verify, results.ui),
    *(maps.map_, storage.fsck, storage.seal),
    bench.bench,
    data.data,
):
    cli.add_command(command)
