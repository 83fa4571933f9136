"""The complete report of a study, from its store to the files of a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from pm25.errors import InputError
from pm25.files import check_folder

if TYPE_CHECKING:
    from sweeps.state import StudyState


def write_study_report(state: StudyState, out: Path, *, borders: Path | None = None) -> list[Path]:
    """Write the report of a study as its store is now, and return the paths of its files.

    The folder `out` gets index.html, report.md, tables as CSV, `figures/` and `latex/`. Equal stores give
    equal bytes. `borders` is a GeoJSON file of outlines for the maps; without it, the study's own file is
    read, then that of bokeh-sampledata if it is installed.

    Raises InputError if `out` cannot be written, or if `borders` is not such a file.
    """
    from sweeps.analysis import artifacts, reach, results
    from sweeps.report import borders as border_files
    from sweeps.report import data, figures, write

    outlines = border_files.read(borders or state.study.analysis.outlines)
    _check_writable(out)
    records = state.records("tables")
    rows = state.rows(records)
    predictions = artifacts.predictions(state.store, rows)
    gathered = data.gather_report_data(state, records=records, rows=rows, predicted=predictions)
    importance = artifacts.importance(state.store, rows)
    measured = reach.measure(
        state.study,
        state.panel,
        state.split_indices(),
        importance,
        predictions,
        figures.best_encoder(gathered.rows, gathered.metric),
    )
    pictures = figures.draw(
        gathered.rows,
        gathered.metric,
        contrasts=gathered.contrasts[gathered.metric],
        means=gathered.means[gathered.metric],
        predicted=predictions,
        curves=artifacts.curves(state.store, rows),
        importance=importance,
        reach=measured.distances,
        trials=results.search_trials(state.searches),
        parameters=gathered.parameters,
        monitors=gathered.monitors,
        cuts=results.cuts(state.study, state.panel),
        outlines=outlines,
    )
    try:
        return write.write(dataclasses.replace(gathered, reach=measured, pictures=pictures), out)
    except OSError as error:
        raise _cannot_be_written(out, error) from None


def _check_writable(out: Path) -> None:
    """Raise InputError if the files of a report could not be written to the folder."""
    try:
        for folder in (out, out / "figures", out / "latex"):
            check_folder(folder)
    except OSError as error:
        raise _cannot_be_written(out, error) from None


def _cannot_be_written(out: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(str(out), "", f"cannot be written ({reason})", "give another folder")
