"""Winner of each arm: the seed with the lowest pooled validation error, and the model made of it."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from pm25.cell import Cell
from pm25.errors import InputError
from sweeps.engine.worker import WEIGHTS, stored_weights
from sweeps.spec.design import Arm
from sweeps.spec.study import Study
from sweeps.store.integrity import DamagedFile
from sweeps.store.records import Record, Store, failed_checks
from sweeps.tracking import model_card

if TYPE_CHECKING:
    import pandas as pd

    from pm25.panel import Panel
    from pm25.predictor import Predictor
    from pm25.splits import SplitIndices
    from sweeps.analysis.artifacts import Predicted
    from sweeps.state import StudyState


@dataclass(frozen=True)
class Winner:
    """Model of an arm, which can be served."""

    arm: str
    """Label of the arm in tables (`labels.arm`)."""
    name: str
    """Label of the arm in file names and commands: `none`, `geoclip-hadamard`."""
    key: str
    cell: Cell
    card: str
    """Model card, in Markdown."""
    tags: dict[str, str]
    inputs: dict[str, str]
    """Columns of the input with their types: 'double', 'long', 'string', or 'array' (of doubles)."""
    store: Store
    encoder_options: dict[str, Any]
    intervals: str
    """Calibration of its prediction intervals (`pm25.intervals.Calibration.to_json`)."""

    def predictor(self) -> "Predictor":
        """Load the model. Raises InputError if its weights are no longer stored."""
        from pm25 import encoders
        from pm25.intervals import Calibration
        from pm25.predictor import Predictor

        kept = stored_weights(self.key, self.store)
        if kept is None:
            fix = "set keep_weights: winners and run the cell again"
            raise InputError(self.key, "weights.pt", "the weights of this cell are no longer stored", fix)
        name = self.cell.encoder
        source = None if name is None else encoders.source(name, **self.encoder_options)
        return Predictor(self.cell, *kept, source, Calibration.from_json(self.intervals))

    def write(self, folder: Path) -> None:
        """Write the folder that `pm25.predictor._load_pyfunc` reads."""
        self.predictor().save(folder)


def best(
    study: Study,
    cells: Mapping[str, Cell],
    records: Mapping[str, Record],
    held: Collection[str] | None = None,
) -> dict[Arm, str]:
    """Find the key of the winning cell of each arm, controls included.

    The seed with the lowest validation RMSE over all folds of `Study.winner_split` wins: the squared errors
    of the validation samples of all its folds are pooled. Its cell on the first fold is the model, so the
    models of all arms are trained on the same samples. The validation set of a single fold may be easy, and
    thus decides nothing. Test scores are not used.

    A seed with more done folds comes before one with fewer, and an earlier seed before an equal one. If the
    cell on the first fold failed, the next fold counts. With `held`, keys of cells with stored weights, the
    best one of these is chosen, if an arm has any.
    """
    found = {}
    for arm, ranked in _ranked(study, cells, records).items():
        with_weights = [key for key in ranked if held is not None and key in held]
        found[arm] = (with_weights or ranked)[0]
    return found


def ensemble(
    study: Study, cells: Mapping[str, Cell], records: Mapping[str, Record], held: Collection[str], arm: Arm
) -> list[str]:
    """Find the keys of an arm's winning seed on all folds that have weights (`held`), in order of the folds.

    The first one is that of `best`. The list is empty if no done cell of the arm has weights.
    """
    ranked = [key for key in _ranked(study, cells, records).get(arm, []) if key in held]
    return [key for key in ranked if cells[key].seed == cells[ranked[0]].seed]


def _ranked(study: Study, cells: Mapping[str, Cell], records: Mapping[str, Record]) -> dict[Arm, list[str]]:
    """Rank the done cells of each arm on the split of winners, the best first."""
    done: dict[Arm, dict[int, list[tuple[int, str]]]] = {}
    for key, cell in cells.items():
        record = records.get(key)
        if record is None or cell.is_reference:
            continue
        if record["state"] == "done" and cell.split == study.winner_split:
            done.setdefault(Arm.of(cell), {}).setdefault(cell.seed, []).append((cell.fold, key))
    found = {}
    for arm, of_seed in done.items():
        order = sorted(
            (-len(folds), _pooled_validation_rmse([records[key] for _, key in folds]), seed)
            for seed, folds in of_seed.items()
        )
        found[arm] = [key for _, _, seed in order for _, key in sorted(of_seed[seed])]
    return found


def _pooled_validation_rmse(records: Sequence[Record]) -> float:
    """RMSE over the validation samples of all `records`, infinite if a record has none."""
    samples = squares = 0.0
    for record in records:
        rmse = record["metrics"]["val_rmse"]
        if rmse is None:
            return math.inf
        samples += record["counts"]["n_val"]
        squares += record["counts"]["n_val"] * rmse**2
    return math.sqrt(squares / samples)


class WeightRetention:
    """Deletes the weights of cells that are not their arm's winner.

    With `keep_weights: winners`, the winning seed keeps those of its first done fold, and with `folds` those
    of every fold. While cells of an arm are missing, its best seed is not known. Each seed then keeps what it
    would keep as the winner. Only recorded cells lose their weights: they stay done, while a cell without a
    record may be about to end.
    """

    def __init__(self, study: Study, store: Store) -> None:
        self._study, self._store = study, store
        self._first: dict[tuple[Arm, int], tuple[int, str]] = {}
        """Fold and key of the first fold of each arm and seed that is done and has weights."""

    def tidy(self, cells: Mapping[str, Cell], records: Mapping[str, Record]) -> None:
        """Compare all cells of the study; cells with other settings in the same store are not changed."""
        if not isinstance(self._study.keep_weights, str):
            return
        self._first = {}
        folds: set[str] = set()
        held = self._store.holding(WEIGHTS) & records.keys()
        waiting = {Arm.of(cell) for key, cell in cells.items() if key not in records and self._wins(cell)}
        for arm, ranked in _ranked(self._study, cells, records).items():
            with_weights = [key for key in ranked if key in held]
            seeds = {cells[key].seed for key in (with_weights if arm in waiting else with_weights[:1])}
            folds.update(key for key in with_weights if cells[key].seed in seeds)
            for key in with_weights if arm in waiting else with_weights[:1]:
                place, one = (arm, cells[key].seed), (cells[key].fold, key)
                self._first[place] = min(one, self._first.get(place, one))
        kept = folds if self._study.keep_weights == "folds" else {key for _, key in self._first.values()}
        for key in held - kept:
            self._store.delete_file(key, WEIGHTS)

    def ended(self, record: Record) -> None:
        """Compare a new record with the other folds of its seed, and delete the weights of a later fold."""
        if self._study.keep_weights != "winners" or record["state"] != "done":
            return
        cell = Cell.model_validate(record["cell"])
        if not self._wins(cell):
            return
        place, one = (Arm.of(cell), cell.seed), (cell.fold, record["key"])
        before = self._first.get(place, one)
        self._first[place] = min(one, before)
        if before != one:
            self._store.delete_file(max(one, before)[1], WEIGHTS)

    def _wins(self, cell: Cell) -> bool:
        """Return True if a cell has weights and is on the split whose cells may win."""
        return not cell.is_reference and cell.split == self._study.winner_split


def winners(state: "StudyState", records: Mapping[str, Record], sums: "Predicted | None") -> list[Winner]:
    """Models of the arms in the study's order, without controls and winners without weights.

    `sums` are the stored predictions (`artifacts.predictions`), which calibrate the prediction intervals.
    """
    from pm25 import encoders
    from sweeps.analysis import by_monitor, coverage, labels

    held = state.store.holding(WEIGHTS)
    chosen = best(state.study, state.cells, records, held)
    rows = state.rows(records)
    facts = state.facts(records)
    found: list[Winner] = []
    splits = state.split_indices() if chosen and sums is not None else {}
    nearest_km = by_monitor.monitors(state.panel, {}, splits).nearest_km if splits else {}
    regimes = {factor.split.label: factor.split.regime for factor in state.study.design.split}
    lowest = round(float(np.nanmin(state.panel.target)), 3)
    for arm in state.study.arms():
        key = chosen.get(arm)
        if key is None or key not in held or state.cells[key].is_control:
            continue
        try:
            state.store.read_recorded(key, WEIGHTS)
        except DamagedFile as error:
            click.echo(f"sweep: {error}", err=True)
            continue
        cell, record = state.cells[key], records[key]
        options = {} if cell.encoder is None else state.study.encoder_options(cell.encoder)
        lookup_keys: tuple[str, ...] = ()
        if cell.encoder is not None:
            lookup_keys = encoders.lookup_keys(cell.encoder, **options)
        channels = (*state.panel.channels, *(cell.neighbours.channels if cell.neighbours else ()))
        kinds = {"lat": "double", "lon": "double", "month": "long", "site_id": "string"}
        inputs = {name: kinds[name] for name in ("lat", "lon", *lookup_keys)} | dict.fromkeys(
            channels, "array"
        )
        label = labels.arm(arm.variant, arm.fusion)
        monitors = _training_monitors(state.panel, splits.get((cell.split.label, cell.fold)))
        calibration = coverage.calibration(
            sums, label, regimes, nearest_km, state.study.analysis.coverage, lowest, monitors
        )
        card = model_card.card(label, cell, record, rows, facts, inputs, state.panel, options, calibration)
        tags = _tags(state.study, arm, record)
        texts = card, tags, inputs, state.store, options, calibration.to_json()
        found.append(Winner(label, arm.label, key, cell, *texts))
    return found


def _training_monitors(panel: "Panel", indices: "SplitIndices | None") -> list[tuple[float, float]]:
    """Return latitude and longitude of the training monitors of a fold, in degrees."""
    if indices is None:
        return []
    sites = np.unique(indices.train // len(panel.dates))
    return [(float(lat), float(lon)) for lat, lon in zip(panel.lat[sites], panel.lon[sites], strict=True)]


def _tags(study: Study, arm: Arm, record: Record) -> dict[str, str]:
    cell, tags = record["cell"], {"study": study.study, "arm": arm.label, "key": record["key"]}
    tags |= {name: cell[name] for name in ("variant", "fusion") if name in cell}
    tags |= {"split": study.winner_split.label, "fold": str(cell["fold"]), "seed": str(cell["seed"])}
    tags |= {"protocol": study.protocol, "data": record["data"], "numerics": str(record["numerics"])}
    tags |= {name: record[name] for name in ("encoder", "commit") if record.get(name)}
    numbers = {name: record["metrics"].get(name) for name in ("val_rmse", "test_rmse", "test_r2")}
    tags |= {name: f"{value:.4f}" for name, value in numbers.items() if value is not None}
    if failed := failed_checks(record):
        tags["audit"] = "; ".join(failed)
    return tags


def example(state: "StudyState", winner: Winner) -> "pd.DataFrame":
    """Build an input row for the model: the test sample of its cell with the fewest missing values."""
    import pandas as pd

    from pm25 import trial

    panel = state.panel
    stored = winner.store.read_result(winner.key, "predictions").to_pandas()
    tested = stored[stored["part"] == "test"]
    site = np.searchsorted(panel.site_id, tested["site_id"].to_numpy(str))
    day = (tested["date"].to_numpy("datetime64[D]") - panel.dates[0]).astype(int)
    missing = np.isnan(panel.features).sum(axis=2).cumsum(axis=1)
    missing = np.pad(missing, ((0, 0), (1, 0)))
    at = int(np.argmin(missing[site, day + 1] - missing[site, day + 1 - winner.cell.window]))
    site, day = site[at : at + 1], day[at : at + 1]
    channels, window = trial.raw_windows(winner.cell, panel, site * len(panel.dates) + day)
    known: dict[str, Any] = {
        "lat": panel.lat[site],
        "lon": panel.lon[site],
        "month": panel.dates[day].astype("datetime64[M]").astype(int) % 12 + 1,
        "site_id": panel.site_id[site].astype(object),
    }
    known |= {name: [window[0, :, i].astype(float).tolist()] for i, name in enumerate(channels)}
    return pd.DataFrame({name: known[name] for name in winner.inputs})


def requirements() -> list[str]:
    """Requirements of `pm25.predictor` for pip, with the versions that are installed here."""
    names = ("torch", "numpy", "pandas", "pyarrow", "pydantic")
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in names]
