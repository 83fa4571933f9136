"""Time of a sweep with one training on each core, and of the same sweep with one training at a time."""

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from sweeps.bench import harness
from sweeps.bench.harness import Measurement
from sweeps.state import StudyState

PAIRS = 2
"""Number of pairs of sweeps."""
PER_CORE = 2
"""Trainings of a sweep for each core."""
STUDY: dict[str, Any] = {
    "study": "packing",
    "data": {"synthetic": {"sites": 200, "days": 150}},
    "model": {"width": 32},
    "train": {"max_epochs": 2, "max_windows": 6_000, "max_validation_windows": 500},
}
"""Study with a training of a few seconds."""


def run(folder: Path) -> Iterator[Measurement]:
    """Run sweeps below `folder` in turn, one training on each core and one on all."""
    cores = len(os.sched_getaffinity(0))
    cells = PER_CORE * cores
    pairs = [
        (_seconds(folder / f"alone-{i}", cells, cores), _seconds(folder / f"packed-{i}", cells, 1))
        for i in range(PAIRS)
    ]
    last_alone, last_packed = pairs[-1]
    words = f"{cells} cells of width 32, first start to last end, such as {last_alone:.1f} s over "
    words += f"{last_packed:.1f} s"
    ratios = [alone / packed for alone, packed in pairs]
    yield harness.of_rounds("packed sweep, times as fast as one at a time", ratios, "x", words, 1)


def _seconds(folder: Path, cells: int, cpu: int) -> float:
    """Run a sweep with so many cores for each training; seconds from its first start to its last end."""
    folder.mkdir(parents=True)
    file = folder / "packing.yaml"
    design = {
        "variant": ["none"],
        "split": [{"kind": "random", "folds": 5, "fold": 0}],
        "seed": list(range(cells)),
    }
    resources = {"cpu": cpu, "gpu": 0}
    declared = {**STUDY, "design": design, "resources": resources, "storage": str(folder)}
    file.write_text(yaml.safe_dump(declared), encoding="utf-8")
    harness.run_sweep("run", file)
    records = StudyState(str(file)).records().values()
    started, ended = (
        [datetime.fromisoformat(record[name]) for record in records] for name in ("started", "ended")
    )
    return (max(ended) - min(started)).total_seconds()
