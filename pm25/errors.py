"""The one error that means: the input is wrong, and here is how to mend it."""


class InputError(ValueError):
    """Bad input. Its text is one line that names the file, the field, the value and the mend.

    The command line prints it and exits with status 2.
    """
