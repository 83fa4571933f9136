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
    """Check that a study is refused with the file, and with the field and the values of `said`."""
    with refuses(path, *said):
        study_file.load(path, overrides)
