"""Errors that name the input, the field, the problem and the fix."""

from pm25.limits import MOST_SHOWN
from pm25.redaction import redacted


class InputError(ValueError):
    """Bad data, a bad setting, or a file, node or server that cannot be used.

    The command line prints the error in one line and exits with status 2.

    Parameters
    ----------
    where : str
        File, option, node or server with the bad value.
    field : str
        Column, key or row inside `where`; empty if all of `where` is meant.
    problem : str
        Problem, with the value that was found.
    fix : str
        Instruction for the user; empty if the problem implies it.
    """

    def __init__(self, where: str, field: str = "", problem: str = "", fix: str = "") -> None:
        super().__init__(where, field, problem, fix)  # all arguments, so that the error can be pickled
        self.where, self.field, self.problem, self.fix = where, field, problem, fix

    def __str__(self) -> str:
        return one_line(self.where, self.field, self.problem, self.fix)


class SettingError(ValueError):
    """Value that a settings block refuses; the reader of the study file adds the file's name.

    `field` is the dotted key, or empty if the settings block is already named.
    """

    def __init__(self, field: str, problem: str, fix: str = "") -> None:
        super().__init__(field, problem, fix)
        self.field, self.problem, self.fix = field, problem, fix

    def __str__(self) -> str:
        return one_line("", self.field, self.problem, self.fix)


def one_line(where: str, field: str, problem: str, fix: str) -> str:
    """Format an error as `where: field: problem. Fix: fix.` in one line of bounded length.

    It has no passwords of addresses. They are replaced before a part is shortened, which could hide them.
    """
    where, field, problem, fix = (_shown(part) for part in (where, field, problem, fix))
    text = ": ".join(part for part in (where, field, problem) if part)
    if fix:
        text = f"{text.rstrip('.')}. Fix: {fix.rstrip('.')}."
    return redacted(text)


def _shown(text: str) -> str:
    text, half = redacted(" ".join(text.split())), (MOST_SHOWN - 5) // 2
    return text if len(text) <= MOST_SHOWN else f"{text[:half]} ... {text[-half:]}"
