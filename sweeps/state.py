"""What a study declares, beside what its store holds of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pm25 import protocol, splits
from pm25.cell import Cell
from pm25.panel import Panel
from pm25.splits import Parts
from sweeps import results, study
from sweeps.store import Record, Store
from sweeps.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.work import Embedded


class State:
    """A study with its data, its cells by key, and what the store holds of them. Raises InputError."""

    def __init__(self, reference: str, overrides: Sequence[str] = ()) -> None:
        self.study: Study = study.load(reference, overrides)
        self.panel: Panel = self.study.panel()
        self.store = Store(self.study.storage, self.study.study)
        self.cells: dict[str, Cell] = self.study.keyed(self.panel)
        """The grid's cells whose settings are known, by key, in the grid's order."""
        self._embedded: dict[str, Embedded] = {}

    def parts(self) -> dict[tuple[str, int], Parts]:
        """The cut of every split and fold; raises InputError for one that leaves a part empty."""
        cuts = {
            (factor.split.label, fold): splits.cut(factor.split, fold, self.panel, self.study.window)
            for factor in self.study.design.split
            for fold in factor.folds
        }
        if self.study.protocol == "paper":
            return {place: protocol.paper_parts(parts, self.panel) for place, parts in cuts.items()}
        return cuts

    def records(self) -> dict[str, Record]:
        """Of the cells that have ended, by key."""
        return self.store.records(self.cells)

    def embedded(self, cell: Cell) -> "Embedded | None":
        """The vectors that the cell's encoder gives the panel's places, made once."""
        from sweeps import work

        name = cell.encoder
        if name is None:
            return None
        if name not in self._embedded:
            places = self.panel.lat, self.panel.lon, self.panel.site_id
            self._embedded[name] = work.embed(name, self.study.encoder_options(name), *places)
        return self._embedded[name]

    def rows(self) -> "pd.DataFrame":
        """One row per cell (`results.rows`)."""
        return results.rows(self.cells, self.records())
