"""One trial: a cell and a panel in, a result out."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pm25 import encoders, neighbours, protocol, splits
from pm25.audit import audited, nearest_km
from pm25.cell import Cell
from pm25.fit import Epoch, best_epoch, fit, predict
from pm25.inputs import Inputs, Windows
from pm25.metrics import detailed, scores
from pm25.model import BiLSTMAttention, build, initialise
from pm25.panel import Panel
from pm25.settings import ENCODERS
from pm25.target import TargetScale

MATCHED_DIM = 512
"""Length of the constant vector behind a matched head: GeoCLIP's."""


@dataclass(frozen=True)
class Result:
    """What a training has to say; plain values, no path and no clock but `seconds`."""

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
    seconds: float


@dataclass(frozen=True)
class Prepared:
    """A cell's samples cut, its inputs scaled and on their device, its network with first weights."""

    cell: Cell
    panel: Panel
    parts: splits.Parts
    train: np.ndarray
    """Flat indices; `parts.train`, or a subsample of it."""
    validation: np.ndarray
    inputs: Inputs
    scale: TargetScale
    model: BiLSTMAttention
    fitted: dict[str, np.ndarray]
    """By name of what was fitted (scalers, target, neighbours): the samples that it was fitted on."""

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
    parts = splits.cut(cell.split, cell.fold, panel, cell.window)
    paper = cell.protocol == "paper"
    if paper:
        parts = protocol.paper_parts(parts, panel)
    # Independent streams, so that equal seeds mean equal samples and order in every arm.
    draw, _, initial, _, hide = _streams(cell)
    rng = np.random.default_rng(draw)
    train = _subsample(parts.train, cell.train.max_windows, rng)
    validation = _subsample(parts.validation, cell.train.max_validation_windows, rng)
    everything = np.sort(np.concatenate([train, validation, parts.test]))
    fitted = dict.fromkeys(("scalers", "target"), everything if paper else train)
    more = {}
    if cell.neighbours is not None:
        fitted["neighbours"] = np.sort(np.concatenate([parts.train, parts.validation, parts.test]))
        if not paper:
            fitted["neighbours"] = parts.train
        test_sites = np.unique(parts.test // len(panel.dates))
        made = neighbours.feature(
            panel, fitted["neighbours"], test_sites, cell.window, cell.neighbours, np.random.default_rng(hide)
        )
        more = {name: made[:, :, i] for i, name in enumerate(cell.neighbours.channels)}
    inputs = Inputs(
        panel,
        fitted["scalers"],
        cell.window,
        cell.variant,
        torch.device(device),
        embedding=_embedding(cell, panel, embedding),
        more=more,
    )
    target = panel.target.reshape(-1)
    if paper:
        scale = TargetScale.largest(target[everything])
    else:
        scale = TargetScale.standard(target[train], log1p=cell.train.target == "log1p")
    settings = cell.model
    if paper and cell.variant == "satclip":
        settings = settings.model_copy(update={"projection": "norm_tanh"})
    with torch.random.fork_rng([]):  # torch's layers draw weights of their own before `initialise` does
        model = build(
            inputs.width,
            settings,
            cell.fusion,
            inputs.embedding_dim,
            mask_value=protocol.PAPER_MASK if paper else None,
        )
        initialise(model, _generator(initial), settings.initialiser or "keras")
    return Prepared(cell, panel, parts, train, validation, inputs, scale, model.to(device), fitted)


def run(
    cell: Cell,
    panel: Panel,
    *,
    embedding: np.ndarray | None = None,
    trained_on_target: bool = False,
    device: str = "cpu",
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Result:
    """Split, fit the scalers on training samples, build, train, and score the test set once.

    `embedding (sites, d)` or `(sites, 12, d)` spares an encoder variant the embedding of the panel's
    places; the caller answers for its being the encoder's, and says in `trained_on_target` whether that
    encoder ever saw PM2.5. The same cell, panel and device give the same bytes. torch's global random state
    is left as it was found.
    """
    started = time.perf_counter()
    made = prepare(cell, panel, embedding=embedding, device=device)
    _, order, _, dropout, _ = _streams(cell)
    with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(int(dropout.generate_state(1)[0]))
        history = fit(
            made.model,
            made.windows(made.train),
            made.windows(made.validation),
            cell.train,
            _generator(order),
            on_epoch,
            restore_best=cell.protocol != "paper",
        )

    audit = audited(
        cell.split,
        made.parts,
        panel,
        cell.window,
        fitted=made.fitted,
        encoder_trained_on_target=trained_on_target,
    )
    audit["failed"] += [f"channel_{name}" for name in protocol.LEAKING_CHANNELS if name in panel.channels]
    target, days = panel.target.reshape(-1), len(panel.dates)
    parts, km = made.parts, nearest_km(made.parts, panel)
    metrics: dict[str, float] = {}
    predictions: list[dict[str, np.ndarray]] = []
    for part, flat in {"val": made.validation, "test": parts.test, "wr": parts.within}.items():
        if flat is None:
            continue
        predicted = made.predict(flat)
        found = scores(target[flat], predicted)
        site, day = flat // days, flat % days
        if part != "val":
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
    return Result(
        metrics=metrics,
        counts={
            "n_train": len(made.train),
            "n_val": len(made.validation),
            "n_test": len(parts.test),
            **({"n_wr": len(parts.within)} if parts.within is not None else {}),
            "epochs": len(history),
            "best_epoch": best_epoch(history),
        },
        history=history,
        predictions={name: np.concatenate([p[name] for p in predictions]) for name in predictions[0]},
        audit=audit,
        weights={name: value.cpu() for name, value in made.model.state_dict().items()},
        seconds=time.perf_counter() - started,
    )


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
