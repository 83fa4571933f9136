"""A trained model as a value that predicts: windows and places in, PM2.5 out.

A folder that `Predictor.save` wrote needs nothing but this package: the encoder's weights lie in it. MLflow
loads it by `_load_pyfunc`, which makes it this package's only tie to MLflow.
"""

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
from pm25.model import network
from pm25.scaling import TargetScale
from pm25.windows import Scaler, place_channels

if TYPE_CHECKING:
    import pandas as pd

OUTPUT = "pm25_ugm3"


class Predictor:
    """What a cell's training came to, on the CPU.

    `weights` and `scaling` are those of a `pm25.trial.Result`, `encoder` what the cell's place is embedded
    with (`pm25.encoders.source`), None for a variant without one. Raises InputError for a control, which
    is no model to serve.
    """

    def __init__(
        self,
        cell: Cell,
        weights: Mapping[str, torch.Tensor],
        scaling: Mapping[str, Any],
        encoder: encoders.Source | None = None,
    ) -> None:
        if cell.is_control:
            raise InputError(f"{cell.label}: a control is no model to serve; take another arm")
        if (encoder and encoder.name) != cell.encoder:
            raise ValueError(
                f"{cell.label} embeds places with {cell.encoder}, not {encoder and encoder.name}"
            )
        self.cell, self.channels = cell, tuple(scaling["channels"])
        self._weights, self._scaling, self._source = dict(weights), dict(scaling), encoder
        scalers = {
            name: Scaler(np.array(told["mean"]), np.array(told["std"]))
            for name, told in scaling["scalers"].items()
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
    def _asks(self) -> tuple[str, ...]:
        return self._encoder.asks if isinstance(self._encoder, encoders.Table) else ()

    @property
    def columns(self) -> tuple[str, ...]:
        """What `predict_frame` needs: the place, then the channels."""
        return ("lat", "lon", *self._asks, *self.channels)

    def predict(
        self,
        window: np.ndarray,
        lat: ArrayLike,
        lon: ArrayLike,
        *,
        month: ArrayLike | None = None,
        site_id: ArrayLike | None = None,
    ) -> np.ndarray:
        """(n,) float32, PM2.5 in ug/m3 of each window's last day.

        `window (n, T, channels)` in the channels' own units, oldest day first, NaN where missing; `lat` and
        `lon` (n,) in degrees; `month (n,)`, 1 to 12, and `site_id (n,)` where they are asked for. The same
        samples in the same order give the stored predictions bit for bit, on the same machine with as
        many threads; in batches of other sizes the last digits may differ. Raises InputError.
        """
        window = np.asarray(window)
        if window.shape[1:] != (self.cell.window, len(self.channels)):
            raise InputError(
                f"window: {window.shape} given; (n, {self.cell.window}, {len(self.channels)}) is needed"
            )
        places = encoders.checked_places(lat, lon)
        if len(places) != len(window):
            raise InputError(f"lat and lon: {len(places)} places for {len(window)} windows")
        scaled = self._scaled(window)
        if self._place_scaler is not None:
            place = place_channels(places[:, 0], places[:, 1], self.cell.variant)
            assert place is not None
            place = self._place_scaler.scale(place)[:, None]
            scaled = np.concatenate([scaled, place.repeat(self.cell.window, axis=1)], axis=2)
        embedded = self._embedded(places, month, site_id)
        found = [np.empty(0, np.float32)]
        with torch.inference_mode():
            for begin in range(0, len(window), SCORING_BATCH):
                rows = slice(begin, begin + SCORING_BATCH)
                embedding = None if embedded is None else torch.from_numpy(embedded[rows])
                found.append(self._model(torch.from_numpy(scaled[rows]), embedding).numpy())
        return self._target.ugm3(np.concatenate(found)).astype(np.float32)

    def predict_frame(self, frame: "pd.DataFrame") -> "pd.Series[float]":
        """`predict` for a table: a row per window, each channel's cell a list of its T values.

        Columns as in `columns`, others are ignored. The series is called `pm25_ugm3` and has the frame's
        index. Raises InputError with the column, the row's position (from 0) and the fix.
        """
        import pandas as pd

        for name in self.columns:
            if name not in frame:
                asked = ", ".join(self.columns)
                raise InputError(f"column {name} is missing; the model needs {asked}")
        window = np.stack([self._series(name, frame[name]) for name in self.channels], axis=2)
        found = self.predict(
            window,
            *(_numbers(name, frame[name]) for name in ("lat", "lon")),
            month=_numbers("month", frame["month"]) if "month" in self._asks else None,
            site_id=frame["site_id"].tolist() if "site_id" in self._asks else None,
        )
        return pd.Series(found, index=frame.index, name=OUTPUT)

    def save(self, folder: Path) -> None:
        """Write model.pt, cell.json and, of an encoder arm, encoder.json and encoder.bin into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"weights": self._weights, "scaling": self._scaling}, folder / "model.pt")
        (folder / "cell.json").write_text(self.cell.model_dump_json(indent=1))
        if self._source is not None:
            self._source.write(folder)

    @classmethod
    def load(cls, folder: Path) -> "Predictor":
        """What `save` wrote."""
        stored = torch.load(folder / "model.pt", weights_only=True)
        cell = Cell.model_validate_json((folder / "cell.json").read_text())
        return cls(cell, stored["weights"], stored["scaling"], encoders.Source.read(folder))

    def _scaled(self, window: np.ndarray) -> np.ndarray:
        infinite = np.isinf(window)
        if infinite.any():
            row, _, at = np.argwhere(infinite)[0]
            raise InputError(
                f"column {self.channels[at]}: position {row} holds an infinite value; NaN stands for missing"
            )
        return self._scaler.scale(window)

    def _embedded(
        self, places: np.ndarray, month: ArrayLike | None, site_id: ArrayLike | None
    ) -> np.ndarray | None:
        if self._encoder is None:
            return None
        found = self._encoder.embed(places[:, 0], places[:, 1], site_id)
        if "month" not in self._asks:
            return found
        months = np.asarray([] if month is None else month)
        if months.shape != (len(places),):
            raise InputError(
                f"month: {len(months)} given for {len(places)} windows; it is that of the last day"
            )
        wrong = ~np.isin(months, np.arange(1, 13))
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(f"column month: position {row} is {months[row]:g}; 1 to 12 is needed")
        return found[np.arange(len(found)), months.astype(np.intp) - 1]

    def _series(self, name: str, column: "pd.Series[Any]") -> np.ndarray:
        """(n, T) float32 of one channel's lists."""
        days = self.cell.window
        rows = np.empty((len(column), days), np.float32)
        for row, values in enumerate(column):
            try:
                series = np.asarray(values, np.float32)
            except (TypeError, ValueError):
                raise InputError(
                    f"column {name}: position {row} holds something that is no number; "
                    f"a list of {days} numbers is needed"
                ) from None
            if series.shape != (days,):
                held = f"{len(series)} values" if series.ndim == 1 else "no flat list"
                raise InputError(
                    f"column {name}: position {row} holds {held}; "
                    f"the {days} daily values are needed, oldest first"
                )
            rows[row] = series
        return rows


def _numbers(name: str, column: "pd.Series[Any]") -> np.ndarray:
    """(n,) float64 of a column that may be of objects."""
    try:
        return column.to_numpy(np.float64)
    except (TypeError, ValueError):
        raise InputError(f"column {name}: holds something that is no number; numbers are needed") from None


class _PyFunc:
    """What MLflow calls: `predict` with a frame."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, frame: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> "pd.Series[float]":
        """As `Predictor.predict_frame`; there are no params."""
        return self._predictor.predict_frame(frame)


def _load_pyfunc(path: str) -> _PyFunc:
    """MLflow's entry to a folder of `Predictor.save`."""
    return _PyFunc(Predictor.load(Path(path)))
