"""Passwords and keys of addresses, replaced in every text that is shown or stored."""

import re

HIDDEN = "***"
"""Text in the place of a password."""

# A password may contain any character except a blank, so the last @ ends it. Paths of files have no users.
_USER = re.compile(r"(?<![\w+.-])((?!sqlite\b|file\b)[A-Za-z][\w+.-]*:/+)([^\s/?#@:'\"]*)(:\S*)?@")

_OPTION = re.compile(
    r"([?&;](?:[\w.-]*(?:password|passwd|pwd|secret|token|credential|signature)[\w.-]*"
    r"|access_?key|account_?key|api_?key|key|sig)=)[^&;\s'\"#]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Replace the passwords, tokens and keys of all addresses in a text by three asterisks.

    A user without a password is a token in the address of a server, and a name in that of a database.
    """
    if "://" not in text and ":/" not in text:
        return text
    return _OPTION.sub(rf"\1{HIDDEN}", _USER.sub(_without_password, text))


def _without_password(found: re.Match[str]) -> str:
    scheme, user, password = found.groups()
    if password is None:
        return f"{scheme}{HIDDEN}@" if user and scheme.lower().startswith("http") else found[0]
    return f"{scheme}{user}:{HIDDEN}@"
