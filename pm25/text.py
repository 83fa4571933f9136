"""Words of messages and reports."""


def counted(number: int, noun: str) -> str:
    """Format a count with its noun: '1 cell', '2 cells', '1,200 cells'."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
