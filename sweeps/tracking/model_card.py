"""Model card of an arm's winner, in Markdown, with the numbers of its study."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pm25.cell import Cell
from pm25.geo import CONUS
from pm25.intervals import SPREAD_UGM3, Calibration
from pm25.metrics import EXCEEDANCE_UGM3
from pm25.panel import Panel
from pm25.tables.schema import CALENDAR
from sweeps.store.records import Record, failed_checks

if TYPE_CHECKING:
    import pandas as pd

SCORES = {"rmse": ("RMSE", 3), "r2": ("R²", 3), "mae": ("MAE", 3), "mbe": ("MBE", 3)}
PARTS = {"val": "validation", "test": "test", "wr": "held-out sites within region"}

LICENCES = {
    "geoclip": "The GeoCLIP weights are MIT-licensed (Copyright 2024 Vicente Vivanco, "
    "github.com/VicenteVivan/geo-clip).",
    # The model cards on the Hugging Face hub, e.g. huggingface.co/microsoft/SatCLIP-ViT16-L40.
    "satclip": "The SatCLIP weights are MIT-licensed (microsoft/SatCLIP on the Hugging Face hub); their "
    "authors mean them for research projects, and not for production.",
}


def card(
    arm: str,
    cell: Cell,
    record: Record,
    rows: "pd.DataFrame",
    facts: Mapping[str, Any],
    inputs: Mapping[str, str],
    panel: Panel,
    encoder_options: Mapping[str, Any],
    calibration: Calibration,
) -> str:
    """Write the card of an arm's winner; a sentence whose number is missing is left out.

    `arm` is the arm's label, `rows` are those of the complete study (`results.rows`), `facts` those of
    `results.facts`, and `inputs` those of `Winner`.
    """
    own = _of_arm(rows, cell)
    sections: dict[str, Iterable[str]] = {
        "Data": _data(facts, panel),
        "Task": _task(cell, inputs),
        "Training": _training(cell, record),
        "Scores": [*_own_scores(record), "", *_study_scores(own)],
        "Intervals": _intervals(calibration),
        "Encoder": _encoder(cell, record, encoder_options),
        "Limits": _limits(cell, record, own, facts, inputs),
        "Use": _use(cell, inputs, panel),
    }
    lines = [f"# {arm}: daily PM2.5 at a place, from {cell.window} days of its covariates", ""]
    lines += [f"{facts['question']}", ""] if facts["question"] else []
    lines += [
        f"The model of its arm in the study `{facts['study']}`: cell `{record['key']}`, {cell.label}. "
        "Its seed has the lowest validation RMSE of the arm, pooled over folds."
    ]
    for title, section in sections.items():
        if text := [*section]:
            lines += ["", f"## {title}", "", *text]
    return "\n".join(lines) + "\n"


def _data(facts: Mapping[str, Any], panel: Panel) -> Iterator[str]:
    yield (
        f"`{facts['table']}` (fingerprint `{facts['data_fingerprint']}`): {facts['sites']:,} sites, "
        f"{facts['observed']:,} observed site-days, {facts['first_day']} to {facts['last_day']}, "
        f"latitude {panel.lat.min():.2f} to {panel.lat.max():.2f}, "
        f"longitude {panel.lon.min():.2f} to {panel.lon.max():.2f}."
    )


def _task(cell: Cell, inputs: Mapping[str, str]) -> Iterator[str]:
    days = cell.window
    yield (
        f"PM2.5 in µg/m³ of the last day of a window of {days} days. A row of the input is one window "
        "at one place; the output is `pm25_ugm3`, with the bounds `lower` and `upper` of its interval if the "
        "model has intervals (below)."
    )
    yield ""
    yield from _table(
        ("column", "type", "what"),
        ((f"`{name}`", _type(kind, days), _meaning(name, kind, cell)) for name, kind in inputs.items()),
    )


def _type(kind: str, days: int) -> str:
    return f"{days} doubles, the oldest day first" if kind == "array" else kind


def _meaning(name: str, kind: str, cell: Cell) -> str:
    near = cell.neighbours
    if kind == "array":
        if name in CALENDAR:
            turn = "day of the year / 365.25" if name.startswith("day") else "month / 12"
            wave = "cosine" if name.endswith("cos") else "sine"
            return f"{wave} of 2π × {turn}, both counted from 0; a table's own column of this name instead"
        if near is not None and name == "neighbours_pm25":
            return (
                f"mean PM2.5 (µg/m³) of the {near.k} nearest training monitors that report on the day, "
                f"weighted by distance (km, at least 1) to the power -{near.power:g}"
            )
        if near is not None and name == "neighbours_km":
            return "log(1 + their mean distance in km)"
        return "as in the table, in its unit; NaN where missing"
    return {
        "lat": "degrees north",
        "lon": "degrees east",
        "month": "1 to 12, of the last day",
        "site_id": "name of the site in the encoder's table",
    }[name]


def _training(cell: Cell, record: Record) -> Iterator[str]:
    counts = record["counts"]
    yield (
        f"- Split `{cell.split.label}` ({cell.split.regime}), fold {cell.fold}, seed {cell.seed}, protocol "
        f"{cell.protocol}; {counts['n_train']:,} training and {counts['n_val']:,} validation samples."
    )
    yield f"- {counts['epochs']} epochs, the weights of epoch {_weights_of(cell, counts)}."
    settings = cell.resolved()
    yield from (f"- {name}: `{json.dumps(settings[name])}`" for name in ("split", "model", "train"))
    if cell.neighbours is not None:
        yield f"- neighbours: `{json.dumps(settings['neighbours'])}`"
    if "tuned" in record:
        yield f"- Chosen by the arm's search on validation samples: `{json.dumps(record['tuned'])}`"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    where = f"{record['seconds']:.0f} s on {record['device']}"
    yield f"- Trained until {record['ended'][:10]}, {where}; {versions}."
    if record.get("commit"):
        yield f"- Code: commit `{record['commit']}`{' with local changes' if record['dirty'] else ''}."


def _weights_of(cell: Cell, counts: Mapping[str, int]) -> int:
    return counts["epochs"] if cell.protocol == "paper" else counts["best_epoch"]


def _own_scores(record: Record) -> Iterator[str]:
    yield "This model, in µg/m³ but for R²:"
    yield ""
    lines = []
    for part, name in PARTS.items():
        values = [record["metrics"].get(f"{part}_{metric}") for metric in SCORES]
        if any(value is not None for value in values):
            shown = (
                "" if value is None else f"{value:.{digits}f}"
                for value, (_, digits) in zip(values, SCORES.values(), strict=True)
            )
            lines.append((name, f"{record['counts'][f'n_{part}']:,}", *shown))
    yield from _table(("part", "n", *(name for name, _ in SCORES.values())), lines)


def _of_arm(rows: "pd.DataFrame", cell: Cell) -> "pd.DataFrame":
    same = (rows["variant"] == cell.variant) & (rows["state"] == "done")
    fusion = rows["fusion"].isna() if cell.fusion is None else rows["fusion"] == cell.fusion
    return rows[same & fusion]


def _study_scores(own: "pd.DataFrame") -> Iterator[str]:
    lines = []
    for (split, regime), cells in own.groupby(["split", "regime"], sort=False):
        for column, where in (("wr_rmse", "WR"), ("test_rmse", regime)):
            if (found := _mean(cells[column])) is not None:
                lines.append((str(split), str(where), f"{found[0]:.3f}{_spread(found)}", str(found[2])))
    if lines:
        yield "The arm over the whole study, RMSE in µg/m³: mean (± standard deviation) of n trainings:"
        yield ""
        yield from _table(("split", "regime", "RMSE", "n"), lines)


def _mean(values: "pd.Series[float]") -> tuple[float, float, int] | None:
    """Compute mean, standard deviation and n of the finite values; None if there are none."""
    found = values.astype("float64").to_numpy()
    found = found[np.isfinite(found)]
    if not len(found):
        return None
    return float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else float("nan"), len(found)


def _spread(found: tuple[float, float, int]) -> str:
    return f" ± {found[1]:.3f}" if found[2] > 1 else ""


def _intervals(calibration: Calibration) -> Iterator[str]:
    if not calibration.radii:
        yield f"None: {calibration.absent}."
        return
    yield (
        f"`lower` and `upper` are to hold the measured value on {calibration.level:.0%} of the days of a new "
        f"region. The interval is the prediction ± radius × √(prediction² + {SPREAD_UGM3:g}²), and at least "
        f"{calibration.lowest_ugm3:g} µg/m³, the lowest measured value of the table. The radius depends on "
        "the distance to the nearest training monitor:"
    )
    yield ""
    yield from _table(
        ("up to", "radius", "calibrated on the test errors of", "regions"),
        (
            (
                f"{one.reach_km:,.0f} km",
                f"{one.radius:.3f}",
                f"`{one.split}` ({one.regime})",
                str(one.regions),
            )
            for one in calibration.radii
        ),
    )
    yield ""
    yield (
        "A place takes the first line that includes it, and the last line beyond all of them. Days of smoke "
        f"are held less often; the report has the share for days from {EXCEEDANCE_UGM3} µg/m³ on."
    )


def _encoder(cell: Cell, record: Record, options: Mapping[str, Any]) -> Iterator[str]:
    if cell.encoder is None:
        return
    yield (
        f"The place is embedded by `{cell.encoder}` (fingerprint `{record['encoder']}`), frozen, and fused "
        f"by {cell.fusion}. Its weights or vectors are stored in the model's folder."
    )
    if cell.encoder == "geoclip" or (cell.encoder == "satclip" and options.get("model")):
        yield LICENCES[cell.encoder]


def _limits(
    cell: Cell,
    record: Record,
    own: "pd.DataFrame",
    facts: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> Iterator[str]:
    west, south, east, north = CONUS
    yield (
        f"- Region: monitors of the contiguous US (latitude {south:.2f} to {north:.2f}, "
        f"longitude {west:.2f} to {east:.2f}). Period: {facts['first_day']} to {facts['last_day']}; "
        "other years were not tested."
    )
    arrays = [name for name, kind in inputs.items() if kind == "array"]
    yield (
        f"- All {len(arrays)} channels are needed for all {cell.window} days. A missing value is replaced by "
        "the channel's training mean."
    )
    if cell.variant == "table":
        yield "- Only places in the encoder's table can be predicted."
    for split, cells in own[own["regime"] == "OoR"].groupby("split", sort=False):
        within, out = _mean(cells["wr_rmse"]), _mean(cells["test_rmse"])
        if within is not None and out is not None:
            yield (
                f"- Out of region (`{split}`) the RMSE of this arm's models is {out[0]:.3f}{_spread(out)} "
                f"µg/m³ (n = {out[2]}), and {within[0]:.3f}{_spread(within)} µg/m³ at held-out sites within "
                "their region. These are other monitors."
            )
    tail = record["metrics"].get("test_tail_mbe")
    if tail is not None:
        yield (
            f"- Where {EXCEEDANCE_UGM3} µg/m³ or more were measured ({record['metrics']['test_n_tail']:,.0f} "
            f"test samples) its predictions are too {'low' if tail < 0 else 'high'} by {abs(tail):.1f} µg/m³ "
            "on average."
        )
    if failed := failed_checks(record):
        yield f"- Its audit found: {', '.join(failed)}."
    else:
        yield "- Its audit found no leak from test to training."
    yield "- A research model: not for regulatory use, nor for decisions about anybody's health."


def _use(cell: Cell, inputs: Mapping[str, str], panel: Panel) -> Iterator[str]:
    place = {"lat": float(panel.lat[0]), "lon": float(panel.lon[0])}
    first = {**place, "month": 7, "site_id": str(panel.site_id[0])}
    scalars = ", ".join(
        f'"{name}": [{json.dumps(first[name])}]' for name, kind in inputs.items() if kind != "array"
    )
    arrays = [name for name, kind in inputs.items() if kind == "array"]
    yield "```python"
    yield "import mlflow"
    yield "import pandas as pd"
    yield ""
    yield 'model = mlflow.pyfunc.load_model("models:/NAME/VERSION")'
    yield f"frame = pd.DataFrame({{{scalars}}})"
    yield f"for channel in {json.dumps(arrays)}:"
    yield f'    frame[channel] = [[float("nan")] * {cell.window}]  # its daily values, the oldest first'
    yield "model.predict(frame)  # pm25_ugm3, and lower and upper if the model has intervals"
    yield "```"


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> Iterator[str]:
    head = [*head]
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    yield from (f"| {' | '.join(line)} |" for line in lines)
