"""Files that commands write: completely or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pm25.errors import InputError
from pm25.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

FORMATS = {".parquet": "to_parquet", ".csv": "to_csv"}
"""Suffix of a table of cells, and the DataFrame method that writes it."""


def check_suffix(out: Path) -> None:
    """Raise InputError if the file's suffix is not a known table format."""
    if out.suffix not in FORMATS:
        raise InputError(str(out), "", f"no format has suffix {out.suffix!r}", "name it .parquet or .csv")


def write_cells(frame: "pd.DataFrame", out: Path) -> None:
    """Write a table of cells in the format of the file's suffix."""
    write_file(out, lambda part: getattr(frame, FORMATS[out.suffix])(part, index=False))


def write_parquet(frame: "pd.DataFrame", out: Path) -> None:
    """Write a table as Parquet; raise InputError if the file has another suffix."""
    if out.suffix != ".parquet":
        name = out.with_suffix(".parquet").name
        raise InputError(
            str(out), "", f"the table is written as Parquet, not {out.suffix!r}", f"name it {name}"
        )
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
        reason = error.strerror or str(error)
        raise InputError(
            str(out), "", f"the file cannot be written ({reason})", "choose another path"
        ) from None
