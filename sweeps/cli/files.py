"""Files that commands write: completely or not at all."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pm25.errors import InputError
from pm25.files import check_folder, write_atomically

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".parquet", ".csv")
"""Suffixes of a table of cells."""


def check_cells(out: Path) -> None:
    """Raise InputError if a table of cells cannot be written to the file, before the work for it starts."""
    if out.suffix not in FORMATS:
        raise InputError(str(out), "", f"no format has suffix {out.suffix!r}", "name it .parquet or .csv")
    check_file(out)


def check_parquet(out: Path) -> None:
    """Raise InputError if a Parquet file cannot be written there, before the work for it starts."""
    if out.suffix != ".parquet":
        name = f"{out.stem or 'table'}.parquet"  # an empty path has no name
        raise InputError(
            str(out), "", f"the table is written as Parquet, not {out.suffix!r}", f"name it {name}"
        )
    check_file(out)


def check_file(out: Path) -> None:
    """Raise InputError if the file cannot be written, before the work for it starts."""
    try:
        if not out.parent.exists():
            fix = f"create it with `mkdir -p {shlex.quote(str(out.parent))}`, or choose another path"
            raise InputError(str(out), "", f"folder {out.parent} does not exist", fix)
        check_folder(out.parent)
    except OSError as error:
        raise _cannot_be_written(out, error) from None


def _cannot_be_written(out: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(str(out), "", f"the file cannot be written ({reason})", "choose another path")


def write_cells(frame: "pd.DataFrame", out: Path) -> None:
    """Write a table of cells in the format of the file's suffix."""
    if out.suffix == ".csv":
        from sweeps.report import tables

        write_file(out, lambda part: part.write_bytes(tables.csv(frame).encode()))
    else:
        write_parquet(frame, out)


def write_parquet(frame: "pd.DataFrame", out: Path) -> None:
    """Write a table as Parquet; raise InputError if the file has another suffix."""
    check_parquet(out)
    write_file(out, lambda part: frame.to_parquet(part, index=False))


def write_panel(frame: "pd.DataFrame", out: Path) -> str:
    """Write a panel as Parquet and describe its size."""
    write_parquet(frame, out)
    observed, sites = int(frame["pm25"].notna().sum()), frame["site_id"].nunique()
    return f"{out}: {sites:,} sites, {frame['date'].nunique():,} days, {observed:,} observed"


def write_file(out: Path, write: Callable[[Path], Any]) -> None:
    """Write a file with `write_atomically`; raise InputError if it cannot be written."""
    try:
        write_atomically(out, write)
    except OSError as error:
        raise _cannot_be_written(out, error) from None
