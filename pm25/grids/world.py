"""Covariates and truth of the synthetic world on a grid of its land."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from pm25.grids.cells import MOST_BLOCK_DAYS, Block, conus_cells
from pm25.grids.table import block_of
from pm25.sources import synthetic


class WorldGrid:
    """Covariates of cells in the world of a synthetic panel.

    `panel` are the arguments of `synthetic.synthesize`, of which `sites` has no meaning here. The cells are
    those of `conus_cells`.
    """

    far: np.ndarray | None = None
    name, origin = "synthetic", "covariates of the synthetic world"

    def __init__(self, panel: Mapping[str, Any], degrees: float, channels: Sequence[str]) -> None:
        self.lat, self.lon = conus_cells(degrees)
        self.channels = tuple(channels)
        self._panel = {name: value for name, value in panel.items() if name != "sites"}
        self.days = synthetic.days_of(panel["start"], panel["days"])

    def write(self, path: Path) -> None:
        """Write all days as a Parquet file, of which `GridTable` reads a few days at a time."""
        writer = None
        try:
            for first in self.days[::MOST_BLOCK_DAYS]:
                last = min(first + (MOST_BLOCK_DAYS - 1), self.days[-1])
                made = synthetic.synthesize_grid(self.lat, self.lon, first, last, **self._panel)
                table = pa.Table.from_pandas(made, preserve_index=False)
                writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema, compression="zstd")
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()

    def read(self, first: np.datetime64, last: np.datetime64) -> Block:
        """Make the days from `first` to `last`."""
        made = synthetic.synthesize_grid(self.lat, self.lon, first, last, **self._panel)
        cell = np.repeat(np.arange(len(self.lat)), len(made) // len(self.lat))
        table = pa.Table.from_pandas(made, preserve_index=False)
        begin, end = (int(day.astype("datetime64[D]").astype(int)) for day in (first, last))
        return block_of(table, cell, len(self.lat), self.channels, begin, end, self.name)
