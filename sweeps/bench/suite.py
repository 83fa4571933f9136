"""All measurements, or one group of them."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from pm25.scratch import scratch
from sweeps.bench import (
    busy,
    calibration,
    coverage,
    engine,
    gpu,
    maps,
    mirror,
    packing,
    report,
    scale,
    training,
    trial,
)
from sweeps.bench.harness import Measurement

MOST_MINUTES = 15
"""Longest duration of `make bench` on two cores, without Keras."""

_Group = Callable[[], Iterable[Measurement]]


def measure(
    only: str | None = None,
    *,
    table: Path | None = None,
    cells: Sequence[int] = (200, 2000),
    server: str | None = None,
    keras: Path | None = None,
    recorded: Path | None = None,
    studies: int = 500,
    pretend: bool = False,
) -> Iterator[Measurement]:
    """Yield each measurement when it is ready; files are written below a temporary folder.

    `only` is the name of a group: trial, training, engine, mirror, report, map, busy, scale, gpu, calibration
    or coverage. The last five run only if they are named. Without `only`, the last row has the minutes of
    each group and of all together.

    The trial reads the panel `table`, or a synthetic one of the size of the 2021 table. The engine trains
    each number of `cells`. The runs in MLflow go to SQLite, and to `server` if it is given. `keras` is an
    interpreter that has TensorFlow, for the published network. `busy` and `scale` simulate GPUs; `recorded`
    is a study's folder from which `scale` draws the seconds of cells. With `pretend`, `gpu` needs no GPU. The
    groups `calibration` and `coverage` measure the report's statistics: they simulate `studies` of each kind
    on the positions of `table`, or on synthetic ones.
    """
    with scratch() as folder:
        always: dict[str, _Group] = {
            "trial": lambda: trial.run(table or _synthetic(folder), folder / "results"),
            "training": lambda: chain(training.run(folder / "keras", keras), packing.run(folder / "packing")),
            "engine": lambda: engine.run(cells, folder),
            "mirror": lambda: mirror.run(folder, server),
            "report": lambda: report.run(folder),
            "map": lambda: maps.run(folder / "map"),
        }
        if_named: dict[str, _Group] = {
            "busy": lambda: busy.run(folder),
            "scale": lambda: scale.run(folder, recorded),
            "gpu": lambda: gpu.run(pretend=pretend),
            "calibration": lambda: calibration.run(table, studies),
            "coverage": lambda: coverage.run(table, studies),
        }
        if only is not None:
            yield from (always | if_named)[only]()
            return
        minutes = {}
        for name, run in always.items():
            began = time.monotonic()
            yield from run()
            minutes[name] = (time.monotonic() - began) / 60
        limit = MOST_MINUTES if keras is None else math.inf
        words = ", ".join(f"{name} {spent:.1f}" for name, spent in minutes.items())
        yield Measurement("these measurements together", sum(minutes.values()), "min", limit, words)


def _synthetic(folder: Path) -> Path:
    """Write a synthetic panel of the size of the 2021 table."""
    from pm25.sources import synthetic

    path = folder / "synthetic.parquet"
    synthetic.synthesize(sites=1414, days=365).to_parquet(path, index=False)
    return path
