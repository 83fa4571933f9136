"""A trained model that predicts PM2.5 from windows and places, and its folder on disk.

A folder written by `Predictor.save` contains the encoder's weights, so only this package is needed to load
it. MLflow loads it with `_load_pyfunc`, the only function of this package that is meant for MLflow.
"""

import json
import reprlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from pm25 import encoders
from pm25.cell import Cell
from pm25.errors import InputError
from pm25.fit import SCORING_BATCH
from pm25.intervals import OUTPUTS, Calibration
from pm25.model import network
from pm25.scaling import Scaler, TargetScale
from pm25.windows import place_channels

if TYPE_CHECKING:
    import pandas as pd

INPUT = "model input"
"""Name of the data to predict in error messages."""


class Predictor:
    """The trained model of a cell, on the CPU.

    `weights` and `scaling` are those of a `pm25.trial.Result`. `encoder` is the encoder of the cell's
    variant (`pm25.encoders.source`), or None. `calibration` has the radii of its prediction intervals; a
    model that an earlier version stored has none. Raises InputError for a control, whose predictions are of
    no use.
    """

    def __init__(
        self,
        cell: Cell,
        weights: Mapping[str, torch.Tensor],
        scaling: Mapping[str, Any],
        encoder: encoders.Source | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if cell.is_control:
            raise InputError(cell.label, "", "a control is not a model to serve", "take another arm")
        if (encoder and encoder.name) != cell.encoder:
            raise ValueError(
                f"{cell.label} embeds places with {cell.encoder}, not {encoder and encoder.name}"
            )
        self.cell, self.channels, self.calibration = cell, tuple(scaling["channels"]), calibration
        self._weights, self._scaling, self._source = dict(weights), dict(scaling), encoder
        scalers = {
            name: Scaler(np.array(fitted["mean"]), np.array(fitted["std"]))
            for name, fitted in scaling["scalers"].items()
        }
        self._scaler, self._place_scaler = scalers["channels"], scalers.get("place")
        self._target = TargetScale(**scaling["target"])
        self._encoder = None if encoder is None else encoder.encoder()
        place = 0 if self._place_scaler is None else len(self._place_scaler.mean)
        dim = 0 if self._encoder is None else self._encoder.dim
        self._model = network(cell, len(self.channels) + place, dim)
        self._model.load_state_dict(self._weights)
        self._model.eval()

    @property
    def _key_columns(self) -> tuple[str, ...]:
        """Columns besides the place on which a vector depends."""
        return getattr(self._encoder, "lookup_keys", ())

    @property
    def without_intervals(self) -> str:
        """Reason why the model has no prediction intervals; empty if it has."""
        if self.calibration is None:
            return "the model was stored before models had intervals"
        return self.calibration.absent

    @property
    def means(self) -> np.ndarray:
        """Value of each channel that takes the place of a missing one; (channels,) float64."""
        return self._scaler.mean

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that `predict_frame` needs: place, keys of a table of vectors, channels."""
        return ("lat", "lon", *self._key_columns, *self.channels)

    def predict(
        self,
        window: np.ndarray,
        lat: ArrayLike,
        lon: ArrayLike,
        *,
        month: ArrayLike | None = None,
        site_id: ArrayLike | None = None,
        vectors: np.ndarray | None = None,
    ) -> np.ndarray:
        """Predict PM2.5 (ug/m3) on the last day of each window; (n,) float32.

        `window (n, T, channels)` is in the channels' own units, oldest day first, with NaN for missing
        values. `lat` and `lon` (n,) are in degrees. `month (n,)`, 1 to 12, and `site_id (n,)` are needed if
        `columns` has them. `vectors` are the places' vectors that `embed` returned, so that they are computed
        once for many days.

        The same samples in the same order give the stored predictions bit for bit, on the same processor
        with the same number of threads. Otherwise, and in batches of other sizes, the last digits may
        differ.

        Raises InputError if an argument has the wrong shape or an invalid value.
        """
        window = np.asarray(window)
        if window.shape[1:] != (self.cell.window, len(self.channels)):
            needed = f"(n, {self.cell.window}, {len(self.channels)})"
            raise InputError(INPUT, "window", f"shape {window.shape}", f"give the shape {needed}")
        places = encoders.checked_places(lat, lon)
        if len(places) != len(window):
            problem = f"{len(places)} places for {len(window)} windows"
            raise InputError(INPUT, "lat, lon", problem, "give one place for each window")
        scaled = self._scale(window)
        if self._place_scaler is not None:
            place = place_channels(places[:, 0], places[:, 1], self.cell.variant)
            assert place is not None
            place = self._place_scaler.transform(place)[:, None]
            scaled = np.concatenate([scaled, place.repeat(self.cell.window, axis=1)], axis=2)
        if vectors is None:
            vectors = self.embed(places[:, 0], places[:, 1], site_id)
        embedded = self._of_month(vectors, month, len(places))
        predicted = [np.empty(0, np.float32)]
        with torch.inference_mode():
            for begin in range(0, len(window), SCORING_BATCH):
                rows = slice(begin, begin + SCORING_BATCH)
                embedding = None if embedded is None else torch.from_numpy(embedded[rows])
                predicted.append(self._model(torch.from_numpy(scaled[rows]), embedding).numpy())
        return self._target.inverse_transform(np.concatenate(predicted)).astype(np.float32)

    def predict_frame(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """Predict a table with one row for each window, where each channel has a list of T values.

        The table has the columns `columns`; others are ignored. The result has the index of the table, and
        float32 columns in ug/m3: `pm25_ugm3`, and the bounds `lower` and `upper` of its interval. A model
        without intervals has the first column alone (`without_intervals`). Raises InputError with the column
        and the row (position from 0).
        """
        import pandas as pd

        for name in self.columns:
            if name not in frame:
                needed = ", ".join(self.columns)
                raise InputError(INPUT, name, "the column is missing", f"give the columns {needed}")
        window = np.stack([self._series(name, frame[name]) for name in self.channels], axis=2)
        lat, lon = (_numbers(name, frame[name]) for name in ("lat", "lon"))
        predicted = self.predict(
            window,
            lat,
            lon,
            month=_numbers("month", frame["month"]) if "month" in self._key_columns else None,
            site_id=frame["site_id"].tolist() if "site_id" in self._key_columns else None,
        )
        found = {OUTPUTS[0]: predicted}
        if self.calibration is not None and self.calibration.radii:
            bounds = self.calibration.bounds(predicted, lat, lon)
            found |= {name: bound.astype(np.float32) for name, bound in zip(OUTPUTS[1:], bounds, strict=True)}
        return pd.DataFrame(found, index=frame.index)

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> np.ndarray | None:
        """Embed places (n,) in degrees: (n, d), or (n, 12, d) by month; None for an arm without encoder."""
        return None if self._encoder is None else self._encoder.embed(lat, lon, site_id)

    def save(self, folder: Path) -> None:
        """Write the files of the model into a folder.

        These are model.pt and cell.json, intervals.json with a calibration, and encoder.json and encoder.bin
        for an encoder arm.
        """
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"weights": self._weights, "scaling": self._scaling}, folder / "model.pt")
        (folder / "cell.json").write_text(json.dumps(self.cell.resolved(), indent=1), encoding="utf-8")
        if self.calibration is not None:
            self.calibration.write(folder)
        if self._source is not None:
            self._source.write(folder)

    @classmethod
    def load(cls, folder: Path) -> "Predictor":
        """Load a folder written by `save`."""
        stored = torch.load(folder / "model.pt", weights_only=True)
        cell = Cell.model_validate_json((folder / "cell.json").read_text(encoding="utf-8"))
        source, calibration = encoders.Source.read(folder), Calibration.read(folder)
        return cls(cell, stored["weights"], stored["scaling"], source, calibration)

    def _scale(self, window: np.ndarray) -> np.ndarray:
        """Standardise windows with the channel scaler. Raises InputError for infinite values."""
        infinite = np.isinf(window)
        if infinite.any():
            row, _, at = np.argwhere(infinite)[0]
            problem = f"row {row} has an infinite value"
            raise InputError(INPUT, self.channels[at], problem, "give NaN for a missing value")
        return self._scaler.transform(window)

    def _of_month(
        self, vectors: np.ndarray | None, month: ArrayLike | None, places: int
    ) -> np.ndarray | None:
        """Return the vectors (n, d) of `embed`, or those of their month if the table has months."""
        if vectors is None or "month" not in self._key_columns:
            return vectors
        months = np.asarray([] if month is None else month)
        if months.shape != (places,):
            problem = f"{len(months)} months for {places} windows"
            raise InputError(INPUT, "month", problem, "give the month of each window's last day")
        wrong = ~np.isin(months, np.arange(1, 13))
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(INPUT, "month", f"row {row} has {months[row]:g}", "give a number from 1 to 12")
        return vectors[np.arange(places), months.astype(np.intp) - 1]

    def _series(self, name: str, column: "pd.Series[Any]") -> np.ndarray:
        """Convert a channel's lists to an array; (n, T) float32."""
        days = self.cell.window
        rows = np.empty((len(column), days), np.float32)
        for row, values in enumerate(column):
            try:
                series = np.asarray(values, np.float32)
            except (TypeError, ValueError):
                problem = f"row {row} has {reprlib.repr(values)}, which is not a list of numbers"
                raise InputError(INPUT, name, problem, f"give a list of {days} numbers") from None
            if series.shape != (days,):
                has = (
                    f"{len(series)} values" if series.ndim == 1 else f"an array with {series.ndim} dimensions"
                )
                fix = f"give a list of the {days} daily values, oldest first"
                raise InputError(INPUT, name, f"row {row} has {has}", fix)
            rows[row] = series
        return rows


def _numbers(name: str, column: "pd.Series[Any]") -> np.ndarray:
    """Convert a column, which may be of objects, to numbers; (n,) float64."""
    try:
        return column.to_numpy(np.float64)
    except (TypeError, ValueError):
        raise InputError(INPUT, name, "the column has a value that is not a number", "give numbers") from None


class _PyFunc:
    """Adapter with the `predict` method that MLflow calls."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, frame: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """Predict with `Predictor.predict_frame`; `params` is ignored."""
        return self._predictor.predict_frame(frame)


def _load_pyfunc(path: str) -> _PyFunc:
    """Load a folder of `Predictor.save` for MLflow; warns if the model has no prediction intervals."""
    predictor = Predictor.load(Path(path))
    if predictor.without_intervals:
        fix = "`sweep sync` registers the model with intervals if its study can calibrate them"
        warnings.warn(f"no prediction intervals: {predictor.without_intervals}. Fix: {fix}.", stacklevel=2)
    return _PyFunc(predictor)
