"""Time and memory of the map of one day of the contiguous US at 0.25 degrees."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from sweeps.bench import harness
from sweeps.bench.harness import Measurement
from sweeps.engine.worker import prepare_process, train_and_record
from sweeps.state import StudyState

STUDY = {
    "study": "map",
    "data": {"synthetic": {"sites": 500, "days": 60}},
    "design": {
        "variant": ["geoclip"],
        "fusion": ["hadamard"],
        "split": [{"kind": "spatial", "folds": 5, "fold": 0}],
        "seed": 0,
    },
    "model": {"width": 32, "attention_units": 32},
    "train": {"max_epochs": 1, "max_windows": 2000},
}
"""One cell with the network of the study `quick`; its map takes as long as that of a longer training."""

MAP = """
import sys
from sweeps.bench.harness import peak_mb
from sweeps.cli import cli
cli(sys.argv[1:], standalone_mode=False)
print(peak_mb())
"""


def run(folder: Path) -> Iterator[Measurement]:
    """Train one cell, and measure `sweep map` of a day in a process of its own."""
    folder.mkdir(parents=True)
    file = folder / "map.yaml"
    file.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    state = StudyState(str(file))
    prepare_process(1)
    for key, cell in state.cells.items():
        embedded = state.embedded(cell)
        record = train_and_record(cell, key, state.panel, state.store, embedded=embedded, keep_weights=True)
        if record["state"] != "done":
            raise RuntimeError(record["error"]["message"])
    options = ("--arm", "geoclip-hadamard", "--date", "2021-02-15", "--grid", "0.25", "-o")
    process = harness.run_python("-c", MAP, "map", file, *options, folder / "map.png")
    words = "sweep map in its own process: GeoCLIP, one model, with the dissimilarity index and the figure"
    yield Measurement("map of a day, 13,137 cells", process.seconds, "s", 60, words)
    yield Measurement("map's memory", process.last_number, "MB", 2048, "peak")
