"""One trial: a cell and a panel in, a result out."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pm25 import encoders, splits
from pm25.cell import Cell
from pm25.fit import Epoch, best_epoch, fit, predict
from pm25.inputs import Inputs, Windows
from pm25.metrics import scores
from pm25.model import BiLSTMAttention, initialise
from pm25.panel import Panel
from pm25.settings import ENCODERS


@dataclass(frozen=True)
class Result:
    """What a training has to say; plain values, no path and no clock but `seconds`."""

    metrics: dict[str, float]
    """`val_*`, `test_*` and, for checkerboards, `wr_*` of rmse, r2, mae, mbe (ug/m3)."""
    counts: dict[str, int]
    """`n_train`, `n_val`, `n_test`, `n_wr`: samples; `epochs` run and `best_epoch` (from 1)."""
    history: list[Epoch]
    predictions: dict[str, np.ndarray]
    """Columns part ('test', 'wr'), site_id, lat, lon, date, truth, prediction; one row per sample."""
    audit: dict[str, float | int]
    weights: dict[str, torch.Tensor]
    seconds: float


def run(
    cell: Cell,
    panel: Panel,
    *,
    embedding: np.ndarray | None = None,
    device: str = "cpu",
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Result:
    """Split, fit the scalers on training samples, build, train, and score the test set once.

    `embedding (sites, d)` spares an encoder variant the embedding of the panel's places; the caller
    answers for its being `encoders.load(cell.variant)`'s. The same cell, panel and device give the same
    bytes. torch's global random state is left as it was found.
    """
    started = time.perf_counter()
    parts = splits.cut(cell.split, cell.fold, panel, cell.window)
    # Independent streams, so that equal seeds mean equal samples and order in every arm.
    draw, order, initial, dropout = np.random.SeedSequence(cell.seed).spawn(4)
    rng = np.random.default_rng(draw)
    train = _subsample(parts.train, cell.train.max_windows, rng)
    validation = _subsample(parts.validation, cell.train.max_validation_windows, rng)
    if cell.variant in ENCODERS and embedding is None:
        embedding = encoders.load(cell.variant).embed(panel.lat, panel.lon)

    target = panel.target.reshape(-1)
    mean, std = float(target[train].mean(dtype=np.float64)), float(target[train].std(dtype=np.float64)) or 1.0
    inputs = Inputs(panel, train, cell.window, cell.variant, embedding, torch.device(device))

    def windows(flat: np.ndarray) -> Windows:
        return Windows(inputs, flat, (target[flat] - mean) / std)

    used = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(used):  # torch's layers draw weights of their own before `initialise` does
        model = BiLSTMAttention(inputs.channels, cell.model, cell.fusion, inputs.embedding_dim)
        initialise(model, _generator(initial))
        model.to(device)
        torch.manual_seed(int(dropout.generate_state(1)[0]))
        history = fit(model, windows(train), windows(validation), cell.train, _generator(order), on_epoch)

    metrics: dict[str, float] = {}
    predictions: list[dict[str, np.ndarray]] = []
    scored = {"val": validation, "test": parts.test, "wr": parts.within}
    for part, flat in scored.items():
        if flat is None:
            continue
        predicted = predict(model, windows(flat))[0] * std + mean
        metrics |= {f"{part}_{name}": value for name, value in scores(target[flat], predicted).items()}
        if part != "val":
            site, day = flat // len(panel.dates), flat % len(panel.dates)
            predictions.append(
                {
                    "part": np.full(len(flat), part),
                    "site_id": panel.site_id[site],
                    "lat": panel.lat[site],
                    "lon": panel.lon[site],
                    "date": panel.dates[day],
                    "truth": target[flat],
                    "prediction": predicted.astype(np.float32),
                }
            )
    return Result(
        metrics=metrics,
        counts={
            "n_train": len(train),
            "n_val": len(validation),
            "n_test": len(parts.test),
            **({"n_wr": len(parts.within)} if parts.within is not None else {}),
            "epochs": len(history),
            "best_epoch": best_epoch(history),
        },
        history=history,
        predictions={name: np.concatenate([p[name] for p in predictions]) for name in predictions[0]},
        audit=splits.audit(parts, panel, cell.window),
        weights={name: value.cpu() for name, value in model.state_dict().items()},
        seconds=time.perf_counter() - started,
    )


def _subsample(flat: np.ndarray, limit: int | None, rng: np.random.Generator) -> np.ndarray:
    """At most `limit` of the samples, ascending."""
    if limit is None or len(flat) <= limit:
        return flat
    return np.sort(rng.choice(flat, limit, replace=False, shuffle=False))


def _generator(seed: np.random.SeedSequence) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
