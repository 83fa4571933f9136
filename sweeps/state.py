"""What a study declares, beside what its store holds of it."""

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
"""What a record says of the search behind its settings: the point, the budget, what was spent."""


class StudyState:
    """A study with its data, its cells by key, and what the store holds of them. Raises InputError."""

    def __init__(self, reference: str, overrides: Sequence[str] = ()) -> None:
        self.study: Study = study_file.load(reference, overrides)
        self.panel: Panel = self.study.panel()
        self.store = Store(self.study.storage, self.study.study)
        self.key = self.study.keys(self.panel)
        """What names a cell."""
        self._embedded: dict[str, Embedded] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look again which searches are over, and which seeds are asked for: so which cells there are."""
        self.searches: dict[Arm, ArmTrials] = search_trials.read(self.study, self.store, self.key)
        tuned = search_trials.tuned(self.searches)
        self.cells: dict[str, Cell] = {}
        """The grid's cells whose settings are known, by key, in the grid's order."""
        self.waiting: list[Cell] = []
        """The cells of arms whose search has chosen nothing yet; their settings are not the final ones."""
        searching = self.searches.keys() - tuned.keys()
        known, waiting = [], []
        self.grid: list[Cell] = self._asked_for(self.study.cells(tuned), searching)
        """All cells of the study, in order."""
        for place, cell in enumerate(self.grid):
            if Arm.of(cell) in searching:
                self.waiting.append(cell)
                waiting.append(place)
            else:
                self.cells[self.key(cell)] = cell
                known.append(place)
        self._places = [*known, *waiting]

    def _asked_for(self, cells: list[Cell], searching: Collection[Arm]) -> list[Cell]:
        """Those of `cells` that the records ask for, where the study adds seeds by what they say."""
        self.looks: Looks | None = None
        if not isinstance(self.study.design.seed, AdaptiveSeeds):
            return cells
        keyed = {self.key(cell): cell for cell in cells if Arm.of(cell) not in searching}
        records = self.store.records(keyed)
        self.looks = looks = Looks(self.study, ((keyed[key], record) for key, record in records.items()))
        return [cell for cell in cells if looks.asks_for(cell)]

    @property
    def further(self) -> int:
        """How many cells will be added at most, where the study adds seeds to what is undecided."""
        return self.looks.further if self.looks is not None else 0

    def parts(self) -> dict[tuple[str, int], SplitIndices]:
        """The cut of every split and fold; raises InputError for one that leaves a part empty."""
        cuts = {
            (factor.split.label, fold): splits.cut(factor.split, fold, self.panel, self.study.window)
            for factor in self.study.design.split
            for fold in factor.folds
        }
        if self.study.protocol == "paper":
            return {place: protocol.paper_parts(parts, self.panel) for place, parts in cuts.items()}
        return cuts

    def known_to_search(self) -> dict[tuple[str, int], float]:
        """Share of each test set's samples that lie on the training side of a search trial.

        A search sees no test sample of the folds that it is given; those of other folds and splits it may,
        as training or validation samples: its settings were chosen with them. The same holds for every arm.
        """
        if self.study.search is None:
            return {}
        sides = [
            splits.cut(placement.split, fold, self.panel, self.study.window)
            for placement in self.study.search.split
            for fold in placement.folds
        ]
        seen = np.unique(np.concatenate([part for cut in sides for part in (cut.train, cut.validation)]))
        return {place: float(np.isin(cut.test, seen).mean()) for place, cut in self.parts().items()}

    def records(self) -> dict[str, Record]:
        """Of the cells that have ended, by key; with the searches as they are now behind their settings."""
        found = self.store.records(self.cells)
        tuning = {arm: self.tuning(arm) for arm in self.study.arms()}
        for key, record in found.items():
            for name in TUNING:
                record.pop(name, None)
            record |= tuning[Arm.of(self.cells[key])]
        return found

    def trials(self) -> list[Record]:
        """Of the search trials that have ended."""
        return [record for trials in self.searches.values() for record in trials.ended]

    def retried_trials(self) -> list[str]:
        """Keys of the failed search trials that may go better; not of points at which training diverges."""
        failed = [record for record in self.trials() if record["state"] == "failed"]
        return [record["key"] for record in failed if record["error"]["type"] != "Diverged"]

    def tuning(self, arm: Arm) -> dict[str, Any]:
        """What a cell's record says of the search behind its settings; nothing where there was none."""
        trials = self.searches.get(arm)
        best = trials.best() if trials is not None else None
        if trials is None or best is None:
            return {}
        declared = {"trials": trials.search.trials, "epochs": trials.search.epochs}
        spent = {"trials": len(trials.ended), "epochs": trials.epochs}
        return {"tuned": best["params"], "search": declared, "searched": {"trial": best["key"], **spent}}

    def embedded(self, cell: Cell) -> "Embedded | None":
        """The vectors that the cell's encoder gives the panel's places, made once."""
        from pm25 import encoders

        name = cell.encoder
        if name is None:
            return None
        if name not in self._embedded:
            places = self.panel.lat, self.panel.lon, self.panel.site_id
            self._embedded[name] = encoders.embed(name, self.study.encoder_options(name), *places)
        return self._embedded[name]

    def searched(self) -> list[tuple[str, dict[str, float]]]:
        """Of every arm that is searched its label in tables, and how many of its trials have ended how."""
        from sweeps.analysis import labels

        found = []
        for arm, trials in self.searches.items():
            failed = sum(record["state"] == "failed" for record in trials.ended)
            count = {"n": len(trials.ended) - failed, "n_failed": failed, "n_expected": trials.search.trials}
            found.append((labels.arm(arm.variant, arm.fusion), {k: float(v) for k, v in count.items()}))
        return found

    def data(self) -> dict[str, Any]:
        """What MLflow shows of the data set, beside its fingerprint."""
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
        """Where the numbers come from (`results.facts`)."""
        from sweeps.analysis import results  # and pandas, which most commands do without

        return results.facts(self.study, self.panel, records, self.known_to_search())

    def rows(self, records: Mapping[str, Record] | None = None) -> "pd.DataFrame":
        """One row per cell (`results.rows`), those of waiting arms at their places in the grid's order.

        `records` (`State.records`) spares reading them once more.
        """
        from sweeps.analysis import results

        rows = results.rows(self.cells, self.records() if records is None else records, self.waiting)
        return rows.iloc[np.argsort(self._places)].reset_index(drop=True) if self.waiting else rows
