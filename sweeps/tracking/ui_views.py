"""What MLflow's pages show of an experiment at first: the saved views of its UI (3.17), as plain values.

The UI keeps a view as an experiment tag `mlflow.sharedViewState.<id>` and opens it by that id: what it
calls `ExperimentPageUIState` and `ExperimentPageSearchFacetsState`; what is not given stays at its default.
"""

from typing import Any, NamedTuple


class Page(NamedTuple):
    """One saved view."""

    name: str
    """As the UI lists it."""
    mode: str
    """TABLE or CHART."""
    state: dict[str, Any]


_SECTION = "within-and-out-of-region"
_PARENTS: dict[str, Any] = {
    "searchFilter": "tags.kind = 'arm'",
    "orderByKey": "attributes.start_time",
    "orderByAsc": True,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "runsHiddenMode": "SHOW_ALL",
}
"""The parents of cells: what an arm's cells say together of a split."""


def pages() -> dict[str, Page]:
    """By id."""
    # No p: above a group stands the mean of a column, and that of several p says nothing.
    metrics = [
        *("wr_rmse_mean", "oor_rmse_mean", "gap_rmse", "diff_rmse"),
        *("wr_r2_mean", "oor_r2_mean", "n", "n_expected"),
    ]
    columns = [
        *(f"tags.`{name}`" for name in ("fusion", "split")),
        *(f"metrics.`{name}`" for name in metrics),
    ]
    table = {
        **_PARENTS,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": dict.fromkeys(columns, 120),
        "groupBy": _group("variant"),
    }
    charts = [
        *(_bar(name) for name in ("wr_rmse_mean", "oor_rmse_mean", "diff_rmse", "gap_rmse")),
        {
            **_chart("wr_oor"),
            "type": "SCATTER",
            "xaxis": {"key": "wr_rmse_mean", "type": "METRIC"},
            "yaxis": {"key": "oor_rmse_mean", "type": "METRIC"},
        },
    ]
    section = {"uuid": _SECTION, "name": "Within and out of region", "display": True, "isReordered": True}
    chart = {
        **_PARENTS,
        "compareRunCharts": charts,
        "compareRunSections": [{**section, "deleted": False, "isGenerated": False}],
        "isAccordionReordered": True,
        "groupBy": _group("arm"),
    }
    return {
        "arms-by-variant": Page("Arms, grouped by variant", "TABLE", table),
        "wr-and-oor": Page("WR and OoR of every arm", "CHART", chart),
    }


def _group(tag: str) -> dict[str, Any]:
    """Runs with one value of a tag under each other, above them the mean of their metrics."""
    return {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": tag}]}


def _bar(metric: str) -> dict[str, Any]:
    return {**_chart(metric), "type": "BAR", "metricKey": metric}


def _chart(name: str) -> dict[str, Any]:
    place = {"uuid": f"chart-{name}", "metricSectionId": _SECTION}
    return {**place, "runsCountToCompare": 100, "deleted": False, "isGenerated": False}
