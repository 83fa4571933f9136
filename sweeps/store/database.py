"""Addresses of SQLite databases, for paths with any characters."""

from urllib.parse import quote, unquote

PREFIX = "sqlite:///"
ESCAPED = "sqlite+pysqlite:///"
"""Prefix of an address whose path is escaped.

It names the same driver. MLflow creates the folder of an address with the other prefix, without undoing the
escapes, and so would create a second folder.
"""


def address(path: str) -> str:
    """Return the address of the database at `path`, as SQLAlchemy and MLflow read it.

    SQLAlchemy reads `?` as the start of its options, and from version 2.1 on `%` as the start of an escape.
    """
    if not {"?", "%"} & {*path}:
        return PREFIX + path
    if _reads_escapes():
        return ESCAPED + quote(path)
    return f"{ESCAPED}file:{quote(path)}?uri=true"  # SQLite undoes these escapes itself


def path(address: str) -> str | None:
    """Return the path of the database at `address`; None if it is not an SQLite file."""
    for prefix in (PREFIX, ESCAPED):
        if address.startswith(prefix):
            found, _, options = address.removeprefix(prefix).partition("?")
            escaped = _reads_escapes() or "uri=true" in options
            return unquote(found.removeprefix("file:")) if escaped else found
    return None


def _reads_escapes() -> bool:
    """Return whether the installed SQLAlchemy undoes escapes in a path; version 2.1 was the first."""
    from sqlalchemy.engine import make_url  # its import takes a while, and most paths do not need it

    return make_url("sqlite:////%25").database == "/%"
