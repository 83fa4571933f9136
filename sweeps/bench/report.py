"""Time and memory of the report of a study with many cells."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from pm25 import encoders
from pm25.cell import Cell
from pm25.panel import Panel
from sweeps.bench import harness
from sweeps.bench.engine import trivial
from sweeps.bench.harness import Measurement
from sweeps.state import StudyState
from sweeps.store.records import Store

SITES = 1000
EPOCHS = 20

REPORT = """
import sys
from sweeps.bench.harness import peak_mb
from sweeps.cli import cli
cli(sys.argv[1:], standalone_mode=False)
print(peak_mb())
"""


class Size(NamedTuple):
    """Size of a study, with the time and memory that its report may need."""

    cells: int
    """Number of cells, a multiple of 100: five arms on twenty folds of six splits."""
    predictions: int
    """Predictions of each cell."""
    seconds: float
    megabytes: float


SIZES = (Size(2000, 2000, 60, 2048), Size(10_000, 0, 30, 2048))


def run(folder: Path) -> Iterator[Measurement]:
    """Measure `sweep report` once for each size; studies and reports are written below `folder`."""
    for size in SIZES:
        file = make(folder / f"report-{size.cells}", size.cells, size.predictions)
        seconds, megabytes, written = _report(file)
        of = f"{size.cells:,} cells"
        of += f" with {size.predictions:,} predictions each" if size.predictions else " without predictions"
        words = f"sweep report in its own process; {written:.1f} MB written"
        yield Measurement(f"report of {of}", seconds, "s", size.seconds, words)
        yield Measurement(f"report's memory, {of}", megabytes, "MB", size.megabytes, "peak")


def make(folder: Path, cells: int, predictions: int) -> Path:
    """Write a study of finished cells, and return its file; `cells` is a multiple of 100."""
    folder.mkdir(parents=True)
    file = folder / "report.yaml"
    boards = [{"kind": "checkerboard", "degrees": degrees} for degrees in (4, 8, 16, 30)]
    declared = {
        "study": "report",
        "data": {"synthetic": {"sites": SITES, "days": 30}},
        "design": {
            "variant": ["none", "latlon", "sincos", "geoclip"],
            "fusion": ["hadamard", "concat"],
            "split": [{"kind": "random", "folds": 6}, {"kind": "spatial", "folds": 6}, *boards],
            "seed": list(range(cells // 100)),
        },
        "storage": str(folder),
    }
    file.write_text(yaml.safe_dump(declared), encoding="utf-8")
    state = StudyState(str(file))
    if len(state.cells) != cells:
        raise ValueError(f"cells: {cells} is not a multiple of 100")
    fingerprint = functools.cache(encoders.fingerprint)  # it hashes the weights of an encoder
    for number, (key, cell) in enumerate(state.cells.items()):
        made = _tables(cell, key, state.panel, state.store, predictions, number)
        encoder = {"encoder": fingerprint(cell.encoder)} if cell.encoder else {}
        trivial(cell, key, state.panel, state.store, tables=False, files=made, more=encoder)
    return file


def _tables(
    cell: Cell, key: str, panel: Panel, store: Store, predictions: int, number: int
) -> dict[str, str]:
    """Store a random history and random predictions, and return their digests.

    An out-of-region split has two evaluation sets.
    """
    rng = np.random.default_rng(number)
    site = rng.integers(0, len(panel.site_id), predictions)
    part = rng.integers(0, 2 if cell.split.regime == "OoR" else 1, predictions)
    truth = rng.gamma(2, 5, predictions).astype("float32")
    columns = {
        "part": pa.DictionaryArray.from_arrays(pa.array(part, pa.int32()), ["test", "wr"]),
        "site_id": pa.array(panel.site_id[site]).dictionary_encode(),
        "lat": panel.lat[site],
        "lon": panel.lon[site],
        "date": panel.dates[rng.integers(0, len(panel.dates), predictions)],
        "truth": truth,
        "prediction": (truth * rng.uniform(0.5, 1.3, predictions)).astype("float32"),
    }
    files = {"predictions.parquet": store.write_table(key, "predictions", columns)}
    names = ("train_loss", "validation_loss", "learning_rate", "validation_rmse")
    curves = {name: np.sort(rng.uniform(5, 9, EPOCHS))[::-1] for name in names}
    history = {"epoch": np.arange(1, EPOCHS + 1), **curves}
    return files | {"history.parquet": store.write_table(key, "history", history)}


def _report(file: Path) -> tuple[float, float, float]:
    """Measure the seconds, peak MB and written MB of a `sweep report`."""
    out = file.parent / "out"
    process = harness.run_python("-c", REPORT, "report", file, "-o", out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return process.seconds, process.last_number, size / 2**20
