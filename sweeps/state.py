"""State of a study: its cells by key, compared with the records in its store."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pm25 import protocol, splits
from pm25.cell import Cell
from pm25.panel import Panel
from pm25.splits import SplitIndices
from sweeps.analysis.sequential import Looks
from sweeps.spec import study_file
from sweeps.spec.design import AdaptiveSeeds, Arm
from sweeps.spec.study import Study
from sweeps.store import search_trials
from sweeps.store.records import Record, Store
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
        self.key = self.study.keys(self.panel)
        """Function that computes the key of a cell."""
        self._embedded: dict[str, Embedded] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the store again, to find the settings that searches chose and the seeds that are needed."""
        self.searches: dict[Arm, ArmTrials] = search_trials.read(self.study, self.store, self.key)
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
            if Arm.of(cell) in searching:
                self.waiting.append(cell)
                waiting.append(place)
            else:
                self.cells[self.key(cell)] = cell
                known.append(place)
        self._places = [*known, *waiting]

    def _asked_for(self, cells: list[Cell], searching: Collection[Arm]) -> list[Cell]:
        """Return the cells that are needed. With adaptive seeds, this depends on the recorded results."""
        self.looks: Looks | None = None
        if not isinstance(self.study.design.seed, AdaptiveSeeds):
            return cells
        keyed = {self.key(cell): cell for cell in cells if Arm.of(cell) not in searching}
        records = self.store.records(keyed)
        self.looks = looks = Looks(self.study, ((keyed[key], record) for key, record in records.items()))
        return [cell for cell in cells if looks.asks_for(cell)]

    @property
    def further(self) -> int:
        """Largest number of cells that adaptive seeds can still add; 0 where the seeds are listed."""
        return self.looks.further if self.looks is not None else 0

    def split_indices(self) -> dict[tuple[str, int], SplitIndices]:
        """Return the samples of every fold by split label and fold.

        Raises InputError for a fold with an empty training, validation or test set.
        """
        cuts = {
            (factor.split.label, fold): splits.cut(factor.split, fold, self.panel, self.study.window)
            for factor in self.study.design.split
            for fold in factor.folds
        }
        if self.study.protocol == "paper":
            return {place: protocol.paper_indices(parts, self.panel) for place, parts in cuts.items()}
        return cuts

    def overlap_with_search(self) -> dict[tuple[str, int], float]:
        """Return the fraction of each test set whose samples a search trial trains or validates on.

        A search sees no test sample of its own folds. It may see test samples of other folds and splits, and
        then its settings were chosen with them. The fraction is the same for every arm.
        """
        if self.study.search is None:
            return {}
        sides = [
            splits.cut(placement.split, fold, self.panel, self.study.window)
            for placement in self.study.search.split
            for fold in placement.folds
        ]
        seen = np.unique(np.concatenate([part for cut in sides for part in (cut.train, cut.validation)]))
        return {place: float(np.isin(cut.test, seen).mean()) for place, cut in self.split_indices().items()}

    def records(self) -> dict[str, Record]:
        """Return the records of the cells that have ended, by key.

        Their fields about the search describe the search as it is now.
        """
        found = self.store.records(self.cells)
        tuning = {arm: self.tuning(arm) for arm in self.study.arms()}
        for key, record in found.items():
            for name in TUNING:
                record.pop(name, None)
            record |= tuning[Arm.of(self.cells[key])]
        return found

    def trials(self) -> list[Record]:
        """Return the records of the search trials that have ended."""
        return [record for trials in self.searches.values() for record in trials.ended]

    def cell_counts(self, records: Mapping[str, Record]) -> dict[str, int]:
        """Count the cells: `total`, `done`, `failed` and `missing`; `records` are those of `records()`."""
        states = [records[key]["state"] if key in records else "missing" for key in self.cells]
        states += ["missing"] * len(self.waiting)
        counts = {state: states.count(state) for state in ("done", "failed", "missing")}
        return {"total": len(states), **counts}

    def trial_counts(self) -> dict[str, int]:
        """Count the search trials: `total`, `done` and `failed`; pruned trials count as done."""
        states = [record["state"] for record in self.trials()]
        failed = states.count("failed")
        total = sum(trials.search.trials for trials in self.searches.values())
        return {"total": total, "done": len(states) - failed, "failed": failed}

    def retried_trials(self) -> list[str]:
        """Return the keys of failed search trials that may succeed if repeated.

        Trials whose training diverged are left out, because they would diverge again.
        """
        failed = [record for record in self.trials() if record["state"] == "failed"]
        return [record["key"] for record in failed if record["error"]["type"] != "Diverged"]

    def tuning(self, arm: Arm) -> dict[str, Any]:
        """Return the fields of a record about the search that chose the arm's settings; empty without one."""
        trials = self.searches.get(arm)
        best = trials.best() if trials is not None else None
        if trials is None or best is None:
            return {}
        declared = {"trials": trials.search.trials, "epochs": trials.search.epochs}
        spent = {"trials": len(trials.ended), "epochs": trials.epochs}
        return {"tuned": best["params"], "search": declared, "searched": {"trial": best["key"], **spent}}

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
        """Return, for every arm with a search, its label in tables and its numbers of trials.

        `n` trials were done or pruned, `n_failed` failed, and `n_expected` were declared.
        """
        from sweeps.analysis import labels

        found = []
        for arm, trials in self.searches.items():
            failed = sum(record["state"] == "failed" for record in trials.ended)
            count = {"n": len(trials.ended) - failed, "n_failed": failed, "n_expected": trials.search.trials}
            found.append((labels.arm(arm.variant, arm.fusion), {k: float(v) for k, v in count.items()}))
        return found

    def data(self) -> dict[str, Any]:
        """Return the description of the data set for MLflow: name, source, schema and profile."""
        declared, panel = self.study.data, self.panel
        made: dict[str, Any] = {"uri": str(declared.table)}
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
