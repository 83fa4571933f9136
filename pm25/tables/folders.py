"""Reads a folder of Parquet files as one table."""

from collections.abc import Callable, Sequence
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet

from pm25.errors import InputError
from pm25.limits import MOST_FILES
from pm25.tables.formats import PARQUET, TEXT, strip_packing
from pm25.tables.notes import attach
from pm25.tables.plain import plain_table, type_name
from pm25.tables.schema import REQUIRED, refuse_large
from pm25.text import counted


def read_folder(
    system: pyarrow.fs.FileSystem,
    folder: str,
    where: str,
    wanted: Callable[[Sequence[str]], list[str] | None],
    text_columns: Sequence[str],
) -> pa.Table:
    """Read all Parquet files below a folder, in the order of their names.

    Folders named column=value give their files a column, as in a Hive data set. `text_columns` among them
    stay text, so that their zeros are kept. `wanted` chooses from the columns of a file; None means all.
    Raises InputError.
    """
    files = _find_files(system, folder, where)
    if len(files) > MOST_FILES:
        what = f"{len(files):,} Parquet files, but at most {MOST_FILES:,} are allowed"
        raise InputError(where, "", what, "write them as fewer files")
    tables, rows = [], 0
    for file in files:
        try:
            given = _given_columns(file)
            found = pyarrow.parquet.read_metadata(f"{folder}/{file}", filesystem=system)
            names = found.schema.to_arrow_schema().names
            rows += found.num_rows
            columns = wanted([*names, *given])
            columns = columns and [name for name in columns if name not in given]
            refuse_large(where, rows, len(names if columns is None else columns))
            table = pyarrow.parquet.read_table(
                f"{folder}/{file}", filesystem=system, columns=columns, partitioning=None
            )
            table = plain_table(table).replace_schema_metadata(None)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(
                f"{where}/{file}", "", f"cannot be read as parquet ({reason})", "write it again"
            ) from None
        for name, value in given.items():
            if name in table.column_names:
                table = table.drop_columns(name)
            table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
        tables.append(table)
    refuse_large(where, 0, len({name for part in tables for name in part.column_names}))
    table = _join(tables, files, where)
    for name in dict.fromkeys(name for file in files for name in _given_columns(file)):
        if name not in text_columns:
            table = table.set_column(table.column_names.index(name), name, _as_number(table[name]))
    notices = []
    for column in dict.fromkeys(table.column_names):
        lack = [file for file, part in zip(files, tables, strict=True) if column not in part.column_names]
        if lack:
            what = f"{len(lack)} of {len(files)} files have no such column, the first is {lack[0]}"
            notices.append((column, f"{what}; its values are missing there"))
    order = f"s are counted through {len(files)} files in the order of their names"
    return attach(table, f"row{order if len(files) > 1 else ' 1 is the first row of data'}", notices)


def _join(tables: Sequence[pa.Table], files: Sequence[str], where: str) -> pa.Table:
    """Append tables whose columns may have other orders and widths. Raises InputError for other types."""
    kinds: dict[str, tuple[pa.DataType, str]] = {}
    for table, file in zip(tables, files, strict=True):
        for name, kind in zip(table.column_names, table.schema.types, strict=True):
            first, earlier = kinds.setdefault(name, (kind, file))
            try:
                both = pa.unify_schemas(
                    [pa.schema([(name, k)]) for k in (first, kind)], promote_options="permissive"
                )
            except pa.ArrowException:
                what = f"the column is {type_name(first)} in {earlier}, but {type_name(kind)} in {file}"
                raise InputError(where, name, what, "write all files with the same types") from None
            kinds[name] = both.field(name).type, earlier
    return pa.concat_tables(tables, promote_options="permissive")


def _find_files(system: pyarrow.fs.FileSystem, folder: str, where: str) -> list[str]:
    """Find Parquet files below a folder, relative to it and ordered by name. Raises InputError if none."""
    found = system.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True))
    files = [info.path[len(folder) :].lstrip("/") for info in found if info.type == pyarrow.fs.FileType.File]
    files = [f for f in files if not any(part.startswith((".", "_")) for part in f.split("/"))]
    parquet = sorted(file for file in files if file.lower().endswith(PARQUET))
    if parquet:
        return parquet
    texts = sorted(file for file in files if strip_packing(file.lower())[0].endswith(TEXT))
    if texts:
        what = f"a folder with {counted(len(texts), 'text file')} and no .parquet file"
        raise InputError(where, "", what, f"give one file, such as {where.rstrip('/')}/{texts[0]}")
    fix = f"give a .parquet or .csv table with columns {', '.join(REQUIRED)}"
    raise InputError(where, "", "a folder without a .parquet file", fix)


def _given_columns(file: str) -> dict[str, str | None]:
    """Columns that the folders of a file give it, as text: site_id=06-001/a.parquet gives site_id."""
    pairs = (part.split("=", 1) for part in file.split("/")[:-1] if "=" in part)
    return {
        unquote(name): None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
        for name, value in pairs
    }


def _as_number(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert text to numbers if all of it is, as in a CSV."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return pc.cast(column, kind)
        except pa.ArrowInvalid:
            continue
    return column
