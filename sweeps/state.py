"""State of a study: its cells by key, compared with the records in its store."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pm25 import samples, splits, uri
from pm25.cell import Cell
from pm25.panel import Panel
from pm25.splits import MatchedFolds, SplitIndices
from sweeps.analysis import declarations
from sweeps.analysis.declarations import History
from sweeps.analysis.sequential import Looks
from sweeps.spec import study_file
from sweeps.spec.design import FoldArm, Scope
from sweeps.spec.study import Study
from sweeps.store import channel_orders, integrity, search_trials
from sweeps.store import declarations as stored_declarations
from sweeps.store.records import Files, Record, Store, intact
from sweeps.store.search_trials import ArmTrials

if TYPE_CHECKING:
    import pandas as pd

    from pm25.encoders import Embedded


TUNING = ("tuned", "search", "searched")
"""Fields of a record about the search that chose its settings: the point, the budget, and its use."""


class StudyState:
    """A study with its data, its cells by key, and its store.

    Parameters
    ----------
    reference : str
        Study file, or the name of a shipped study.
    overrides : sequence of str
        Settings in the form `a.b=value`.

    Raises InputError for a study, a table or a store that cannot be used.
    """

    def __init__(self, reference: str, overrides: Sequence[str] = ()) -> None:
        self.study: Study = study_file.load(reference, overrides)
        self.panel: Panel = self.study.panel()
        self.store = Store(self.study.storage, self.study.study)
        self.reordered = False
        """True if the channels have the order of the stored results, and the table's is another."""
        if self.study.data.channels is None:
            order = channel_orders.stored_order(self.panel, self.store)
            if order is not None and order != self.panel.channels:
                self.panel, self.reordered = self.panel.with_channel_order(order), True
        self.key = self.study.keys(self.panel)
        """Function that computes the key of a cell."""
        self._embedded: dict[str, Embedded] = {}
        self._overlap: dict[tuple[str, int], float] | None = None
        self.unsealed = 0
        """Number of cells without a digest, as the last call of `records` found them."""
        self.damaged_cells: list[Record] = []
        self.refresh()

    def refresh(self) -> None:
        """Read the store again, to find the settings that searches chose and the seeds that are needed."""
        self.searches: dict[Scope, ArmTrials] = search_trials.read(self.study, self.store, self.key)
        tuned = search_trials.tuned(self.searches)
        self.cells: dict[str, Cell] = {}
        """Cells whose settings are known, by key, in the order of the grid."""
        self.waiting: list[Cell] = []
        """Cells of arms whose search has not chosen settings yet; their settings are preliminary."""
        searching = self.searches.keys() - tuned.keys()
        known, waiting = [], []
        self.grid: list[Cell] = self._asked_for(self.study.cells(tuned), searching)
        """All cells of the study, in the order of the grid."""
        for place, cell in enumerate(self.grid):
            if self.study.scope(cell) in searching:
                self.waiting.append(cell)
                waiting.append(place)
            else:
                self.cells[self.key(cell)] = cell
                known.append(place)
        self._places = [*known, *waiting]

    def _asked_for(self, cells: list[Cell], searching: Collection[Scope]) -> list[Cell]:
        """Return the cells that are needed. With an adaptive design, this depends on the recorded results."""
        self.looks: Looks | None = None
        if not self.study.design.looks.adaptive:
            return cells
        keyed = {self.key(cell): cell for cell in cells if self.study.scope(cell) not in searching}
        records = self.store.records(keyed, "tables")  # the looks read the predictions
        ended = ((keyed[key], record) for key, record in intact(records).items())
        self.looks = looks = Looks(self.study, self.store, ended)
        return [cell for cell in cells if looks.asks_for(cell)]

    @property
    def further(self) -> int:
        """Largest number of cells that adaptive seeds and repeats can still add; 0 without them."""
        return self.looks.further if self.looks is not None else 0

    @property
    def shown_storage(self) -> str:
        """Storage for messages: an absolute path, or an address without its user and password."""
        return uri.without_secrets(self.store.storage)

    def split_indices(self) -> dict[tuple[str, int], SplitIndices]:
        """Return the samples of every fold by split label and fold.

        Raises InputError for a fold with an empty training, validation or test set.
        """
        return {
            (factor.split.label, fold): self.study.cut(factor.split, fold, self.panel)
            for factor in self.study.design.split
            for fold in factor.folds
        }

    def matched_folds(self) -> dict[str, MatchedFolds]:
        """Return the folds of the kNNDM splits of the design with their match to the domain, by label."""
        sites = np.unique(self.panel.samples(self.study.window)[0])
        return {
            split.label: splits.matched(split, self.panel, sites)
            for split in (factor.split for factor in self.study.design.split)
            if isinstance(split, splits.KNNDMSplit)
        }

    def overlap_with_search(self) -> dict[tuple[str, int], float]:
        """Return the fraction of each test set whose samples are trained on or scored by its own search.

        A search sees no test sample of its own folds. It may see test samples of other folds and splits, and
        then its settings were chosen with them. The fraction is the same for every arm. If that of the
        within-region test set is larger, it is returned.
        """
        if self._overlap is None:
            self._overlap = {} if self.study.search is None else self._measure_overlap()
        return self._overlap

    def _measure_overlap(self) -> dict[tuple[str, int], float]:
        arm, seen, found = self.study.arms()[0], dict[Scope, np.ndarray](), {}
        nested = self.study.search is not None and self.study.search.nested
        for (label, fold), indices in self.split_indices().items():
            scope: Scope = FoldArm(arm, label, fold) if nested else arm
            if scope not in seen:
                trainings = search_trials.trainings(self.study, scope, {})
                without_seeds = dict.fromkeys(cell.model_copy(update={"seed": 0}) for cell in trainings)
                used = [samples.trained_or_scored(cell, self.panel) for cell in without_seeds]
                seen[scope] = np.unique(np.concatenate(used))
            parts = [indices.test] if indices.wr is None else [indices.test, indices.wr]
            found[label, fold] = max(float(np.isin(part, seen[scope]).mean()) for part in parts)
        return found

    def records(self, files: Files = "none") -> dict[str, Record]:
        """Return the records of the cells that have ended, by key; a damaged one has a state and no results.

        Their fields about the search describe the search as it is now. `files` are those whose digests are
        checked too (`Store.records`).
        """
        checked = self.store.checked(self.cells, files)
        self.unsealed = sum(not one.sealed for one in checked.values() if one.record["state"] != "damaged")
        found = {key: self.of_its_cell(key, one.record) for key, one in checked.items()}
        self.damaged_cells = [record for record in found.values() if record["state"] == "damaged"]
        tuning: dict[tuple[Scope, str, int], dict[str, Any]] = {}
        for key, record in intact(found).items():
            for name in TUNING:
                record.pop(name, None)
            cell = self.cells[key]
            place = self.study.scope(cell), cell.split.label, cell.fold
            if place not in tuning:
                tuning[place] = self.tuning(cell)
            record |= tuning[place]
        return found

    def of_its_cell(self, key: str, record: Record) -> Record:
        """Return a record, or a damaged one if it is that of another cell.

        The key of a split by groups cannot be computed from the record alone, nor that of a lost worker.
        """
        if record["state"] == "damaged":
            return record
        cell, kinds = self.cells[key], (self.cells[key].split.kind, record["cell"]["split"]["kind"])
        proved = record["state"] == "done" and "group" not in kinds
        if proved or record["cell"] == cell.resolved():
            return record
        _, path = self.store.location(self.store.folder, key, "result.json")
        return integrity.damaged(key, path, "its cell is that of another key")

    @property
    def damaged_trials(self) -> list[Record]:
        """Damaged records of search trials; one that may belong to several searches is listed once."""
        found = {record["key"]: record for trials in self.searches.values() for record in trials.damaged}
        return [*found.values()]

    @property
    def damaged(self) -> list[Record]:
        """Damaged records of cells, as the last call of `records` found them, and of search trials."""
        return [*self.damaged_cells, *self.damaged_trials]

    def trials(self) -> list[Record]:
        """Return the records of the search trials that have ended."""
        return [record for trials in self.searches.values() for record in trials.ended]

    def cell_counts(self, records: Mapping[str, Record]) -> dict[str, int]:
        """Count the cells: `total`, `done`, `failed`, `missing`, `damaged`, from what `records` returns."""
        states = [records[key]["state"] if key in records else "missing" for key in self.cells]
        states += ["missing"] * len(self.waiting)
        counts = {state: states.count(state) for state in ("done", "failed", "missing", "damaged")}
        return {"total": len(states), **counts}

    def declared(self, records: Mapping[str, Record]) -> History:
        """Compare the declared claims and settings with those that runs have stored.

        `records` are those of `records()`. Raises InputError for a damaged file of declarations.
        """
        stored, present = stored_declarations.read(self.store), stored_declarations.content(self.study)
        results = self.cell_counts(records)["done"], self.trial_counts()["done"]
        return declarations.history(stored, present, *results)

    def trial_counts(self) -> dict[str, int]:
        """Count the search trials: `total`, `done`, `failed` and `damaged`; pruned trials count as done."""
        states = [record["state"] for record in self.trials()]
        failed = states.count("failed")
        total = sum(trials.search.trials for trials in self.searches.values())
        counts = {"total": total, "done": len(states) - failed, "failed": failed}
        return {**counts, "damaged": len(self.damaged_trials)}

    def retried_trials(self) -> list[str]:
        """Return the keys of failed search trials that may succeed if repeated.

        Trials whose training diverged are left out, because they would diverge again.
        """
        failed = [record for record in self.trials() if record["state"] == "failed"]
        return [record["key"] for record in failed if record["error"]["type"] != "Diverged"]

    def tuning(self, cell: Cell) -> dict[str, Any]:
        """Return the fields of a record about the search that chose a cell's settings; empty without one."""
        trials = self.searches.get(self.study.scope(cell))
        best = trials.best() if trials is not None else None
        if trials is None or best is None:
            return {}
        declared = {"trials": trials.search.trials, "epochs": trials.search.epochs}
        spent = {"trials": len(trials.ended), "epochs": trials.epochs}
        share = self.overlap_with_search()[cell.split.label, cell.fold]
        searched = {"trial": best["key"], **spent, "test_share": share}
        return {"tuned": best["params"], "search": declared, "searched": searched}

    def embedded(self, cell: Cell) -> "Embedded | None":
        """Return the vectors of the cell's encoder for the places of the panel, computed once per encoder.

        None for a cell without an encoder.
        """
        from pm25 import encoders

        name = cell.encoder
        if name is None:
            return None
        if name not in self._embedded:
            places = self.panel.lat, self.panel.lon, self.panel.site_id
            self._embedded[name] = encoders.embed(name, self.study.encoder_options(name), *places)
        return self._embedded[name]

    def search_summaries(self) -> list[tuple[str, dict[str, float]]]:
        """Return, for every arm with a search, its label in tables and its numbers of trials over all folds.

        `n` trials were done or pruned, `n_failed` failed, and `n_expected` were declared.
        """
        from sweeps.analysis import labels

        found: dict[str, dict[str, float]] = {}
        for trials in self.searches.values():
            failed = sum(record["state"] == "failed" for record in trials.ended)
            count = {"n": len(trials.ended) - failed, "n_failed": failed, "n_expected": trials.search.trials}
            total = found.setdefault(labels.of_arm(trials.arm), dict.fromkeys(count, 0.0))
            for name, number in count.items():
                total[name] += number
        return [*found.items()]

    def data(self) -> dict[str, Any]:
        """Return the description of the data set for MLflow: name, source, schema and profile."""
        declared, panel = self.study.data, self.panel
        made: dict[str, Any] = {"uri": uri.without_secrets(str(declared.table))}
        if declared.synthetic is not None:
            made = {"synthetic": declared.synthetic.model_dump(mode="json")}
        columns = [{"name": channel, "type": "float"} for channel in panel.channels]
        return {
            "name": panel.name,
            "source": made,
            "schema": {"mlflow_colspec": [*columns, {"name": "pm25", "type": "float"}]},
            "profile": {
                "num_rows": panel.observed,
                "sites": len(panel.site_id),
                "days": len(panel.dates),
                "first_day": str(panel.dates[0]),
                "last_day": str(panel.dates[-1]),
            },
        }

    def facts(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """Return the provenance of the results (`results.facts`)."""
        from sweeps.analysis import results  # imports pandas, which most commands do not need

        return results.facts(self.study, self.panel, records, self.overlap_with_search())

    def rows(self, records: Mapping[str, Record] | None = None) -> "pd.DataFrame":
        """Return the table of results (`results.rows`): one row for each cell, in the order of the grid.

        Cells that wait for a search have rows too. `records`, the result of `StudyState.records`, avoids a
        second reading of the store.
        """
        from sweeps.analysis import results

        rows = results.rows(self.cells, self.records() if records is None else records, self.waiting)
        return rows.iloc[np.argsort(self._places)].reset_index(drop=True) if self.waiting else rows
