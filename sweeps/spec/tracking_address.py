"""Addresses of MLflow servers and databases: which are valid, and how one is shown without its password."""

import re
from pathlib import PurePath
from urllib.parse import urlsplit

from pm25.errors import SettingError
from pm25.redaction import HIDDEN, redacted

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Kinds of databases that MLflow opens."""

_EXAMPLES = (
    "http://HOST:5000 for a server, sqlite:////FOLDER/mlflow.db for a file, postgresql://USER@HOST/DATABASE"
)
_CORRECTED = {
    **dict.fromkeys(("htp", "htpp", "httpp", "hhtp", "hppt", "ttp", "thttp", "tcp", "mlflow"), "http"),
    **dict.fromkeys(("htps", "htpps", "httpss", "hhtps", "ttps"), "https"),
    **dict.fromkeys(("postgres", "postgressql", "postgre", "psql", "pg"), "postgresql"),
    **dict.fromkeys(("sqlite3", "sqllite", "sqlight"), "sqlite"),
}
"""Schemes that people write, and what they mean."""


def check(address: str) -> None:
    """Raise SettingError unless the address names an MLflow server or a database that MLflow opens."""
    if (fix := _fix(address)) is not None:
        raise SettingError(
            "tracking",
            f"{without_password(address)!r} is not an address of an MLflow server or database",
            fix,
        )


def without_password(address: str) -> str:
    """Replace the password of an address, which may be misspelt, by three asterisks."""
    if re.match(r"sqlite(\+\w+)?:", address):  # the address of a file, which has no password
        return address
    shown = re.sub(r"^([A-Za-z][\w+.-]*:/+)?([^:@]*):.*@", rf"\1\2:{HIDDEN}@", address, flags=re.DOTALL)
    return redacted(shown)


def shown_override(override: str) -> str:
    """Return an override `a.b=value` of a study as it may be shown: without the password of its address."""
    name, equals, value = override.partition("=")
    return f"{name}{equals}{without_password(value) if name == 'tracking' else redacted(value)}"


def _fix(address: str) -> str | None:
    """Return what to write instead of an address that is not valid, or None for a valid one."""
    scheme, colon, rest = address.partition(":")
    scheme, dialect = scheme.partition("+")[0], scheme
    rest = rest.lstrip("/")
    if address != address.strip() or not address.isprintable():
        return "remove the blanks around the address"
    if not scheme.startswith("sqlite") and re.search(r"\s", address):
        return "write %20 for each blank in the address"
    if not colon or "/" in scheme or re.fullmatch(r"\d{1,5}(/.*)?", rest):  # a path, or HOST:PORT
        host = re.fullmatch(r"[\w.-]+:\d{1,5}(/.*)?", address)
        if host is not None:
            return f"write http://{address}"
        if PurePath(address).suffix in (".db", ".sqlite", ".sqlite3"):
            return f"write sqlite:///{address}"
        if not colon or scheme.lower() not in ("http", "https"):
            return f"write {_EXAMPLES}"
    if scheme not in ("http", "https", *DATABASES):
        known = _CORRECTED.get(scheme.lower(), scheme.lower())
        if known not in ("http", "https", *DATABASES):
            return f"write {_EXAMPLES}"
        if not rest:
            return f"write {_EXAMPLES}"
        start = known + dialect.removeprefix(scheme)
        slashes = ":///" if known == "sqlite" else "://"
        rest = address.partition(":///")[2] or rest if known == "sqlite" else rest
        return f"write {without_password(f'{start}{slashes}{rest}')}"
    if scheme == "sqlite":
        path = address.partition(":")[2]
        if not path.startswith("///") or path in ("///", "///:memory:"):
            return "write sqlite:////FOLDER/mlflow.db, with four slashes before an absolute path"
        return None
    if not address.partition(":")[2].startswith("//"):
        return f"write {dialect}://{rest}"
    if scheme in ("http", "https"):
        try:
            parts = urlsplit(address)
            complete = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:  # a port or an IPv6 address that is not one
            complete = False
        if not complete or any(letter.isspace() for letter in address):
            return f"write {scheme}://HOST:PORT, with a port from 1 to 65535"
        if parts.query or parts.fragment:
            return f"write only {without_password(address).partition('#')[0].partition('?')[0]}"
    return None
