"""A study opened for reading in a notebook: its results, tests and predictions as DataFrames."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from pm25.errors import InputError
from pm25.metrics import SCORES
from sweeps.analysis import artifacts, inference, labels
from sweeps.analysis import coverage as intervals
from sweeps.analysis.comparability import Comparisons
from sweeps.report.study_report import write_study_report
from sweeps.state import StudyState
from sweeps.store import filters, integrity

if TYPE_CHECKING:
    from sweeps.spec.study import Study

CELL_COLUMNS = ["key", "arm", "variant", "fusion", "split", "fold", "seed"]
"""Columns that name the cell of a prediction."""

PREDICTION_COLUMNS = ["part", "site_id", "lat", "lon", "date", "truth", "prediction"]
"""Columns of a cell's stored predictions."""


class OpenStudy:
    """A study beside its store, as `sweeps.open` returns it.

    Every method reads the store again, so that a run in progress shows its latest cells. `state` is the
    underlying `sweeps.state.StudyState`, with the panel, the cells by key and the records.
    """

    def __init__(self, study: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> None:
        texts = [f"{name}={_yaml(name, value)}" for name, value in (overrides or {}).items()]
        self.state = StudyState(os.fspath(study), texts)

    def __repr__(self) -> str:
        return f"<OpenStudy {self.study.study}: {len(self.state.grid)} cells in {self.study.storage}>"

    @property
    def study(self) -> Study:
        """The study file with its overrides and every default."""
        return self.state.study

    def results(self) -> pd.DataFrame:
        """Return one row per cell of the study, in the order of the grid, done or not.

        Columns:

        - key, arm (the label in tables), variant, fusion, split, regime ('WR' or 'OoR'), fold, seed
        - state: 'done', 'failed', 'missing' or 'damaged'
        - n_train, n_val, n_test, n_wr (samples), epochs, best_epoch
        - test_*, val_* and, for out-of-region splits, wr_*: metrics in ug/m3, R2 without unit
        - seconds, error, marked (the failed checks of the audit)
        - two columns that name what else differs from 'none': settings, and settings that a search chose
        - folds (of the split), then what the audit counted

        Cells that are not done have no metrics (NaN).
        """
        rows = self._rows()
        first = [*rows.columns[:1], "arm", *rows.columns[1:]]
        return labels.with_arm(rows)[first]

    def contrasts(self, metric: str | None = None) -> pd.DataFrame:
        """Return one row per comparison of two arms: each arm against 'none', and the pairs of the claims.

        `metric` is rmse, r2, mae, mbe or site_rmse, the mean over monitors of their RMSE. Without it, the
        study's primary metric is taken (`analysis.metric`).

        Columns (the most used ones):

        - arm, other, split, part ('test', 'wr' or the gap 'OoR − WR'), regime, metric, fold
        - estimand: what the difference is carried over to; unit, n_units: the independent unit of its test
        - n_pairs, n_seeds, mean_arm, mean_other
        - diff: arm minus other; low, high: its interval of level 1 - alpha; test, se, df
        - p, p_adjusted (Holm's method over the declared contrasts), declared, verdict
        - declared_at, changed: time of the declaration, and what changed after the first result
        - p_better, p_equal, p_worse: posterior probabilities
        - sensitivity: other tests of the same difference; untested: why there is no test
        - keys_arm, keys_other: the keys of the cells behind the row

        The values are those of the report's contrasts.csv.

        Raises InputError for an unknown metric.
        """
        study = self.study
        metric = study.analysis.metric if metric is None else metric
        known = (*SCORES, "site_rmse")
        if metric not in known:
            raise InputError("contrasts", "metric", f"{metric!r} is not a metric", f"give {_either(known)}")
        rows, records = self._rows_and_records()
        sums = artifacts.predictions(self.state.store, rows)
        looks = study.design.looks
        statuses = self.state.declared(records).contrasts
        return inference.contrasts(
            rows, study.analysis, study.claims, metric, sums, looks, Comparisons(records), statuses=statuses
        )

    def claims(self) -> pd.DataFrame:
        """Return one row per claim of the study, in the order of its file.

        Columns: claim (its text), then those of `contrasts`. The verdict is on the claim: 'supported',
        'refuted', 'undecided', 'too few' (units for a test), 'no cells', or 'tuned on test' (the search has
        used the test samples). It is 'exploratory' if the claim was declared or changed after the first
        result (column changed). A study without claims has no rows.
        """
        study = self.study
        rows, records = self._rows_and_records()
        sums = artifacts.predictions(self.state.store, rows)
        statuses = self.state.declared(records).contrasts
        looks = study.design.looks
        return inference.claims(
            rows, study.analysis, study.claims, sums, looks, Comparisons(records), statuses=statuses
        )

    def coverage(self) -> pd.DataFrame:
        """Return the coverage of prediction intervals of level `analysis.coverage`, by arm, split and region.

        The intervals of a region are calibrated on the errors of other test folds in other regions.

        Columns:

        - arm, split, part ('test' or 'wr'), regime, level
        - region ('all regions', or the edges of a square of `analysis.block_degrees`), lat, lon (its centre)
        - n (predictions), coverage (the share whose interval holds the measured value), width (mean, ug/m3)
        - n_high, coverage_high: the same for days from 35.5 ug/m3 on
        - of all regions: low, high (interval of level 1 - alpha of the mean over regions), regions, worst,
          worst_region, folds, folds_expected
        - untested: why the coverage is missing, such as too few regions; empty otherwise

        The values are those of the report's coverage.csv. Without stored predictions there are no rows.
        """
        analysis = self.study.analysis
        rows = self._rows()
        sums = artifacts.predictions(self.state.store, rows, degrees=analysis.block_degrees)
        if sums is None:
            return pd.DataFrame(columns=list(intervals.COLUMNS))
        return intervals.coverage(sums, rows, analysis)

    def predictions(self, key: str | None = None, **fields: Any) -> pd.DataFrame:
        """Return the stored predictions of done cells, one row per scored sample.

        `key` chooses one cell; its first digits are enough. `fields` choose cells by variant, fusion, head,
        arm (such as 'geoclip-hadamard'), split (a label or a kind), regime, fold or seed. A value may be a
        list, and `fusion=None` chooses arms without a fusion. Without either, every done cell is returned.

        Columns: key, arm, variant, fusion, split, fold, seed, part ('test' or 'wr'), site_id, lat, lon
        (degrees), date, truth and prediction (ug/m3). A cell of 1,400 sites and 365 days has about 70,000
        rows, so choose cells of a large study.

        Raises InputError for a key that is not that of one done cell, and for a value that no cell has.
        """
        rows = labels.with_arm(self._rows())
        cells = self.state.cells
        if fields:
            text = ",".join(
                f"{name}={'|'.join(map(_level, _levels(value)))}" for name, value in fields.items()
            )
            chosen = filters.parse(text, [*cells.values()])
            rows = rows[[bool(k) and chosen.matches(cells[k]) for k in rows["key"]]]
        if key is not None:
            rows = rows[rows["key"].str.startswith(key)]
            done = int((rows["state"] == "done").sum())
            if done != 1:
                states = ", ".join(rows["state"]) or "none"
                raise InputError(
                    self.study.study,
                    "key",
                    f"{key!r} names {len(rows)} cells ({states}), not one that is done",
                    "take a key of results()",
                )
        found = [self._predictions_of(row) for _, row in rows[rows["state"] == "done"].iterrows()]
        found = [frame for frame in found if len(frame)]
        if not found:
            return pd.DataFrame(columns=[*CELL_COLUMNS, *PREDICTION_COLUMNS])
        return pd.concat(found, ignore_index=True)

    def report(self, folder: str | os.PathLike[str], *, borders: Path | None = None) -> list[Path]:
        """Write the report to a folder and return the paths of its files.

        The files are those of `sweep report`, to the byte. `borders` is a GeoJSON file of outlines for the
        maps. Raises InputError if the folder cannot be written.
        """
        self.state.refresh()
        return write_study_report(self.state, Path(folder), borders=borders)

    def _rows(self) -> pd.DataFrame:
        return self._rows_and_records()[0]

    def _rows_and_records(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Read the store: one row per cell, and the records by key."""
        self.state.refresh()
        records = self.state.records("tables")
        for line in integrity.notices(self.state.damaged):
            warnings.warn(line, stacklevel=3)
        return self.state.rows(records), records

    def _predictions_of(self, row: pd.Series) -> pd.DataFrame:
        """Read the predictions of one done cell; a cell that stored none has no rows."""
        try:
            table = self.state.store.read_result(row["key"], "predictions").select(PREDICTION_COLUMNS)
        except FileNotFoundError:
            return pd.DataFrame()
        frame = table.to_pandas().astype({"part": "str", "site_id": "str"})
        for position, column in enumerate(CELL_COLUMNS):
            frame.insert(position, column, row[column])
        return frame


def _yaml(name: str, value: Any) -> str:
    """Format the value of an override as YAML. Raises InputError for a value that YAML cannot hold."""
    try:
        text = yaml.safe_dump(_plain(value), default_flow_style=True, width=float("inf"))
    except yaml.YAMLError:
        raise InputError(
            "sweeps.open",
            name,
            f"{value!r} is not a value that a study file can hold",
            "give a number, a text, a date, a path, a list or a dictionary",
        ) from None
    return text.removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    """Replace paths, tuples and NumPy values by their plain equivalents."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {_plain(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return value.tolist()
    return value


def _levels(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple | set | range) else [value]


def _level(value: Any) -> str:
    """Format one value of a filter; None is an arm without the factor."""
    return "-" if value is None else str(value)


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"
