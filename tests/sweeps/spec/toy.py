"""A small study file, and the check of one that is refused."""

from pathlib import Path

from sweeps.spec import study_file
from tests.errors import refuses

TOY = """\
study: toy
data: {table: tables/panel.parquet}
design:
  variant: [none, geoclip]
  split:
    - {kind: random}
    - {kind: checkerboard, degrees: 16}
  seed: [0, 1]
model: {width: 4}
"""


def write(folder: Path, text: str | bytes = TOY) -> str:
    path = folder / "toy.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refused(path: str, overrides: list[str], said: tuple[str | None, ...]) -> None:
    """Check that a study is refused, with the override or the file that set the field, and the values."""
    with refuses(None, *said) as raised:
        study_file.load(path, overrides)
    field = raised.value.field
    names = [text.partition("=")[0] for text in overrides]
    setters = [
        f"--set {text}"
        for text, name in zip(overrides, names, strict=True)
        if f"{field}.".startswith(f"{name}.") or name.startswith(f"{field}.")
    ]
    assert raised.value.where == (setters[-1] if setters else path)
