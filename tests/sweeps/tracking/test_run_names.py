"""Names, descriptions and views in MLflow: alike for all kinds of runs, and never a mean over regimes."""

import warnings
from typing import Any

from pm25.cell import Cell
from pm25.splits import CheckerboardSplit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sweeps.tracking.run_content import NOTE, parent_content, run_content
    from sweeps.tracking.ui_views import pages

TIMES = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:00:01+00:00"}


def cell(**more: Any) -> dict[str, Any]:
    split = CheckerboardSplit(degrees=16)
    made = Cell(variant="geoclip", fusion="hadamard", split=split, fold=1, seed=7)
    error = {"type": "Diverged", "message": "loss", "traceback": "Traceback: line 1"}
    return {"key": "k", "cell": made.resolved(), "state": "failed", "error": error, **TIMES, **more}


def trial(**more: Any) -> dict[str, Any]:
    numbers = {"number": 3, "epochs": 1, "seconds": 1.0, "reported": [], "params": {}}
    arm = {"kind": "trial", "arm": "geoclip-hadamard"}
    return {"key": "t", "state": "done", **arm, **numbers, **TIMES, **more}


def test_names_begin_with_arm_and_split_and_descriptions_are_sentences() -> None:
    nested = {"split": "checkerboard-16", "fold": 1}
    found = [run_content(record) for record in (cell(), trial(), trial(**nested))]
    assert [content.name for content in found] == [
        "GeoCLIP · Hadamard | checkerboard-16 | fold 1 | seed 7",
        "GeoCLIP · Hadamard | search | trial 3",
        "GeoCLIP · Hadamard | checkerboard-16 | fold 1 | search | trial 3",
    ]
    assert [content.tags[NOTE].partition("\n")[0] for content in found] == [
        "Training of GeoCLIP · Hadamard on checkerboard-16, fold 1, seed 7.",
        "Search trial 3 of GeoCLIP · Hadamard.",
        "Search trial 3 of GeoCLIP · Hadamard on checkerboard-16, fold 1.",
    ]
    assert found[0].tags[NOTE].endswith("```\nTraceback: line 1\n```")
    parents = [parent_content(content.tags) for content in found]
    assert parents == [
        (
            "GeoCLIP · Hadamard | checkerboard-16",
            "All trainings of GeoCLIP · Hadamard on checkerboard-16: means over folds and seeds.",
        ),
        *[("GeoCLIP · Hadamard | search", "All search trials of GeoCLIP · Hadamard.")] * 2,
    ]


def test_no_view_averages_over_splits() -> None:
    """A group has one mean per metric, so a group may not have runs of several splits."""
    for page in pages().values():
        grouped = page.state.get("groupBy")
        keys = [key["groupByData"] for key in grouped["groupByKeys"]] if grouped else None
        assert keys in (None, ["split"]), page.name
