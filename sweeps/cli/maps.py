"""The command that maps the predictions of an arm."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pm25.errors import InputError
from pm25.text import counted
from sweeps.cli.files import check_file, write_file
from sweeps.cli.shared import (
    FiniteRange,
    examples,
    fix_names_study,
    open_state,
    print_storage,
    study_argument,
)

if TYPE_CHECKING:
    import numpy as np

    from pm25.grids.cells import Covariates
    from pm25.grids.predicted import Area, PredictedDay
    from sweeps.state import StudyState
    from sweeps.tracking.arm_models import ArmModels

DEGREES = 0.25
"""Size of the cells without `--grid`."""

FORMATS = (".png", ".tif", ".nc")
"""Suffixes of a map."""


class Day(click.ParamType):
    """Date such as 2021-08-15."""

    name = "date"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """Convert the text to a date."""
        try:
            return value if isinstance(value, date) else date.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a date such as 2021-08-15", param, ctx)


@click.command(
    "map",
    epilog=examples(
        "map demo --arm latlon --against none --date 2021-07-23 -o map.png",
        "map quick --arm geoclip-hadamard --date 2021-08-15 --covariates grid.parquet -o map.tif",
        "map quick --arm none --from 2021-02-01 --to 2021-12-31 --covariates grid.parquet -o year.nc",
        "map quick --arm none --date 2021-08-15 --interpolate --grid 0.5 -o map.png",
    ),
)
@study_argument
@click.option("--arm", required=True, help="Map the winner of this arm, such as geoclip-hadamard.")
@click.option("--against", metavar="ARM", help="Also draw this arm, and the difference to it (.png only).")
@click.option("--date", "day", type=Day(), help="Predict this day.")
@click.option("--from", "first", type=Day(), help="Predict the days from this one to --to (.nc only).")
@click.option("--to", "last", type=Day(), help="Last day of --from.")
@click.option(
    "--covariates",
    "table",
    metavar="TABLE",
    help="Read the covariates from this table: lat, lon, date and the study's channels, one row for each "
    "cell and day. Default: those of the study's synthetic world.",
)
@click.option(
    "--interpolate",
    is_flag=True,
    help="Interpolate the covariates of the study's monitors; the map says so.",
)
@click.option(
    "--grid",
    "degrees",
    type=FiniteRange(0, 10, min_open=True),
    metavar="DEGREES",
    help="Size of the cells, of the contiguous US; default: 0.25. A table has its own cells.",
)
@click.option(
    "--outlines",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the state outlines of this GeoJSON file; default: those of bokeh-sampledata, if it is "
    "installed.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Write the map to this file: .png (one day), .tif (one day, GeoTIFF) or .nc (NetCDF).",
)
def map_(
    study: str,
    overrides: tuple[str, ...],
    arm: str,
    against: str | None,
    day: date | None,
    first: date | None,
    last: date | None,
    table: str | None,
    interpolate: bool,
    degrees: float | None,
    outlines: Path | None,
    out: Path,
) -> None:
    """Map the PM2.5 that the winner of an arm predicts on a grid of cells.

    The weights of the winner must be stored, which the study does by default (`keep_weights: winners`). With
    `keep_weights: folds`, there is a model for each fold. The map then has their mean, and their standard
    deviation as the spread.

    Every cell has its dissimilarity index: the distance of its input to the nearest training sample (Meyer
    and Pebesma 2021). Cells outside the area of applicability are hatched and counted. The index has weights
    after `sweep importance`.

    .tif and .nc need `pip install 'pm25-sweeps[maps]'`. Their bands or variables are mean, spread,
    dissimilarity index and inside. A grid of a synthetic study also has the truth.
    """
    days = _days(day, first, last)
    _check_options(out, days, table, interpolate, degrees, against, outlines)
    check_file(out)
    from sweeps.report import rasters

    rasters.refuse_without_library(out)
    state = open_state(study, overrides)
    with fix_names_study(study, overrides):
        _write(
            state, [arm, *([against] if against else [])], days, table, interpolate, degrees, outlines, out
        )


def _write(
    state: "StudyState",
    names: Sequence[str],
    days: tuple[date, date],
    table: str | None,
    interpolate: bool,
    degrees: float | None,
    outlines: Path | None,
    out: Path,
) -> None:
    """Predict the days and write the map."""
    import numpy as np

    from sweeps.report import borders, rasters
    from sweeps.tracking import arm_models

    dates = np.arange(np.datetime64(days[0]), np.datetime64(days[1]) + 1)
    records = state.records()
    models = [arm_models.load(state, records, name) for name in names]
    covariates = _covariates(state, models[0], table, interpolate, degrees)
    grid = rasters.regular(covariates, out) if out.suffix == ".tif" else None
    rings = borders.read(outlines) if out.suffix == ".png" else []
    print_storage(state)
    maps = [_ArmMap(one, arm_models.area(state, one), covariates, dates) for one in models]
    attributes = {
        "title": f"Predicted PM2.5, {' and '.join(one.label for one in models)}",
        "source": f"pm25-sweeps, study {state.study.study}, {covariates.origin}",
        "models": ", ".join(models[0].keys),
        "area_of_applicability": maps[0].described,
    }
    if grid is not None:
        (day,) = maps[0].predicted()
        write_file(out, lambda part: rasters.write_geotiff(part, day, grid, attributes))
    elif out.suffix == ".nc":
        write_file(
            out,
            lambda part: rasters.write_netcdf(part, maps[0].predicted(), dates, covariates, attributes),
        )
    else:
        from sweeps.report.figures.day_maps import ArmDay, Monitors, day_map

        drawn = [ArmDay(one.models.label, len(one.models.keys), *one.predicted()) for one in maps]
        panel, number = state.panel, int((dates[0] - state.panel.dates[0]).astype(int))
        observed = np.full(len(panel.lat), np.nan, np.float32)
        if 0 <= number < len(panel.dates):  # a table of a grid may have other days
            observed = panel.target[:, number]
        figure = day_map(drawn, covariates, Monitors(panel.lat, panel.lon, observed), rings)
        write_file(out, lambda part: part.write_bytes(figure.png))
    shown = f"{days[0]}" if days[0] == days[1] else f"{days[0]} to {days[1]}"
    click.echo(f"{out}: PM2.5 on {shown}, {len(covariates.lat):,} cells; {covariates.origin}")
    for one in maps:
        click.echo(one.summary)


class _ArmMap:
    """Predictions of one arm, which are counted while they are made."""

    def __init__(
        self,
        models: "ArmModels",
        area: "Area",
        covariates: "Covariates",
        days: "np.ndarray",
    ) -> None:
        self.models, self._area, self._covariates, self._days = models, area, covariates, days
        self._cells = self._outside = self._empty = self._gaps = 0

    def predicted(self) -> "Iterator[PredictedDay]":
        """Predict the days, with a progress bar on a terminal if there are several."""
        from pm25.grids.predicted import predict_days

        days = self._days
        stream = predict_days(self.models.predictors, self._area, self._covariates, days[0], days[-1])
        hidden = len(days) == 1 or not sys.stderr.isatty()
        with click.progressbar(stream, len(days), "days", file=sys.stderr, hidden=hidden) as shown:
            for day in shown:
                self._cells += int(day.predicted.sum())
                self._empty += int((~day.predicted).sum())
                self._gaps += int(day.gaps.sum())
                self._outside += int((day.predicted & ~day.inside).sum())
                yield day

    @property
    def described(self) -> str:
        """Sentence about the area of applicability."""
        how = "weighted by permutation importance" if self._area.weighted else "weighted equally"
        return f"dissimilarity index at most {self._area.fitted.threshold:.4f}, predictors {how}"

    @property
    def summary(self) -> str:
        """Line with the number of models, and the share of cells outside the area."""
        count = len(self.models.keys)
        of = f"mean of {count} models" if count > 1 else "one model, so without a spread"
        share = self._outside / max(1, self._cells)
        line = f"{self.models.label}: {of}; {self._outside:,} cells ({share:.1%}) outside the area of "
        line += "applicability"
        if self._empty:
            line += f"; {self._empty:,} cells without covariates"
        if self._gaps:
            line += f"; {self._gaps:,} cells without those of an earlier day count as outside"
        if self.models.lost:
            line += f"; {counted(self.models.lost, 'fold')} left out, whose weights are missing"
        return f"{line} ({self.described})"


def _covariates(
    state: "StudyState", models: "ArmModels", table: str | None, interpolate: bool, degrees: float | None
) -> "Covariates":
    """Open the covariates of the grid, which report ranges that differ from those in training."""
    import numpy as np

    from pm25.grids.monitors import MonitorGrid
    from pm25.grids.predicted import RangeNotices
    from pm25.grids.table import GridTable
    from pm25.grids.world import WorldGrid

    data, panel, channels = state.study.data, state.panel, models.predictors[0].channels
    needs, found = f"arm {models.name}", None
    if table is not None:
        found = GridTable(table, channels, columns=data.columns, needs=needs)
    elif interpolate:
        return MonitorGrid(panel, degrees or DEGREES, channels, needs=needs)
    elif data.synthetic is not None:
        return WorldGrid(data.synthetic.model_dump(), degrees or DEGREES, channels)
    else:
        problem = "the study reads a table of monitors, which has no covariates between them"
        fix = "give --covariates TABLE, or --interpolate the covariates of the monitors"
        raise InputError("map", "--covariates", problem, fix)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)  # a channel without any value
        low, high = (end(panel.features, axis=(0, 1)) for end in (np.nanmin, np.nanmax))
    ranges = {
        name: (float(low[place]), float(high[place]))
        for place, name in enumerate(panel.channels)
        if np.isfinite(low[place])
    }
    return RangeNotices(found, ranges, lambda line: click.echo(f"sweep: {line}", err=True))


def _days(day: date | None, first: date | None, last: date | None) -> tuple[date, date]:
    """Return the first and the last day of the options. Raises InputError unless they name days."""
    if (day is None) == (first is None and last is None):
        problem = "no day is given" if day is None else "it is given beside --from or --to"
        raise InputError("map", "--date", problem, "give --date, or --from and --to")
    if day is not None:
        return day, day
    if first is None or last is None:
        given, missing = ("--to", "--from") if first is None else ("--from", "--to")
        raise InputError("map", given, f"{missing} is missing", "give both")
    if last < first:
        raise InputError("map", "--to", f"{last} is before --from {first}", "exchange the two")
    return first, last


def _check_options(
    out: Path,
    days: tuple[date, date],
    table: str | None,
    interpolate: bool,
    degrees: float | None,
    against: str | None,
    outlines: Path | None,
) -> None:
    """Raise InputError for a format without these maps, and for options that exclude each other."""
    if out.suffix not in FORMATS:
        stem = out.stem or "map"  # an empty path has no name
        fix = f"name it {', '.join(f'{stem}{suffix}' for suffix in FORMATS)}"
        raise InputError(str(out), "", f"no format of a map has the suffix {out.suffix!r}", fix)
    if days[0] != days[1] and out.suffix != ".nc":
        fix = f"name the map {out.with_suffix('.nc').name}, or give --date"
        raise InputError(str(out), "", f"a file with the suffix {out.suffix} has one day", fix)
    if against is not None and out.suffix != ".png":
        fix = f"name the map {out.with_suffix('.png').name}, or map each arm by itself"
        raise InputError("map", "--against", f"a file with the suffix {out.suffix} has one arm", fix)
    for option, source in (("--covariates", table), ("--outlines", outlines)):
        if source is not None and out.exists() and Path(source).exists() and out.samefile(source):
            raise InputError("map", "-o", f"it is the file of {option}", "choose another file")
    if table is not None and (interpolate or degrees is not None):
        option = "--interpolate" if interpolate else "--grid"
        fix = f"leave {option} or --covariates out"
        raise InputError("map", option, "the table has its own cells and covariates", fix)
