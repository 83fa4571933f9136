"""Reads delimited text, and finds its encoding, delimiter, decimal mark and comments in the text itself."""

import codecs
import csv
import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pm25.errors import InputError
from pm25.limits import MOST_ROW_BYTES
from pm25.tables.notes import attach
from pm25.tables.schema import REQUIRED, refuse_large
from pm25.text import counted

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)?")
_AS_UTF8 = "save it as UTF-8"
_NUMBER_PARTS = r"^(\s*[-+]?\d*),(\d+(?:[eE][-+]?\d+)?\s*)$"
_COMMA_NUMBER = r"^\s*[-+]?\d*,\d+(?:[eE][-+]?\d+)?\s*$"
_THOUSANDS = r"^\s*[-+]?\d{1,3}(?:,\d{3})+\s*$"


def read_delimited(content: bytes, where: str, text_columns: Sequence[str]) -> pa.Table:
    """Read a table from the bytes of a text file. `text_columns` stay text, so that their zeros are kept.

    Raises InputError, which names `where`, if the text can be read in no way or in several ways.
    """
    text, notices = _decode(content, where)
    start, line, delimiter = _find_header(text, where)
    body = text[start:].encode()
    del text
    refuse_large(where, 0, body[: body.find(b"\n")].count(delimiter.encode()) + 1)
    kinds = dict.fromkeys(text_columns, pa.string())
    table = _parse(body, delimiter, ".", kinds, where)
    example = _decimal_comma(table, text_columns)
    if example is not None:
        table = _with_points(_parse(body, delimiter, ",", kinds, where), text_columns)
        notices.append(("", f"numbers have decimal commas, such as {example!r}"))
    return attach(table, _numbering(body, line, table.num_rows), notices)


def _decode(content: bytes, where: str) -> tuple[str, list[tuple[str, str]]]:
    """Decode the text, and return it with a notice if its encoding is a conclusion. Raises InputError."""
    notices = []
    encoding, start = next(((e, len(bom)) for bom, e in _BOMS if content.startswith(bom)), ("", 0))
    if not encoding:
        encoding = _wide(content[:4096]) or "utf-8"
    try:
        text = content[start:].decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or start or not _is_latin1(content):
            row = content.count(b"\n", 0, start + error.start) + 1
            what = f"byte 0x{content[start + error.start]:02x} in line {row} is not {encoding.upper()}"
            raise InputError(where, "", f"the text cannot be decoded: {what}", _AS_UTF8) from None
        text = content.decode("latin-1")
        word = re.search(r"[^\s,;|\"]*[^\x00-\x7f][^\s,;|\"]*", text)
        example = f", such as {word[0][:30]!r}" if word else ""
        notices.append(("", f"the text is not UTF-8 and is read as Latin-1{example}"))
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(
            where, "", f"a NUL character in line {row}: the file is binary or damaged", "write it again"
        )
    return text, notices


def _wide(head: bytes) -> str:
    """UTF-16 if every other byte of the beginning is zero, as in ASCII text without a byte order mark."""
    half = len(head) // 2
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if odd > 0.8 * half and not even:
        return "utf-16-le"
    return "utf-16-be" if even > 0.8 * half and not odd else ""


def _is_latin1(content: bytes) -> bool:
    """Tell whether the bytes that are not ASCII are single letters or signs of Latin-1.

    Two in a row are damaged UTF-8, Cyrillic or Chinese. Bytes 0x80 to 0x9f differ between systems.
    """
    return not re.search(rb"[\x80-\x9f]|[\xa0-\xff]{2}", content)


def _find_header(text: str, where: str) -> tuple[int, int, str]:
    """Return the position of the header, its line (from 1), and the delimiter. Raises InputError."""
    position, line, given = 0, 1, ""
    while position < len(text):
        found = _LINE.match(text, position)
        assert found is not None
        header = found[0].strip("\r\n")
        if header.startswith("#") and {"site_id", "date"} <= set(re.split(r"[#\s,;|\"]+", header)):
            position += header.index(header.lstrip("# "))  # the header itself looks like a comment
            header = header.lstrip("# ")
        elif header.lower().startswith("sep=") and len(header) == 5:  # Excel's own mark
            given = header[4]
            header = ""
        if header.strip() and not header.startswith("#"):
            return position, line, _delimiter(header, given, where)
        position, line = found.end(), line + 1
    what = "only blank lines and comments" if text.strip() else "only blanks"
    fix = f"give a .parquet or .csv table with columns {', '.join(REQUIRED)}"
    raise InputError(where, "", f"the file contains {what}", fix)


def _delimiter(header: str, given: str, where: str) -> str:
    """Find the delimiter that gives the header the most columns. Raises InputError for blanks."""
    if given in _DELIMITERS:
        return given
    width = {d: _width(header, d) for d in _DELIMITERS}
    best = max(width, key=lambda d: width[d])
    words = header.split()
    if width[best] == 1 and len(words) >= len(REQUIRED):
        what = f"no comma, semicolon, tab or bar separates the columns ({' '.join(words)[:60]})"
        raise InputError(where, "", what, "separate the columns with commas")
    return best


def _width(header: str, delimiter: str) -> int:
    """Count the columns of a header; one if a name is longer than the reader allows (131,072 characters)."""
    try:
        return len(next(csv.reader([header], delimiter=delimiter, strict=False)))
    except csv.Error:
        return 1


def _parse(body: bytes, delimiter: str, decimal: str, kinds: dict[str, pa.DataType], where: str) -> pa.Table:
    """Read the text from its header on, without lines of comments. Raises InputError for other short rows."""
    body = body if body.endswith((b"\n", b"\r")) else body + b"\n"  # without it, a header alone is no table

    def read(threads: bool) -> tuple[pa.Table, list[pyarrow.csv.InvalidRow]]:
        odd: list[pyarrow.csv.InvalidRow] = []

        def skip(row: pyarrow.csv.InvalidRow) -> str:
            odd.append(row)
            return "skip"

        table = pyarrow.csv.read_csv(
            pa.BufferReader(body),
            read_options=pyarrow.csv.ReadOptions(use_threads=threads, block_size=MOST_ROW_BYTES),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=b'"' in body, invalid_row_handler=skip
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=kinds, strings_can_be_null=True, decimal_point=decimal
            ),
        )
        return table, odd

    try:
        table, odd = read(threads=True)
    except pa.ArrowInvalid as error:
        if "straddl" not in str(error):  # pyarrow has read no end of a row in a block
            raise
        problem = f"a row has more than {MOST_ROW_BYTES:,} bytes"
        raise InputError(where, "", problem, "close the quotation mark that is open, or shorten it") from None
    if all(_is_comment(row) for row in odd):
        return table
    _, odd = read(threads=False)  # which knows the number of each row; the header is the first
    index, bad = next((i, row) for i, row in enumerate(odd) if not _is_comment(row))
    values, columns = counted(bad.actual_columns, "value"), counted(bad.expected_columns, "column")
    what = f"row {bad.number - 1 - index} has {values}, but the header has {columns}"
    start = " ".join(bad.text.split())[:40]
    if bad.text.count('"') % 2:
        raise InputError(
            where, "", f"{what}: a quotation mark is not closed ({start})", "close it or leave it out"
        )
    fix = f"separate the values with {_DELIMITERS[delimiter]}, and put quotation marks around text with any"
    first = ('"1"',) if delimiter == "," else ('"1"', f"1{delimiter}")  # 1,5 is a decimal comma
    if not table.num_rows and bad.actual_columns == bad.expected_columns + 1 and bad.text.startswith(first):
        fix = "write no row names (in R: row.names = FALSE), or give their column a name in the header"
    elif delimiter == "," and bad.actual_columns > bad.expected_columns:
        fix = "write decimal points, not commas, and put quotation marks around text with commas"
    raise InputError(where, "", f"{what} ({start})", fix)


def _is_comment(row: pyarrow.csv.InvalidRow) -> bool:
    return bool(row.text.lstrip().startswith("#"))


def _decimal_comma(table: pa.Table, text_columns: Sequence[str]) -> str | None:
    """Return a number with a decimal comma if no number of the table has a point, else None.

    Numbers such as 1,234 alone are no sign, because their comma may separate thousands.
    """
    if any(pa.types.is_floating(field.type) for field in table.schema):
        return None
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_string(field.type) and field.name not in text_columns:
            sign = pc.match_substring_regex(column, _COMMA_NUMBER)
            sign = pc.and_not(sign, pc.match_substring_regex(column, _THOUSANDS))
            found = pc.index(sign, True).as_py()
            if found >= 0:
                return str(column[found].as_py()).strip()
    return None


def _with_points(table: pa.Table, text_columns: Sequence[str]) -> pa.Table:
    """Write numbers with decimal points in columns of text, such as one with `-` for missing values."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type) and field.name not in text_columns:
            column = pc.replace_substring_regex(table.column(place), _NUMBER_PARTS, r"\1.\2")
            table = table.set_column(place, field.name, column)
    return table


def _numbering(body: bytes, line: int, rows: int) -> str:
    """Say what row 1 is; `line` is that of the header."""
    start = re.match(rb"[^\r\n]*(?:\r\n?|\n)?((?:[ \t]*(?:\r\n?|\n))*)", body)
    assert start is not None
    blank = len(re.findall(rb"\r\n?|\n", start[1]))
    body = body.rstrip()
    ends = body.count(b"\n") or body.count(b"\r")
    also = (
        "" if ends == rows else "; blank lines, comments and line breaks in quotation marks are not counted"
    )
    return f"row 1 is line {line + 1 + blank}{also}"
