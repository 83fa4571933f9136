"""Content of an MLflow run: what a record of a cell or a search trial becomes."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, get_args

from mlflow.entities import Dataset, DatasetInput, InputTag

from pm25.cell import Cell
from pm25.settings import Fusion, dotted
from sweeps.analysis import labels
from sweeps.report.tables import escape
from sweeps.spec.design import Arm, Head
from sweeps.store.records import Record, failed_checks

VIEW = "3"
"""Version of this content; after a change, `sweep sync` replaces runs with another version."""

NOTE = "mlflow.note.content"
"""Tag with the description of a run or of an experiment."""

PARENT_TAGS = ("arm", "variant", "fusion", "head", "split", "regime")
"""Tags that a parent run has in common with its runs."""


def _arm(label: str) -> Arm:
    """Return the arm with a label, which is all that the record of a search trial stores of it."""
    variant, *more = label.split("-")
    fusion = next((one for one in get_args(Fusion) if one in more), None)
    head = next((one for one in get_args(Head) if one in more), None)
    return Arm(variant, fusion, head)


class RunContent(NamedTuple):
    """Content of a run, without the curves of a cell's training."""

    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[tuple[int, Mapping[str, Any]]]
    """Metrics with their step; None for a missing value."""


def run_content(record: Record) -> RunContent:
    """Convert a record to the content of its run."""
    content = (_trial if record.get("kind") == "trial" else _cell)(record)
    if record["state"] == "failed":
        error = record["error"]
        content.tags["error"] = f"{error['type']}: {error['message']}"[:5000]
        trace = error.get("traceback", "")[-7800:].replace("```", "...")  # which would end the block
        content.tags[NOTE] += f"\n\n```\n{trace}\n```"
    return content


def _cell(record: Record) -> RunContent:
    cell = Cell.model_validate(record["cell"])
    tags = {
        **_origin(record, "cell"),
        **_factors(Arm.of(cell)),
        "split": cell.split.label,
        "regime": cell.split.regime,
        "fold": str(cell.fold),
        "seed": str(cell.seed),
    }
    if record.get("encoder"):
        tags["encoder"] = record["encoder"]
    audit = {name: value for name, value in record.get("audit", {}).items() if name != "failed"}
    if failed := failed_checks(record):
        tags["marked"] = "; ".join(failed)[:5000]  # results with a failed audit can be filtered out
    metrics: list[tuple[int, Mapping[str, Any]]] = []
    if record["state"] == "done":
        metrics = [(0, {**record["metrics"], **record["counts"], **audit, "seconds": record["seconds"]})]
    name, place = _places(tags, f"fold {cell.fold}")
    tags[NOTE] = f"Training of {place}, seed {cell.seed}."
    return RunContent(f"{name} | seed {cell.seed}", tags, _params(record["cell"]), metrics)


def _trial(record: Record) -> RunContent:
    """Convert a search trial: its parameters, validation scores, and the RMSE after every epoch."""
    tags = {**_origin(record, "trial"), **_factors(_arm(record["arm"])), "state": record["state"]}
    scores = {
        f"val_{regime}_{name}": value
        for regime, values in record.get("scores", {}).items()
        for name, value in values.items()
    }
    spent = {"epochs": record["epochs"], "seconds": record["seconds"]}
    curve = [(step, {"validation_rmse": value}) for step, value in enumerate(record["reported"], 1)]
    # Only a trial of a nested search belongs to a fold.
    nested = {"arm": tags["arm"], "split": record["split"]} if "split" in record else {"arm": tags["arm"]}
    name, place = _places(nested, *([f"fold {record['fold']}"] if "split" in record else []))
    tags[NOTE] = f"Search trial {record['number']} of {place}."
    name = f"{name} | search | trial {record['number']}"
    return RunContent(name, tags, _params(record["params"]), [(0, {**scores, **spent}), *curve])


def parent_content(child: Mapping[str, str]) -> tuple[str, str]:
    """Build the name and the description of the run above a run with these tags."""
    name, place = _places(child)
    if child["kind"] == "trial":
        return f"{name} | search", f"All search trials of {place}."
    return name, f"All trainings of {place}: means over folds and seeds."


def _places(tags: Mapping[str, str], *more: str) -> tuple[str, str]:
    """Name an arm, its split and more: for a run's name, and for a sentence in Markdown."""
    parts = [tags["arm"], *([tags["split"]] if "split" in tags else []), *more]
    sentence = f"{parts[0]} on {', '.join(parts[1:])}" if parts[1:] else parts[0]
    return " | ".join(parts), escape(sentence)


def _factors(arm: Arm) -> dict[str, str]:
    """Tags of the arm; without a fusion the tag is `-`, since the UI cannot group runs without a tag."""
    label = labels.arm(arm.variant, arm.fusion)
    factors = {"arm": label, "variant": arm.variant, "fusion": arm.fusion or "-"}
    return factors | ({"head": arm.head} if arm.head else {})


def _origin(record: Record, kind: str) -> dict[str, str]:
    """Tags that identify the record, the machine, the data and the code."""
    tags = {name: str(record.get(name, "?")) for name in ("host", "device", "data", "numerics")}
    tags |= {"mlflow.source.name": "sweep run", "mlflow.source.type": "LOCAL"}
    if "commit" in record:
        tags |= {"commit": record["commit"], "dirty": str(record.get("dirty", "?")).lower()}
        tags["mlflow.source.git.commit"] = record["commit"]
    return {"key": record["key"], "kind": kind, "ended": record["ended"], "view": VIEW, **tags}


def _params(settings: Mapping[str, Any]) -> dict[str, str]:
    # MLflow accepts at most 6000 characters.
    return {name: str(value)[:6000] for name, value in dotted(settings).items()}


def dataset_input(fingerprint: str, data: Mapping[str, Any]) -> DatasetInput:
    """Describe the panel (`StudyState.data`); its digest is cut to 36 characters, MLflow's limit."""
    described = {name: json.dumps(data[name]) for name in ("source", "schema", "profile")}
    uri = data["source"].get("uri")
    kind = "code" if uri is None else uri.partition("://")[0] if "://" in uri else "local"
    dataset = Dataset(data["name"], fingerprint[:36], kind, **described)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def run_status(record: Record) -> str:
    """MLflow's status of a run; a pruned trial has finished."""
    return "FAILED" if record["state"] == "failed" else "FINISHED"


def milliseconds(stamp: str) -> int:
    """Convert a record's time stamp to milliseconds since 1970."""
    return round(datetime.fromisoformat(stamp).timestamp() * 1000)
