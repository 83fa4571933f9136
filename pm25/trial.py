"""One trial: a cell and a panel in, a result out."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from pm25 import encoders, neighbours, protocol, splits
from pm25.cell import Cell
from pm25.fit import Epoch, Fit, best_epoch, predict
from pm25.leakage import audited, distance_to_training_km
from pm25.metrics import detailed, scores
from pm25.model import BiLSTMAttention, initialise, network
from pm25.panel import Panel
from pm25.scaling import TargetScale
from pm25.settings import ENCODERS
from pm25.windows import Inputs, Windows

MATCHED_DIM = 512
"""Length of the constant vector behind a matched head: GeoCLIP's."""


@dataclass(frozen=True)
class Result:
    """What a training has to say; plain values, no path and no clock but `seconds`.

    A search's (`cell.tuning`) speaks of validation alone: metrics are rmse, r2, mae and mbe as `val_*` (of
    the samples that end its training) and as `val_wr_*`, `val_oor_*`, its scores within and out of region;
    counts have `n_wr`, `n_oor` for them; there are no predictions.
    """

    metrics: dict[str, float]
    """`val_*`, `test_*` and, where a split has paired within-region sites, `wr_*` (`pm25.metrics`)."""
    counts: dict[str, int]
    """`n_train`, `n_val`, `n_test`, `n_wr`: samples; `epochs` run and `best_epoch` (from 1)."""
    history: list[Epoch]
    predictions: dict[str, np.ndarray]
    """Columns part ('test', 'wr'), site_id, lat, lon, date, truth, prediction; one row per sample."""
    audit: dict[str, float | int | list[str]]
    """What training and test share, and `failed`: the checks that this result did not pass."""
    weights: dict[str, torch.Tensor]
    scaling: dict[str, Any]
    """What the weights were trained on: names of the channels, and what they, the place and the target were
    scaled by; plain values (`pm25.predictor`)."""
    seconds: float
    """At work, over all attempts."""


@dataclass(frozen=True)
class Prepared:
    """A cell's samples cut, its inputs scaled and on their device, its network with first weights."""

    cell: Cell
    panel: Panel
    """As the cell may know it: a search's has no target outside the training side."""
    parts: splits.SplitIndices
    """Of a search without a split of its own, `test` is `validation`."""
    train: np.ndarray
    """Flat indices; `parts.train`, or a subsample of it."""
    validation: np.ndarray
    inputs: Inputs
    scale: TargetScale
    model: BiLSTMAttention
    fitted: dict[str, np.ndarray]
    """By name of what was fitted (scalers, target, neighbours): the samples that it was fitted on."""

    @property
    def scored(self) -> dict[str, np.ndarray]:
        """Samples (flat) by the prefix of their metrics, the validation that ends the training first."""
        tuning, held_out, wr = self.cell.tuning, self.parts.test, self.parts.wr
        if tuning is None:
            found = {"val": self.validation, "test": held_out, "wr": wr}
        elif tuning.split is None:
            found = {"val": self.validation, "val_wr": self.validation}
        else:
            found = {"val": self.validation, f"val_{tuning.split.regime.lower()}": held_out}
            found |= {"val_wr": wr} if wr is not None else {}
        return {name: flat for name, flat in found.items() if flat is not None}

    def windows(self, flat: np.ndarray) -> Windows:
        return Windows(self.inputs, flat, self.scale.scaled(self.panel.target.reshape(-1)[flat]))

    def predict(self, flat: np.ndarray) -> np.ndarray:
        """(n,) float32 in ug/m3."""
        return self.scale.ugm3(predict(self.model, self.windows(flat))[0]).astype(np.float32)


def prepare(
    cell: Cell, panel: Panel, *, embedding: np.ndarray | None = None, device: str = "cpu"
) -> Prepared:
    """Everything of a trial that comes before its first step; equal cells prepare to equal bytes."""
    protocol.refuse_leaks(panel, cell.protocol)
    panel, parts = _cut(cell, panel)
    paper = cell.protocol == "paper"
    # Independent streams, so that equal seeds mean equal samples and order in every arm.
    draw, _, initial, _, _ = _streams(cell)
    rng = np.random.default_rng(draw)
    train = _subsample(parts.train, cell.train.max_windows, rng)
    validation = _subsample(parts.validation, cell.train.max_validation_windows, rng)
    everything = np.sort(np.concatenate([train, validation, parts.test]))
    fitted = dict.fromkeys(("scalers", "target"), everything if paper else train)
    if cell.neighbours is not None:
        fitted["neighbours"] = _neighbours(cell, parts)
    inputs = Inputs(
        panel,
        fitted["scalers"],
        cell.window,
        cell.variant,
        torch.device(device),
        embedding=_embedding(cell, panel, embedding),
        more=_more_channels(cell, panel, parts),
    )
    target = panel.target.reshape(-1)
    if paper:
        scale = TargetScale.largest(target[everything])
    else:
        scale = TargetScale.standard(target[train], log1p=cell.train.target == "log1p")
    with torch.random.fork_rng([]):  # torch's layers draw weights of their own before `initialise` does
        model = network(cell, inputs.width, inputs.embedding_dim)
        initialise(model, _generator(initial), cell.model.initialiser or "keras")
    return Prepared(cell, panel, parts, train, validation, inputs, scale, model.to(device), fitted)


def raw_windows(cell: Cell, panel: Panel, flat: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the channels, and (n, window, channels) float32 of the samples `flat (n,)`, oldest day first.

    In the channels' own units, NaN where missing: what the network sees before it is scaled.
    """
    panel, parts = _cut(cell, panel)
    more = _more_channels(cell, panel, parts)
    days = len(panel.dates)
    site, day = flat // days, flat[:, None] % days + np.arange(1 - cell.window, 1)
    rows = [
        panel.features[site[:, None], day],
        *(made[site[:, None], day][:, :, None] for made in more.values()),
    ]
    return (*panel.channels, *more), np.concatenate(rows, axis=2)


class Training:
    """One trial, epoch by epoch; between two epochs it can be stored, and go on elsewhere.

    `embedding (sites, d)` or `(sites, 12, d)` spares an encoder variant the embedding of the panel's
    places; the caller answers for its being the encoder's, and says in `trained_on_target` whether that
    encoder ever saw PM2.5. The same cell, panel and device give the same bytes, however often the training
    is stored and goes on from its `state`; a state may come from a device of another type, and then the
    last digits may differ. torch's global random state is left as it was found.

    Raises ValueError where `state` is another training's.
    """

    def __init__(
        self,
        cell: Cell,
        panel: Panel,
        *,
        embedding: np.ndarray | None = None,
        trained_on_target: bool = False,
        device: str = "cpu",
        state: dict[str, Any] | None = None,
    ) -> None:
        self._seconds, self._trained_on_target = 0.0, trained_on_target
        with self._at_work():
            self._made = made = prepare(cell, panel, embedding=embedding, device=device)
            _, order, _, dropout, _ = _streams(cell)
            self._fit = Fit(
                made.model,
                made.windows(made.train),
                made.windows(made.validation),
                cell.train,
                _generator(order),
                int(dropout.generate_state(1)[0]),
                made.scale.ugm3,
                restore_best=cell.protocol != "paper",
            )
            self._identity = _identity(made)
            if state is not None:
                if state["identity"] != self._identity:
                    raise ValueError(f"the state is not of this training ({cell.label} on {panel.name})")
                self._fit.load_state(state["fit"])
                self._seconds += state["seconds"]

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to train."""
        return self._fit.finished

    @property
    def history(self) -> list[Epoch]:
        return list(self._fit.history)

    def epoch(self) -> Epoch:
        """Train one epoch and validate after it. Raises `pm25.fit.Diverged`."""
        with self._at_work():
            return self._fit.epoch()

    def state(self) -> dict[str, Any]:
        """What a new Training of this cell goes on from: tensors on the CPU and plain values only.

        `torch.save` takes it, and `torch.load(..., weights_only=True)` gives it back.
        """
        return {"identity": self._identity, "seconds": self._seconds, "fit": self._fit.state()}

    def result(self) -> Result:
        """Score the held-out samples with the weights that count, once there is no epoch left."""
        if not self.finished:
            raise RuntimeError(f"after {len(self.history)} epochs the training is not finished")
        with self._at_work():
            self._fit.finish()
            made, history = self._made, self._fit.history
            audit = _audit(made, self._trained_on_target)
            metrics, predictions = _score(made)
            weights = {name: value.cpu() for name, value in made.model.state_dict().items()}
        return Result(
            metrics=metrics,
            counts={
                "n_train": len(made.train),
                **{f"n_{part.removeprefix('val_')}": len(flat) for part, flat in made.scored.items()},
                "epochs": len(history),
                "best_epoch": best_epoch(history),
            },
            history=list(history),
            predictions=predictions,
            audit=audit,
            weights=weights,
            scaling=_scaling(made),
            seconds=self._seconds,
        )

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Count the time that this takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - started


def run(
    cell: Cell,
    panel: Panel,
    *,
    embedding: np.ndarray | None = None,
    trained_on_target: bool = False,
    device: str = "cpu",
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Result:
    """A whole `Training`: split, fit scalers on training samples, build, train, score the test set once."""
    training = Training(cell, panel, embedding=embedding, trained_on_target=trained_on_target, device=device)
    while not training.finished:
        epoch = training.epoch()
        if on_epoch is not None:
            on_epoch(epoch)
    return training.result()


def _cut(cell: Cell, panel: Panel) -> tuple[Panel, splits.SplitIndices]:
    """The panel as the cell may know it, and its samples."""
    parts = splits.cut(cell.split, cell.fold, panel, cell.window)
    if cell.protocol == "paper":
        return panel, protocol.paper_parts(parts, panel)
    if cell.tuning is None:
        return panel, parts
    # A search must not see what its arm will be tested on, so that is taken away before anything else: left
    # are the targets of the training side, and those before its first samples, which are nobody's.
    side = np.sort(np.concatenate([parts.train, parts.validation]))
    panel = replace(
        panel,
        target=neighbours.usable(panel, side, cell.window),
        name=f"{panel.name}, training side of {cell.split.label} fold {cell.fold}",
    )
    if cell.tuning.split is not None:
        return panel, splits.cut(cell.tuning.split, cell.tuning.fold, panel, cell.window)
    return panel, splits.SplitIndices(parts.train, parts.validation, test=parts.validation, wr=None)


def _neighbours(cell: Cell, parts: splits.SplitIndices) -> np.ndarray:
    """The samples whose targets the neighbour feature is made of."""
    if cell.protocol == "paper":
        return np.sort(np.concatenate([parts.train, parts.validation, parts.test]))
    return parts.train


def _more_channels(cell: Cell, panel: Panel, parts: splits.SplitIndices) -> dict[str, np.ndarray]:
    """The channels that the table does not have, each (sites, days), by name."""
    if cell.neighbours is None:
        return {}
    hide = np.random.default_rng(_streams(cell)[-1])
    test_sites = np.unique(parts.test // len(panel.dates))
    made = neighbours.feature(panel, _neighbours(cell, parts), test_sites, cell.window, cell.neighbours, hide)
    return {name: made[:, :, i] for i, name in enumerate(cell.neighbours.channels)}


def _audit(made: Prepared, trained_on_target: bool) -> dict[str, Any]:
    """Of what training shares with what is scored, by the promise of the split that cut them apart."""
    cell, split, parts = made.cell, made.cell.split, made.parts
    if cell.tuning is not None and cell.tuning.split is not None:
        split = cell.tuning.split
    elif cell.tuning is not None:
        parts = replace(parts, validation=parts.validation[:0])  # which is the part that is scored
        if isinstance(split, splits.RegionSplit | splits.SpatialSplit):
            # What validation promises there: sites of its own, but neither a region nor a buffer.
            split = splits.SpatialSplit()
    found = audited(
        split,
        parts,
        made.panel,
        cell.window,
        fitted=made.fitted,
        encoder_trained_on_target=trained_on_target,
    )
    found["failed"] += [
        f"channel_{name}" for name in protocol.LEAKING_CHANNELS if name in made.panel.channels
    ]
    return found


def _score(made: Prepared) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and predictions of a `Result`."""
    panel = made.panel
    target, days = panel.target.reshape(-1), len(panel.dates)
    km = distance_to_training_km(made.parts, panel)
    metrics: dict[str, float] = {}
    predictions: list[dict[str, np.ndarray]] = []
    for part, flat in made.scored.items():
        predicted = made.predict(flat)
        found = scores(target[flat], predicted)
        site, day = flat // days, flat % days
        if not part.startswith("val"):
            found |= detailed(target[flat], predicted, site, km[site])
            predictions.append(
                {
                    "part": np.full(len(flat), part),
                    "site_id": panel.site_id[site],
                    "lat": panel.lat[site],
                    "lon": panel.lon[site],
                    "date": panel.dates[day],
                    "truth": target[flat],
                    "prediction": predicted,
                }
            )
        metrics |= {f"{part}_{name}": value for name, value in found.items()}
    columns = predictions[0] if predictions else {}
    return metrics, {name: np.concatenate([p[name] for p in predictions]) for name in columns}


def _scaling(made: Prepared) -> dict[str, Any]:
    inputs = made.inputs
    scalers = {"channels": inputs.scaler} | ({"place": inputs.place_scaler} if inputs.place_scaler else {})
    return {
        "channels": list(inputs.channels),
        "scalers": {
            name: {"mean": scaler.mean.tolist(), "std": scaler.std.tolist()}
            for name, scaler in scalers.items()
        },
        "target": asdict(made.scale),
    }


def _identity(made: Prepared) -> str:
    """Of the cell, its data and the samples of its training; the embedding is the caller's to answer for."""
    digest = hashlib.sha256(made.cell.key(made.panel.fingerprint).encode())
    for flat in (made.train, made.validation):
        digest.update(repr(len(flat)).encode() + flat.tobytes())
    return digest.hexdigest()


def _embedding(cell: Cell, panel: Panel, given: np.ndarray | None) -> np.ndarray | None:
    if given is not None and cell.variant not in ENCODERS:
        raise ValueError(f"variant {cell.variant} takes no embedding")
    if cell.head == "matched":
        return np.ones((len(panel.site_id), MATCHED_DIM), np.float32)
    if given is None and cell.variant in ENCODERS:
        return encoders.load(cell.variant).embed(panel.lat, panel.lon, panel.site_id)
    return given


def _streams(cell: Cell) -> list[np.random.SeedSequence]:
    """Of subsample, order, first weights, dropout, hidden neighbours; the same in every arm."""
    return np.random.SeedSequence(cell.seed).spawn(5)


def _subsample(flat: np.ndarray, limit: int | None, rng: np.random.Generator) -> np.ndarray:
    """At most `limit` of the samples, ascending."""
    if limit is None or len(flat) <= limit:
        return flat
    return np.sort(rng.choice(flat, limit, replace=False, shuffle=False))


def _generator(seed: np.random.SeedSequence) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
