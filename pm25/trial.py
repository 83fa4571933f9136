"""One training from start to end: `run(cell, panel)` returns a `Result`.

The steps, in order, and where they are:

1. split: `cut_cell` cuts the samples into train, validation and test (`pm25.samples`, `pm25.splits`);
2. scaling: `prepare` fits the scalers on the training samples (`pm25.scaling`, `pm25.windows`);
3. network: `prepare` builds it and draws its first weights (`pm25.model`);
4. training: `Training.epoch` runs one epoch of `pm25.fit.Fit`, which has the training step, the
   learning-rate schedule and early stopping;
5. scoring: `Training.result` scores the test samples once, after the last epoch (`_score`, `pm25.metrics`).

No output path, tracker or cluster is involved: a training is a function of its cell and its panel.
"""

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from pm25 import encoders, neighbours, protocol, references, splits
from pm25.cell import Cell
from pm25.fit import Epoch, Fit, best_epoch, predict
from pm25.leakage import audit_or_failure, distance_to_training_km
from pm25.metrics import detailed, scores
from pm25.model import BiLSTMAttention, initialise, network
from pm25.panel import Panel
from pm25.samples import cut_cell
from pm25.scaling import TargetScale
from pm25.settings import REFERENCES, embeds
from pm25.windows import Inputs, Windows

MATCHED_DIM = 512
"""Length of the constant vector that a matched head receives, the same as GeoCLIP's."""


@dataclass(frozen=True)
class Result:
    """Outcome of a training as plain values.

    The result of a reference has no history, weights, scaling and counts of epochs.

    The result of a search's training (`cell.tuning`) only covers validation samples. Its metrics are rmse,
    r2, mae and mbe. The prefix `val_` marks the samples for early stopping, `val_wr_` and `val_oor_` the
    scored samples within and out of region. Its counts have `n_wr` and `n_oor`, and it has no predictions.
    """

    metrics: dict[str, float]
    """`val_*`, `test_*` and, for splits with a within-region test set, `wr_*` (`pm25.metrics`)."""
    counts: dict[str, int]
    """Numbers of samples (`n_train`, `n_val`, `n_test`, `n_wr`), `epochs` run, and `best_epoch` (from 1)."""
    history: list[Epoch]
    predictions: dict[str, np.ndarray]
    """Columns part ('test', 'wr'), site_id, lat, lon, date, truth, prediction, with one row per sample."""
    audit: dict[str, float | int | list[str]]
    """Measures of what training and test share, and `failed`, the checks that were not passed."""
    weights: dict[str, torch.Tensor]
    scaling: dict[str, Any]
    """Names of the channels, and the scales of channels, place and target, as `pm25.predictor` needs them."""
    seconds: float
    """Time spent on preparing, training and scoring, over all attempts. Members of a stack share its time."""
    stacked: int | None = None
    """Number of slots of the stack that trained the cell (`pm25.stacked`); None for a training alone."""


@dataclass(frozen=True)
class Predicting(ABC):
    """The samples of a cell, and what predicts them."""

    cell: Cell
    panel: Panel
    """Panel with the targets that the cell may know; a search knows those of its training side only."""
    indices: splits.SplitIndices
    """Samples of the split. In a search without a split of its own, `test` equals `validation`."""
    train: np.ndarray
    """Training samples (flat indices): `indices.train`, or a subsample of it."""
    validation: np.ndarray
    """Validation samples (flat indices): `indices.validation`, or a subsample of it."""
    fitted: dict[str, np.ndarray]
    """Samples on which the scalers, the target's scale and the neighbour feature were fitted, by name.

    For a reference, they are the samples whose targets it may know.
    """

    @property
    def scored(self) -> dict[str, np.ndarray]:
        """Scored samples (flat indices) by the prefix of their metrics; the early-stopping set is first."""
        tuning, held_out, wr = self.cell.tuning, self.indices.test, self.indices.wr
        if tuning is None:
            found = {"val": self.validation, "test": held_out, "wr": wr}
        elif tuning.split is None:
            found = {"val": self.validation, "val_wr": self.validation}
        else:
            found = {"val": self.validation, f"val_{tuning.split.regime.lower()}": held_out}
            found |= {"val_wr": wr} if wr is not None else {}
        return {name: flat for name, flat in found.items() if flat is not None}

    @abstractmethod
    def predict(self, flat: np.ndarray) -> np.ndarray:
        """Predict these samples (flat indices): (n,) float32 in ug/m3."""


@dataclass(frozen=True)
class Prepared(Predicting):
    """A training before its first step: samples split, inputs scaled, network with its first weights."""

    inputs: Inputs
    scale: TargetScale
    model: BiLSTMAttention

    @property
    def order(self) -> torch.Generator:
        """New CPU generator that shuffles the training samples."""
        return _generator(_seeds(self.cell)[1])

    @property
    def dropout_seed(self) -> int:
        """Seed of the stream from which dropout draws."""
        return int(_seeds(self.cell)[3].generate_state(1)[0])

    def windows(self, flat: np.ndarray) -> Windows:
        """Return these samples (flat indices) with their scaled targets."""
        return Windows(self.inputs, flat, self.scale.transform(self.panel.target.reshape(-1)[flat]))

    def predict(self, flat: np.ndarray) -> np.ndarray:
        """Predict these samples (flat indices): (n,) float32 in ug/m3."""
        predicted, _ = predict(self.model, self.windows(flat))
        return self.scale.inverse_transform(predicted).astype(np.float32)


@dataclass(frozen=True)
class ReferencePredictions(Predicting):
    """The predictions of a reference, which are computed once for all scored samples."""

    samples: np.ndarray
    """Predicted samples (flat indices, ascending)."""
    predictions: np.ndarray
    """Predictions of `samples` in ug/m3."""

    def predict(self, flat: np.ndarray) -> np.ndarray:
        """Return the predictions of some of the samples (flat indices): (n,) float32 in ug/m3."""
        return np.asarray(self.predictions[np.searchsorted(self.samples, flat)])


def prepare(
    cell: Cell, panel: Panel, *, embedding: np.ndarray | None = None, device: str = "cpu"
) -> Prepared:
    """Split the samples, fit the scalers, and build the network. Equal cells give equal bytes.

    See `Training` for the arguments. Raises InputError if the panel does not allow this training.
    """
    protocol.refuse_leaks(panel, cell.protocol)
    panel, indices = cut_cell(cell, panel)
    paper = cell.protocol == "paper"
    # Independent streams, so that equal seeds mean equal samples and order in every arm.
    subsample_seed, _, weights_seed, *_ = _seeds(cell)
    rng = np.random.default_rng(subsample_seed)
    train = _subsample(indices.train, cell.train.max_windows, rng)
    validation = _subsample(indices.validation, cell.train.max_validation_windows, rng)
    everything = np.sort(np.concatenate([train, validation, indices.test]))
    fitted = dict.fromkeys(("scalers", "target"), everything if paper else train)
    if cell.neighbours is not None:
        fitted["neighbours"] = _neighbour_samples(cell, indices)
    inputs = Inputs(
        panel,
        fitted["scalers"],
        cell.window,
        cell.variant,
        torch.device(device),
        embedding=_embedding(cell, panel, embedding),
        more=_neighbour_channels(cell, panel, indices),
        by_range=paper,
    )
    target = panel.target.reshape(-1)
    if paper:
        scale = TargetScale.fit_maximum(target[everything])
    else:
        scale = TargetScale.fit_standard(target[train], log1p=cell.train.target == "log1p")
    with torch.random.fork_rng([]):  # torch's constructors draw weights from the global generator
        model = network(cell, inputs.width, inputs.embedding_dim)
        initialise(model, _generator(weights_seed), cell.model.initialiser or "keras")
    return Prepared(cell, panel, indices, train, validation, fitted, inputs, scale, model.to(device))


def training_samples(cell: Cell, panel: Panel) -> np.ndarray:
    """Return the samples (flat indices) that a cell trains on: at most `train.max_windows` of its split's."""
    _, indices = cut_cell(cell, panel)
    rng = np.random.default_rng(_seeds(cell)[0])
    return _subsample(indices.train, cell.train.max_windows, rng)


def raw_windows(cell: Cell, panel: Panel, flat: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Gather the unscaled input windows of the samples `flat (n,)`, with the names of their channels.

    The windows are (n, window, channels) float32, oldest day first, in the channels' own units, with NaN
    for missing values.
    """
    panel, indices = cut_cell(cell, panel)
    more = _neighbour_channels(cell, panel, indices)
    days = len(panel.dates)
    site, day = flat // days, flat[:, None] % days + np.arange(1 - cell.window, 1)
    rows = [
        panel.features[site[:, None], day],
        *(channel[site[:, None], day][:, :, None] for channel in more.values()),
    ]
    return (*panel.channels, *more), np.concatenate(rows, axis=2)


class Training:
    """One training, epoch by epoch. It can be checkpointed between two epochs and resumed elsewhere.

    `embedding (sites, d)` or `(sites, 12, d)` holds vectors that an encoder variant would otherwise compute
    itself. The caller ensures that they are the encoder's. `trained_on_target` says whether that encoder
    was trained on PM2.5. `state` resumes the training from a `state()` of the same cell and panel.

    The same cell, panel, device, number of threads and versions give the same bytes, resumed or not. On a
    GPU, cuDNN needs the variable CUBLAS_WORKSPACE_CONFIG for that (torch.nn.LSTM). A
    state from another type of device is accepted, but then the last digits may differ. torch's global
    random state is left unchanged.

    Raises InputError if the panel does not allow this training, and ValueError if `state` belongs to
    another training.
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
        with self._timed():
            self._prepared = prepared = prepare(cell, panel, embedding=embedding, device=device)
            self._fit = Fit(
                prepared.model,
                prepared.windows(prepared.train),
                prepared.windows(prepared.validation),
                cell.train,
                prepared.order,
                prepared.dropout_seed,
                prepared.scale.inverse_transform,
                restore_best=cell.protocol != "paper",
            )
            if state is not None:
                check_identity(state, prepared)
                self._fit.load_state(state["fit"])
                self._seconds += state["seconds"]

    @property
    def finished(self) -> bool:
        """True after the last epoch or after early stopping."""
        return self._fit.finished

    @property
    def history(self) -> list[Epoch]:
        """Epochs trained so far."""
        return list(self._fit.history)

    def epoch(self) -> Epoch:
        """Train one epoch, then measure the validation loss. Raises `pm25.fit.Diverged`."""
        with self._timed():
            return self._fit.epoch()

    def state(self) -> dict[str, Any]:
        """Return a checkpoint for the `state` argument of a new Training, with all tensors on the CPU.

        It can be written by `torch.save` and read by `torch.load(..., weights_only=True)`.
        """
        return {"identity": identity(self._prepared), "seconds": self._seconds, "fit": self._fit.state()}

    def result(self) -> Result:
        """Score the held-out samples with the best weights (protocol paper: the last ones).

        Raises RuntimeError if the training is not finished.
        """
        if not self.finished:
            raise RuntimeError(f"the training is not finished after {len(self.history)} epochs")
        with self._timed():
            self._fit.restore_best_weights()
            found = outcome(self._prepared, self._fit.history, trained_on_target=self._trained_on_target)
        return replace(found, seconds=self._seconds)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Add the time spent inside the context to `seconds`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - started


def outcome(prepared: Prepared, history: list[Epoch], *, trained_on_target: bool) -> Result:
    """Audit a training, and score the weights that its network has. The result's time is still 0 seconds."""
    audit = _audit(prepared, trained_on_target)
    metrics, predictions = _score(prepared)
    return Result(
        metrics=metrics,
        counts={**_counts(prepared), "epochs": len(history), "best_epoch": best_epoch(history)},
        history=list(history),
        predictions=predictions,
        audit=audit,
        weights={name: value.cpu() for name, value in prepared.model.state_dict().items()},
        scaling=_scaling(prepared),
        seconds=0.0,
    )


def run(
    cell: Cell,
    panel: Panel,
    *,
    embedding: np.ndarray | None = None,
    trained_on_target: bool = False,
    device: str = "cpu",
) -> Result:
    """Train a cell on a panel to the end, and score its test set once. See `Training` for the arguments.

    The cell of a reference is predicted without a training (`run_reference`), on the CPU.
    """
    if cell.is_reference:
        return run_reference(cell, panel)
    training = Training(cell, panel, embedding=embedding, trained_on_target=trained_on_target, device=device)
    while not training.finished:
        training.epoch()
    return training.result()


def run_reference(cell: Cell, panel: Panel) -> Result:
    """Predict and score the samples of a reference's cell, on as many threads as PyTorch has.

    Its samples are those of an arm under the same protocol. It only knows the targets of training samples,
    under protocol `paper` too. The same cell, panel, number of threads and versions give the same bytes.
    Raises InputError if the panel does not allow the split.
    """
    started = time.perf_counter()
    if cell.variant not in REFERENCES:
        raise ValueError(f"variant {cell.variant} is not a reference")
    protocol.refuse_leaks(panel, cell.protocol)
    panel, indices = cut_cell(cell, panel)
    rng = np.random.default_rng(_seeds(cell)[0])
    train = _subsample(indices.train, references.MOST_WINDOWS.get(cell.variant), rng)
    parts = (indices.validation, indices.test, indices.wr)
    samples = np.unique(np.concatenate([flat for flat in parts if flat is not None]))
    predictions = references.predict(
        cell.variant,
        replace(panel, target=neighbours.known_targets(panel, indices.train, cell.window)),
        train,
        samples,
        window=cell.window,
        seed=cell.seed % 2**32,
        threads=torch.get_num_threads(),
    )
    fitted = {"reference": indices.train}
    prepared = ReferencePredictions(
        cell, panel, indices, train, indices.validation, fitted, samples, predictions
    )
    audit = _audit(prepared, trained_on_target=False)
    metrics, predicted = _score(prepared)
    return Result(
        metrics=metrics,
        counts=_counts(prepared),
        history=[],
        predictions=predicted,
        audit=audit,
        weights={},
        scaling={},
        seconds=time.perf_counter() - started,
    )


def _counts(prepared: Predicting) -> dict[str, int]:
    """Count the samples of a `Result`."""
    scored = {f"n_{name.removeprefix('val_')}": len(flat) for name, flat in prepared.scored.items()}
    return {"n_train": len(prepared.train), **scored}


def _neighbour_samples(cell: Cell, indices: splits.SplitIndices) -> np.ndarray:
    """Samples whose targets the neighbour feature uses."""
    if cell.protocol == "paper":
        return np.sort(np.concatenate([indices.train, indices.validation, indices.test]))
    return indices.train


def _neighbour_channels(cell: Cell, panel: Panel, indices: splits.SplitIndices) -> dict[str, np.ndarray]:
    """Channels of the neighbour feature, each (sites, days), by name; empty if the cell has none."""
    if cell.neighbours is None:
        return {}
    rng = np.random.default_rng(_seeds(cell)[-1])
    samples = _neighbour_samples(cell, indices)
    test_sites = np.unique(indices.test // len(panel.dates))
    values = neighbours.feature(panel, samples, test_sites, cell.window, cell.neighbours, rng)
    return {name: values[:, :, i] for i, name in enumerate(cell.neighbours.channels)}


def _audit(prepared: Predicting, trained_on_target: bool) -> dict[str, Any]:
    """Audit what training shares with the scored samples, against the promise of the split that cut them."""
    cell, indices = prepared.cell, prepared.indices
    split, fold = cell.split, cell.fold
    if cell.tuning is not None and cell.tuning.split is not None:
        split, fold = cell.tuning.split, cell.tuning.fold
    elif cell.tuning is not None:
        indices = replace(indices, validation=indices.validation[:0])  # these samples are the scored ones
        if isinstance(split, splits.RegionSplit | splits.SiteSplit):
            # Validation samples of these splits are at sites of their own, but in no region or buffer.
            split = splits.SpatialSplit()
    found = audit_or_failure(
        split,
        indices,
        prepared.panel,
        cell.window,
        fold=fold,
        fitted=prepared.fitted,
        encoder_trained_on_target=trained_on_target,
    )
    used = () if cell.variant in references.WITHOUT_CHANNELS else prepared.panel.channels
    found["failed"] += [f"channel_{name}" for name in protocol.LEAKING_CHANNELS if name in used]
    if cell.reserve is not None and cell.tuning is None:
        reserved = splits.reserved_sites(cell.reserve, prepared.panel, cell.window)
        held_out = [part for part in (indices.test, indices.wr) if part is not None]
        found["reserved_test"] = int(reserved[np.concatenate(held_out) // len(prepared.panel.dates)].sum())
        found["failed"] += ["reserved_test"] * (found["reserved_test"] > 0)
    return found


def _score(prepared: Predicting) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Predict and score every evaluation set: the metrics and predictions of a `Result`."""
    panel = prepared.panel
    target, days = panel.target.reshape(-1), len(panel.dates)
    km = distance_to_training_km(prepared.indices, panel)
    metrics: dict[str, float] = {}
    predictions: list[dict[str, np.ndarray]] = []
    for evaluation_set, flat in prepared.scored.items():
        predicted = prepared.predict(flat)
        found = scores(target[flat], predicted)
        site, day = flat // days, flat % days
        if not evaluation_set.startswith("val"):
            found |= detailed(target[flat], predicted, site, km[site])
            predictions.append(
                {
                    "part": np.full(len(flat), evaluation_set),
                    "site_id": panel.site_id[site],
                    "lat": panel.lat[site],
                    "lon": panel.lon[site],
                    "date": panel.dates[day],
                    "truth": target[flat],
                    "prediction": predicted,
                }
            )
        metrics |= {f"{evaluation_set}_{name}": value for name, value in found.items()}
    columns = predictions[0] if predictions else {}
    return metrics, {name: np.concatenate([p[name] for p in predictions]) for name in columns}


def _scaling(prepared: Prepared) -> dict[str, Any]:
    """Channels and scales of a `Result`, as plain values."""
    inputs = prepared.inputs
    scalers = {"channels": inputs.scaler} | ({"place": inputs.place_scaler} if inputs.place_scaler else {})
    return {
        "channels": list(inputs.channels),
        "scalers": {
            name: {"mean": scaler.mean.tolist(), "std": scaler.std.tolist()}
            for name, scaler in scalers.items()
        },
        "target": asdict(prepared.scale),
    }


def identity(prepared: Prepared) -> str:
    """Hash the cell, the data and the samples, to recognise the states of this training."""
    digest = hashlib.sha256(prepared.cell.key(prepared.panel.fingerprint).encode())
    for flat in (prepared.train, prepared.validation):
        digest.update(repr(len(flat)).encode() + flat.tobytes())
    return digest.hexdigest()


def check_identity(state: dict[str, Any], prepared: Prepared) -> None:
    """Raise ValueError if a state belongs to another training."""
    if state["identity"] != identity(prepared):
        cell, panel = prepared.cell, prepared.panel
        raise ValueError(f"the state belongs to another training than {cell.label} on {panel.name}")


def _embedding(cell: Cell, panel: Panel, given: np.ndarray | None) -> np.ndarray | None:
    """Return the given vectors, or else those of the cell's encoder; None for a cell without a fusion."""
    if given is not None and not embeds(cell.variant):
        raise ValueError(f"variant {cell.variant} does not use an embedding, but one is given")
    if cell.head == "matched":
        return np.ones((len(panel.site_id), MATCHED_DIM), np.float32)
    if given is None and embeds(cell.variant):
        return encoders.load(cell.variant).embed(panel.lat, panel.lon, panel.site_id)
    return given


def _seeds(cell: Cell) -> list[np.random.SeedSequence]:
    """Seeds of the subsample, sample order, first weights, dropout and hidden neighbours, in this order."""
    return np.random.SeedSequence(cell.seed).spawn(5)


def _subsample(flat: np.ndarray, limit: int | None, rng: np.random.Generator) -> np.ndarray:
    """Draw at most `limit` of the samples, in ascending order."""
    if limit is None or len(flat) <= limit:
        return flat
    return np.sort(rng.choice(flat, limit, replace=False, shuffle=False))


def _generator(seed: np.random.SeedSequence) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
