"""All measurements, or one group of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pm25.scratch import scratch
from sweeps.bench import busy, calibration, engine, gpu, maps, mirror, packing, report, scale, training, trial
from sweeps.bench.harness import Measurement


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

    `only` is the name of a group: trial, training, engine, mirror, report, map, busy, scale or calibration.
    The last one measures the report's tests and not this machine, so it runs only if it is named. It
    simulates `studies` of each kind on the positions of `table`, or on synthetic ones. The trial reads the
    panel `table`, or a synthetic one of the size of the 2021 table. The engine trains each number of `cells`.
    The runs in MLflow go to SQLite, and to `server` if it is given. `keras` is an interpreter that has
    TensorFlow, for the published network. `recorded` is a study's folder from which the simulation draws
    the seconds of cells. The group `gpu` also runs only if it is named; with `pretend`, it needs no GPU.
    """
    with scratch() as folder:
        if only in (None, "trial"):
            yield from trial.run(table or _synthetic(folder), folder / "results")
        if only in (None, "training"):
            yield from training.run(folder / "keras", keras)
            yield from packing.run(folder / "packing")
        if only in (None, "engine"):
            yield from engine.run(cells, folder)
        if only in (None, "mirror"):
            yield from mirror.run(folder, server)
        if only in (None, "report"):
            yield from report.run(folder)
        if only in (None, "map"):
            yield from maps.run(folder / "map")
        if only in (None, "busy"):
            yield from busy.run(folder)
        if only in (None, "scale"):
            yield from scale.run(folder, recorded)
        if only == "gpu":
            yield from gpu.run(pretend=pretend)
        if only == "calibration":
            yield from calibration.run(table, studies)


def _synthetic(folder: Path) -> Path:
    """Write a synthetic panel of the size of the 2021 table."""
    from pm25.sources import synthetic

    path = folder / "synthetic.parquet"
    synthetic.synthesize(sites=1414, days=365).to_parquet(path, index=False)
    return path
