"""The code of the documentation that loads a winner from MLflow runs as it is written."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeps.state import StudyState

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mlflow

    from sweeps.tracking.mlflow_view import Tracker

DOCUMENT = Path(__file__).parents[3] / "sweeps" / "README.md"


@pytest.mark.filterwarnings("ignore:no prediction intervals")
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what MLflow's models warn of
def test_the_code_of_the_document_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.engine import worker
    from sweeps.tracking import winners

    monkeypatch.chdir(tmp_path)
    study = {
        "study": "quick",
        "keep_weights": True,
        "data": {"synthetic": {"sites": 12, "days": 40}},
        "design": {"variant": ["none"], "split": [{"kind": "random", "folds": 2, "fold": 0}], "seed": 0},
        "model": {"width": 4, "depth": 1, "attention_units": 4},
        "train": {"max_epochs": 1},
    }
    Path("quick.yaml").write_text(json.dumps(study))
    state = StudyState("quick.yaml")
    for key, cell in state.cells.items():
        worker.train_and_record(cell, key, state.panel, state.store, keep_weights=True)
    records = state.records()
    (winner,) = winners.winners(state, records, None)
    example = winners.example(state, winner)
    tracker = Tracker(state.store, None, state.data())
    tracker.sync(records.values())
    tracker.register(replace(winner, name="geoclip-hadamard"), example)

    (code,) = re.findall(r"^```\w+\n(import mlflow\n.*?load_model.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    names: dict[str, Any] = {}
    before = mlflow.get_tracking_uri()
    try:
        exec(
            compile(code.replace("model.predict(frame)", "found = model.predict(frame)"), "code", "exec"),
            names,
        )
    finally:
        mlflow.set_tracking_uri(before)
    assert np.allclose(names["found"], winner.predictor().predict_frame(example))
