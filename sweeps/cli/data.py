"""The commands that make and check tables of daily PM2.5."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pm25.errors import InputError
from pm25.limits import MOST_DAYS, MOST_KM, MOST_SITES
from pm25.text import counted
from sweeps.cli.files import check_parquet, write_file, write_panel, write_parquet
from sweeps.cli.shared import FiniteRange, examples, json_option

if TYPE_CHECKING:
    from pm25.sources.satellite_embeddings import Provider
    from pm25.tables.column_map import ColumnMap
    from pm25.tables.schema import ChannelSummary

panel_option = click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Write the panel to this Parquet file.",
)


@click.group()
def data() -> None:
    """Make and check tables of daily PM2.5."""


@data.command(
    epilog=examples(
        "data check panel.parquet", "data check panel.parquet --map site_id=station --map pm25=PM2.5"
    )
)
@click.argument("table")
@click.option(
    "--harmless",
    multiple=True,
    metavar="COLUMN",
    help="Accept this column although it resembles the target (repeatable), like data.harmless of a study.",
)
@click.option(
    "--map",
    "mapped",
    multiple=True,
    metavar="NAME=COLUMN",
    help="Read this column of the table as NAME, such as pm25=PM2.5 (repeatable), like data.columns of a "
    "study.",
)
@json_option
def check(table: str, harmless: tuple[str, ...], mapped: tuple[str, ...], as_json: bool) -> int:
    """List every problem of TABLE with its column and rows; exit 2 if there is one.

    Every channel is compared with the target, and a column that contains it is a problem. The channels are
    listed, each with its range and the share of its values that are missing. Columns of numbers that are no
    covariate are left out: row numbers, identifiers, and columns without a value or with one value.

    TABLE is a Parquet file, a folder of Parquet files, or delimited text: a path, or an address such as
    s3://bucket/panel.parquet. The JSON lists all rows of a problem. Rows count from 1 at the first row of
    data; the line `row numbers` names its line in a text file.
    """
    from pm25 import leak_probes, panel, uri
    from pm25.tables import column_map
    from pm25.tables.check import check as check_table
    from pm25.tables.schema import Problem

    columns = _column_map(mapped)
    unmapped = column_map.read_unmapped(table, columns=columns)
    content = column_map.renamed(unmapped, columns, table)
    found = check_table(content, uri.file_name(table), source=table, columns=columns)
    found.notices.extend(column_map.notices_of(unmapped.column_names, columns))
    if not found.problems:
        read = panel.from_table(content, table, columns=columns)
        leak_probes.check_harmless(read, harmless, table, "--harmless")
        leaks = leak_probes.find(read, harmless)
        problems = [Problem(leak.channel, leak.problem, leak_probes.fix([leak])) for leak in leaks]
        found.problems.extend(problems)
    if as_json:
        faults = {
            kind: [
                {"column": p.column, "what": p.what, "fix": p.fix, "rows": p.rows.tolist()} for p in listed
            ]
            for kind, listed in (("problems", found.problems), ("notices", found.notices))
        }
        channels = [
            {**dataclasses.asdict(channel), "missing_becomes": channel.missing_becomes}
            for channel in found.channels
        ]
        listing = {
            "counts": found.counts,
            "numbering": found.numbering,
            "channels": channels,
            "left_out": [{"column": p.column, "what": p.what} for p in found.left_out],
            **faults,
        }
        click.echo(json.dumps(listing))
    else:
        for name, value in found.counts.items():
            click.echo(f"{name:12} {value:,}" if isinstance(value, int) else f"{name:12} {value}")
        if found.numbering and any(len(p.rows) for p in (*found.problems, *found.notices)):
            click.echo(f"{'row numbers':12} {found.numbering}")
        if found.channels:
            _print_channels(found.channels, columns)
        for kind, listed in (("notice", found.notices), ("problem", found.problems)):
            for one in listed:
                click.echo(f"{kind}: {column_map.as_in_file(one, columns)}", err=kind == "problem")
        if not found.problems:
            click.echo("no problem found")
    return 2 if found.problems else 0


def _print_channels(channels: "Sequence[ChannelSummary]", columns: "ColumnMap") -> None:
    """Print the channels that a study uses by default, with ranges and what becomes of missing values."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pm25.tables.column_map import with_source

    console = Console()
    if not console.is_terminal:
        console.width = 140  # a log file has no width
    grid = Table(title=f"{len(channels)} channels", title_justify="left", title_style="bold")
    for head, justify in (
        ("channel", "left"),
        ("lowest", "right"),
        ("highest", "right"),
        ("missing", "right"),
    ):
        grid.add_column(head, justify=justify)  # type: ignore[arg-type]
    grid.add_column("a missing value becomes the")
    for channel in channels:
        name = Text(with_source(channel.name, columns))
        if channel.source == "date":
            grid.add_row(name, Text("from the date"), "", "none", "")
            continue
        ends = ("" if end is None else f"{end:,.6g}" for end in (channel.lowest, channel.highest))
        share = f"{channel.missing:.2%}" if channel.missing >= 0.0001 else "< 0.01%"
        missing = share if channel.missing else "none"
        grid.add_row(name, *ends, missing, channel.missing_becomes)
    console.print(grid)


def _column_map(mapped: Sequence[str]) -> dict[str, str]:
    """Read the options NAME=COLUMN. Raises InputError."""
    columns: dict[str, str] = {}
    for text in mapped:
        name, equals, column = text.partition("=")
        if not (name and equals and column):
            fix = "write, for example, --map pm25=PM2.5"
            raise InputError("data check", "--map", f"{text!r} is not of the form NAME=COLUMN", fix)
        if name in columns:
            raise InputError("data check", "--map", f"{name} is given twice", "give each name once")
        columns[name] = column
    return columns


@data.command(
    epilog=examples(
        "data synth panel.parquet --sites 300 --days 365", "data synth grid.parquet --grid 0.5 --days 365"
    )
)
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--sites",
    type=click.IntRange(max=MOST_SITES),
    default=300,
    show_default=True,
    help="Number of monitoring sites.",
)
@click.option(
    "--days", type=click.IntRange(max=MOST_DAYS), default=365, show_default=True, help="Number of days."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Random seed.")
@click.option("--start", default="2021-01-01", show_default=True, metavar="DATE", help="First day.")
@click.option(
    "--gradient",
    type=FiniteRange(-2, 2),
    default=0.0,
    show_default=True,
    help="Slope of the logarithm of PM2.5 from west to east, for each 15 degrees.",
)
@click.option(
    "--grid",
    "degrees",
    type=FiniteRange(0, 10, min_open=True),
    metavar="DEGREES",
    help="Write the covariates and the truth of cells of this size in place of a panel, for `sweep map`.",
)
def synth(
    out: Path, sites: int, days: int, seed: int, start: str, gradient: float, degrees: float | None
) -> None:
    """Write a synthetic panel of the contiguous US, with a known truth, to OUT.parquet.

    With --grid, and otherwise the same options, the cells are in the same world as the sites of the panel.
    """
    from pm25.sources import synthetic

    check_parquet(out)
    if degrees is None:
        made = synthetic.synthesize(sites=sites, days=days, seed=seed, start=start, gradient=gradient)
        click.echo(write_panel(made, out))
        return
    from pm25.grids.world import WorldGrid

    grid = WorldGrid({"days": days, "seed": seed, "start": start, "gradient": gradient}, degrees, ())
    write_file(out, grid.write)
    click.echo(f"{out}: {len(grid.lat):,} cells, {days:,} days")


@data.command(
    epilog=examples(
        "data aqs --year 2021 --fetch downloads -o panel.parquet",
        "data aqs daily_88101_2021.zip --weather CRND0103-2021-AZ_Tucson_11_W.txt -o panel.parquet",
    )
)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--weather",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Add a NOAA USCRN daily01 file (repeatable).",
)
@click.option(
    "--max-station-km",
    type=FiniteRange(0, MOST_KM, min_open=True),
    default=300.0,
    show_default=True,
    help="Use weather stations within this distance of a site.",
)
@click.option("--year", type=click.IntRange(1980, 2100), help="Download this year; needs --fetch.")
@click.option(
    "--fetch",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Download into this folder first; needs --year.",
)
@panel_option
def aqs(
    files: tuple[Path, ...],
    weather: tuple[Path, ...],
    max_station_km: float,
    year: int | None,
    folder: Path | None,
    out: Path,
) -> None:
    """Build a panel from EPA AirData daily FILES (88101, 88502, TEMP, WIND, RH_DP, PRESS)."""
    from pm25.sources import aqs as source

    check_parquet(out)
    if (year is None) != (folder is None):
        given, missing = ("--year", "--fetch") if folder is None else ("--fetch", "--year")
        raise InputError("data aqs", given, f"{missing} is missing", "give both, or neither and FILES")
    if year is not None and folder is not None:
        from pm25.sources import download

        with download.live() as progress:
            fetched = download.fetch(year, folder, progress=progress)
        files, weather = (*files, *fetched.files), (*weather, *fetched.weather)
    if not files:
        fix = "name EPA AirData daily files, or give --year and --fetch"
        raise InputError("data aqs", "FILES", "no file is given", fix)
    click.echo(write_panel(source.build(files, weather, max_station_km=max_station_km), out))


@data.command(epilog=examples("data npy X.npy Y.npy -o panel.parquet"))
@click.argument("x", type=click.Path(path_type=Path))
@click.argument("y", type=click.Path(path_type=Path))
@click.option(
    "--channels", help="Name the channels of X, separated by commas; default: the 23 published ones."
)
@click.option(
    "--dates",
    type=click.Path(path_type=Path),
    help="Read the last day of every sample from this .npy file (datetime64).",
)
@panel_option
def npy(x: Path, y: Path, channels: str | None, dates: Path | None, out: Path) -> None:
    """Rebuild the panel from the published arrays X (N, 21, C) and Y (N,)."""
    from pm25.sources import paper_arrays

    check_parquet(out)
    names = channels.split(",") if channels else None
    click.echo(write_panel(paper_arrays.to_table(x, y, names, dates=dates), out))


@data.command(
    epilog=examples(
        "data embeddings vectors.npy -o vectors.parquet",
        "data embeddings --from tessera --panel panel.parquet --year 2021 -o tessera.parquet",
    )
)
@click.argument("vectors", type=click.Path(path_type=Path), required=False)
@click.option(
    "--from",
    "provider",
    type=click.Choice(["tessera", "alphaearth"]),
    help="Read the vectors of a panel's places from this provider, with its own reader (geotessera or "
    "earthengine-api).",
)
@click.option("--panel", type=click.Path(path_type=Path), help="Take the places of this panel.")
@click.option("--year", type=click.IntRange(2017, 2100), help="Take the vectors of this year.")
@click.option("--project", help="Use this project of your Earth Engine account (alphaearth).")
@click.option(
    "--tiles",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the downloaded tiles in this folder (tessera); default: they are deleted.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Write the table to this Parquet file.",
)
def embeddings(
    vectors: Path | None,
    provider: "Provider | None",
    panel: Path | None,
    year: int | None,
    project: str | None,
    tiles: Path | None,
    out: Path,
) -> None:
    """Write the Parquet file of a table encoder: latitude, longitude and the values of the vector.

    The vectors come from a published file VECTORS (N, 2 + d), or from a provider of satellite embeddings.
    """
    if (vectors is None) == (provider is None):
        problem = "both are given" if vectors else "neither is given"
        raise InputError("data embeddings", "VECTORS, --from", problem, "give one of them")
    check_parquet(out)
    without = ""
    if vectors is not None:
        from pm25.sources import paper_arrays

        given = {"--panel": panel, "--year": year, "--project": project, "--tiles": tiles}
        if named := [name for name, value in given.items() if value is not None]:
            problem = f"{', '.join(named)} needs --from"
            raise InputError("data embeddings", "VECTORS", problem, "add --from, or leave it out")
        frame = paper_arrays.embeddings(vectors)
    else:
        from pm25.sources import satellite_embeddings

        if panel is None or year is None or provider is None:
            missing = "--panel" if panel is None else "--year"
            raise InputError("data embeddings", "--from", f"{missing} is missing", "give --panel and --year")
        for option, value, of in (("--project", project, "alphaearth"), ("--tiles", tiles, "tessera")):
            if value is not None and provider != of:
                problem = f"has no meaning for {provider}"
                raise InputError("data embeddings", option, problem, "leave it out")
        frame, left_out = satellite_embeddings.embeddings(provider, panel, year, project=project, tiles=tiles)
        if left_out:
            without = f"; {counted(left_out, 'place')} of the panel without a vector"
    write_parquet(frame, out)
    size = f"{len(frame):,} places, {frame.shape[1] - 2} dimensions{without}"
    click.echo(f"{out}: {size}; use it with --set encoders.table.path={out}")
