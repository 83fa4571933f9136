"""Errors that name the input, the field, the problem and the fix."""


class InputError(ValueError):
    """Input that the program cannot use: bad data, a bad setting, or a file or server that cannot be used.

    Parameters
    ----------
    where : str
        The file, option, node or server that holds the bad value.
    field : str
        Column, key or row inside `where`; empty if the whole of it is meant.
    problem : str
        What is wrong, with the value that was found.
    fix : str
        What the user can do; empty if the problem says it.

    The command line prints the error in one line and exits with status 2.
    """

    def __init__(self, where: str, field: str = "", problem: str = "", fix: str = "") -> None:
        super().__init__(where, field, problem, fix)  # all arguments, so that the error can be pickled
        self.where, self.field, self.problem, self.fix = where, field, problem, fix

    def __str__(self) -> str:
        return one_line(self.where, self.field, self.problem, self.fix)


class SettingError(ValueError):
    """A value that a settings block refuses; the study file's reader adds the file to it.

    `field` is the dotted key, or empty where the block itself says which key is meant.
    """

    def __init__(self, field: str, problem: str, fix: str = "") -> None:
        super().__init__(field, problem, fix)
        self.field, self.problem, self.fix = field, problem, fix

    def __str__(self) -> str:
        return one_line("", self.field, self.problem, self.fix)


def one_line(where: str, field: str, problem: str, fix: str) -> str:
    """Format an error as `where: field: problem. Fix: fix.` in one line."""
    text = ": ".join(part for part in (where, field, problem) if part)
    if fix:
        text = f"{text.rstrip('.')}. Fix: {fix.rstrip('.')}."
    return " ".join(text.split())
