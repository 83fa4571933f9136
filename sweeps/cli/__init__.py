"""The command line `sweep`; slow imports are inside the commands that need them."""

import os
import signal
import sys

import click

from pm25.errors import InputError
from sweeps.cli import bench, data, exit_status, results, run, status, text_encoding


def main() -> None:
    """Run the command line and exit.

    The status is 0 for success, 1 if a cell failed and 2 for bad input. It is 3 if the cluster is lost, and 4
    if another process has taken over the study. After an interrupt it is 130 or 143.
    """
    text_encoding.use_utf8()
    signal.signal(signal.SIGTERM, exit_status.end_on_signal)
    try:
        _check_current_folder()
        status = cli(prog_name="sweep", standalone_mode=False)
    except InputError as error:
        click.echo(f"sweep: {error}", err=True)
        status = getattr(error, "status", exit_status.BAD_INPUT)
    except click.exceptions.NoArgsIsHelpError as error:  # `sweep` alone
        error.show()
        status = exit_status.BAD_INPUT
    except click.ClickException as error:
        click.echo(f"sweep: {usage_error(error)}", err=True)
        status = exit_status.BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        click.echo("sweep: interrupted; run the same command again to resume", err=True)
        status = exit_status.interrupted()
    if status == exit_status.CLUSTER_LOST:  # Ray's exit handlers would wait for the lost head node
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pm25-sweeps")
def cli() -> None:
    """Test whether the location helps a PM2.5 model, within region and out of region.

    STUDY is a study file, or the name of a shipped study: demo, quick, paper2025.
    """


for command in (
    *(run.plan, run.run, run.submit, run.retry, run.why),
    *(status.status, status.list_),
    *(results.export, results.compare, results.report, results.sync),
    *(results.importance, results.verify, results.ui),
    bench.bench,
    data.data,
):
    cli.add_command(command)
